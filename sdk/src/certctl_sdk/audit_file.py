"""Exports of the audit trail, checked away from the server: whether they are, byte for byte, what it sealed and signed.

An export is lines of JSON. Sealed rows come in the order of the chain, each with the text that was hashed; a
checkpoint stands after the row that it signs, or first of all where older rows were archived; rows that waited for
their seal come last. The last line is the signed trailer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import BinaryIO

import msgspec
from certctl_core.audit import COLUMNS, START, Faults, Link, Trailer, Walk, is_signed, key_text, read_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LONGEST_LINE = 16 * 2**20
"""Bytes; no row is nearly as long, and a file that never ends a line is not read into memory."""


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of an export: a row, a checkpoint or the trailer."""

    sequence: int = 0
    """The row's place in the chain, from 1; 0 if it waited for its seal."""
    previous_hash: str = ""
    """Of the row before."""
    hash: str = ""
    """The row's own."""
    id: str = ""
    """As in the API, like the keys that follow."""
    timestamp: str = ""
    actor: str = ""
    actor_type: str = ""
    action: str = ""
    resource_type: str = ""
    resource_id: str = ""
    request_id: str = ""
    details_text: str = ""
    """The stored text, which is what was hashed."""
    details: msgspec.Raw = msgspec.Raw()
    """The same as JSON, for readers."""
    checkpoint: Link | None = None
    """The row that ``signature`` is over."""
    trailer: Trailer | None = None
    """What ``signature`` is over in the last line."""
    key: str = ""
    """Whose signature it is, base64."""
    signature: str = ""
    """Base64."""


def encode(line: Line) -> bytes:
    """Return a line as it is written, its end included."""
    return msgspec.json.encode(line) + b"\n"


def read(raw: bytes) -> Line | None:
    """Return the line that ``encode`` wrote; None if it is none."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


_decode = msgspec.json.Decoder(Line).decode
_texts = attrgetter(*("details_text" if name == "details" else name for name in COLUMNS))


@dataclass(slots=True)
class Verdict:
    """What was found in exports that follow each other."""

    rows: int = 0
    """Sealed rows."""
    unsealed: int = 0
    """Rows without a place in the chain; the trailer's digest alone protects them."""
    checkpoints: int = 0
    """Good signatures, those of trailers not counted."""
    first: int = 0
    """Place of the first sealed row."""
    head: Link = START
    """The end of the chain, as the last trailer names it."""
    end: Line | None = None
    """The last line of the last file."""
    key: str = ""
    """Whose signatures they are, base64: who made the file says so, and only a comparison tells whether it is true."""
    faults: Faults = field(default_factory=Faults)
    """What does not fit; empty if everything is as it was sealed."""


def verify(files: Iterable[BinaryIO], key: str = "") -> Verdict:
    """Check exports, each of which goes on where the one before ended, in bounded memory.

    ``key`` is whose signatures are accepted; without it, those of the key that the first file names.

    Raises:
        ValueError: ``key`` is none.
    """
    reading = _Reading(key)
    for file in files:
        reading.read(file)
    return reading.verdict


class _Reading:
    """What is known so far of one file after the other."""

    def __init__(self, key: str) -> None:
        self._key = read_key(key) if key else None
        self.verdict = Verdict(key=key_text(self._key) if self._key else "")
        self._walk = Walk(faults=self.verdict.faults)
        self._began, self._strange = 0, False
        #: Of the present file.
        self._first = self._unsealed = 0

    def read(self, file: BinaryIO) -> None:
        """Read one file to its end."""
        digest, end = hashlib.sha256(), None
        self._first = self._unsealed = 0
        for number, raw in enumerate(_lines(file), 1):
            if end is not None:
                self._fault("something stands after the trailer")
                break
            line = self._line(number, raw)
            if line is not None and line.trailer is not None:
                end = line
                if raw != encode(line):
                    self._fault("the trailer is not written as it was")
                continue
            digest.update(raw)
            if line is not None:
                self._take(line, raw)
        self._walk.end()
        if end is None or end.trailer is None:
            self._fault("the trailer is missing: the end was cut off, or it is no whole export")
        else:
            self._close(end, end.trailer, digest.hexdigest())
        self._count()

    def _line(self, number: int, raw: bytes) -> Line | None:
        line = read(raw)
        if line is None:
            self._fault(f"line {number} is none of an export")
        return line

    def _take(self, line: Line, raw: bytes) -> None:
        if line.checkpoint is not None:
            self._checkpoint(line, line.checkpoint)
        elif line.sequence:
            if not self._first:
                self._first = line.sequence
            if not raw.endswith(b"".join((b',"details":', line.details_text.encode(), b"}\n"))):
                self._compare(line)
            self._walk.row(line.sequence, line.previous_hash, line.hash, _texts(line))
        else:
            self._unsealed += 1

    def _compare(self, line: Line) -> None:
        """The text alone is hashed; what stands beside it for readers must say the same."""
        try:
            same = json.loads(line.details_text) == json.loads(bytes(line.details))
        except ValueError:
            same = False
        if not same:
            self._fault(f"row {line.sequence} ({line.id}) shows other details than were hashed")

    def _checkpoint(self, line: Line, link: Link) -> None:
        key = self._known(line.key)
        if key is None:
            return
        if self._walk.head == START and is_signed(key, link, line.signature):
            # Rows up to here were archived before.
            self._walk, self._began = Walk(link, faults=self.verdict.faults), 1
        else:
            self._walk.checkpoint(key, link, line.signature)

    def _known(self, text: str) -> Ed25519PublicKey | None:
        """Return the one key that signs everything; note another one."""
        if self._key is None:
            try:
                self._key = read_key(text)
            except ValueError:
                self._fault("the key that it names is none")
                return None
            self.verdict.key = key_text(self._key)
        if text != self.verdict.key and not self._strange:
            self._strange = True
            self._fault("it is signed by another key")
        return self._key

    def _close(self, end: Line, trailer: Trailer, digest: str) -> None:
        key, head, before = self._known(end.key), self._walk.head, self.verdict.end and self.verdict.end.trailer
        wrong = {
            "the trailer holds a signature that is not ours": key and not is_signed(key, trailer, end.signature),
            "the file is not, byte for byte, the one that the trailer was made for": trailer.digest != digest,
            f"it begins with another row than {trailer.first}, as the trailer has it": trailer.first
            != (self._first or head.sequence + 1),
            f"it ends with row {head.sequence}, not as the trailer has it": trailer.link != head,
            f"it has {self._unsealed} rows that were not sealed, not {trailer.unsealed}": trailer.unsealed
            != self._unsealed,
            "it was made before the file in front of it": before and trailer.made_at < before.made_at,
        }
        for words in (words for words, is_wrong in wrong.items() if is_wrong):
            self._fault(words)
        self.verdict.end = end

    def _count(self) -> None:
        found = self.verdict
        found.first = found.first or self._first
        found.rows, found.unsealed, found.head = self._walk.rows, self._unsealed, self._walk.head
        found.checkpoints = self._walk.checkpoints + self._began

    def _fault(self, words: str) -> None:
        self.verdict.faults.add(words)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.readline, LONGEST_LINE), b"")
