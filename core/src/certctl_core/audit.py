"""The audit trail as a chain: what is hashed, what is signed, and how a copy of it is checked.

The server seals with it and both the server and the command line verify with it: there is one reading of the format.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

COLUMNS = ("id", "timestamp", "actor", "actor_type", "action", "resource_type", "resource_id", "details", "request_id")
"""What is hashed of a row, in this order, after the previous hash and the sequence."""
CHECKPOINT_ROWS = 1000
"""The most rows between two signatures."""
TOLD = 50
"""The most faults that are told one by one."""
_ROW = b"certctl audit row 1"
_CHECKPOINT = b"certctl audit checkpoint 1"
_TRAILER = b"certctl audit trailer 1"


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain."""

    sequence: int
    """The place of its last row, counted from 1; 0 is a chain without rows."""
    hash: str
    """SHA-256 of that row, lower hex; empty without rows."""

    @property
    def claim(self) -> bytes:
        """What a checkpoint signs."""
        return _digest(_CHECKPOINT, (str(self.sequence), self.hash)).digest()


START = Link(0, "")
"""What the first row follows."""


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the last line of an export vouches for."""

    first: int
    """Place of the first sealed row; one more than ``last`` if there is none."""
    last: int
    """Place of the last sealed row."""
    hash: str
    """Hash of the last sealed row, or of the one before ``first`` if there is none."""
    unsealed: int
    """Rows that waited for their seal when it was made; they stand before the trailer, without a place."""
    made_at: str
    """When it was made, RFC 3339."""
    digest: str
    """SHA-256 of every byte before the trailer's line, lower hex."""

    @property
    def claim(self) -> bytes:
        """What its signature is over."""
        numbers = (str(self.first), str(self.last), self.hash, str(self.unsealed))
        return _digest(_TRAILER, (*numbers, self.made_at, self.digest)).digest()

    @property
    def link(self) -> Link:
        """The end of the chain that it names."""
        return Link(self.last, self.hash)


def moment(timestamp: datetime) -> str:
    """Return the one text of a time that is hashed, whatever its zone: RFC 3339 in UTC, to the microsecond."""
    return timestamp.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def row_hash(previous_hash: str, sequence: int, texts: Sequence[str]) -> str:
    """Return the hash of the row in place ``sequence`` whose ``COLUMNS`` are ``texts``, lower hex.

    It is SHA-256 over texts in UTF-8, each after its length in bytes as 8 bytes, big-endian: the format's name, the
    previous hash, the sequence in decimal digits, then ``texts``.
    """
    return _digest(_ROW, (previous_hash, str(sequence), *texts)).hexdigest()


def _digest(form: bytes, texts: Iterable[str]) -> hashlib._Hash:
    parts = [_length(form), form]
    for text in texts:
        try:
            raw = text.encode()
        except (UnicodeEncodeError, AttributeError):
            # What somebody wrote into a database by hand may be no text: then it has another hash, and that is all.
            raw = str(text).encode("utf-8", "surrogatepass")
        size = len(raw)
        # Of a row it is made a dozen times, of a trail millions of rows are looked at.
        parts.append(_LENGTHS[size] if size < _SHORT else _length(raw))
        parts.append(raw)
    return hashlib.sha256(b"".join(parts))


def _length(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "big")


_SHORT = 1024
_LENGTHS = tuple(_length(b" " * size) for size in range(_SHORT))


def sign(key: Ed25519PrivateKey, what: Link | Trailer) -> str:
    """Return the signature over a checkpoint or a trailer, base64."""
    return base64.b64encode(key.sign(what.claim)).decode()


def is_signed(key: Ed25519PublicKey, what: Link | Trailer, signature: str) -> bool:
    """Whether ``signature`` is the holder's of ``key`` over ``what``."""
    try:
        raw = base64.b64decode(signature, validate=True)
        key.verify(raw, what.claim)
    except (InvalidSignature, ValueError, TypeError):
        return False
    # Two texts may stand for the same bytes, and only one of them was written.
    return base64.b64encode(raw).decode() == signature


def key_text(key: Ed25519PublicKey) -> str:
    """Return a key that verifies, as people compare it: its 32 bytes in base64."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def read_key(text: str) -> Ed25519PublicKey:
    """Return the key that ``key_text`` wrote.

    Raises:
        ValueError: it is none.
    """
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


@dataclass(slots=True)
class Faults:
    """What does not fit, first things first; of many, the first fifty and their number."""

    told: list[str] = field(default_factory=list)
    """One sentence each."""
    count: int = 0
    """All of them."""

    def add(self, words: str) -> None:
        """Note one more."""
        self.count += 1
        if len(self.told) < TOLD:
            self.told.append(words)


class Walk:
    """Follows rows and checkpoints in their order and notes what does not fit.

    It goes on from what a row or a good signature says, so that one change is one fault.
    """

    def __init__(self, start: Link = START, *, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        """What was found so far."""
        self.rows = 0
        """Sealed rows that were looked at."""
        self.checkpoints = 0
        """Signatures that are good."""
        self._sequence, self._hash = start.sequence, start.hash
        self._signed = start.sequence

    @property
    def head(self) -> Link:
        """Where it stands."""
        return Link(self._sequence, self._hash)

    def row(self, sequence: int, previous_hash: str, hash_: str, texts: Sequence[str]) -> None:
        """Look at the next row, whose ``COLUMNS`` are ``texts``."""
        self.rows += 1
        follows = sequence == self._sequence + 1
        if sequence <= self._sequence:
            self.faults.add(f"row {sequence} stands after row {self._sequence}")
        elif not follows:
            self.faults.add(f"rows {self._sequence + 1} to {sequence - 1} are gone")
        elif previous_hash != self._hash:
            self.faults.add(f"row {sequence} does not follow row {self._sequence}")
        if row_hash(previous_hash, sequence, texts) != hash_:
            self.faults.add(f"row {sequence} ({texts[0]}) was changed")
        if sequence > self._sequence:
            self._sequence, self._hash = sequence, hash_

    def checkpoint(self, key: Ed25519PublicKey, link: Link, signature: str) -> None:
        """Look at the next checkpoint: it stands right after the row that it signs."""
        good = is_signed(key, link, signature)
        if link.sequence - self._signed > CHECKPOINT_ROWS:
            self.faults.add(f"a checkpoint between rows {self._signed} and {link.sequence} is gone")
        if link.sequence > self._sequence:
            self.faults.add(f"rows {self._sequence + 1} to {link.sequence}, which a checkpoint names, are gone")
        elif link.sequence < self._sequence:
            self.faults.add(f"the checkpoint at row {link.sequence} stands after row {self._sequence}")
        if not good:
            self.faults.add(f"the checkpoint at row {link.sequence} holds a signature that is not ours")
        elif link.sequence == self._sequence and link.hash != self._hash:
            self.faults.add(f"row {link.sequence} is not the one that was signed")
        elif link.sequence == self._sequence:
            self.checkpoints += 1
        if good and link.sequence > self._sequence:
            self._sequence, self._hash = link.sequence, link.hash
        self._signed = max(self._signed, link.sequence)

    def end(self) -> None:
        """Look at what comes after the last checkpoint: it cannot be much."""
        if self._sequence - self._signed >= CHECKPOINT_ROWS:
            self.faults.add(f"rows {self._signed + 1} to {self._sequence} are not signed")
