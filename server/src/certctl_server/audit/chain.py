"""How audit rows are chained: what is hashed, what is signed. Sealer, verifier and exports agree on it here."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from certctl_server import db
from certctl_server.sealing import Cipher, place, recall, remember

ROW = b"certctl audit row 1"
CHECKPOINT = b"certctl audit checkpoint 1"
KEY = "audit_signing_key"
KEY_PLACE = place("setting", KEY, "value")
COLUMNS = ("id", "timestamp", "actor", "actor_type", "action", "resource_type", "resource_id", "details", "request_id")
"""What is hashed of a row, in this order, after the previous hash and the sequence."""
HEAD_FILE = "audit-head"


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain: ``sequence`` counts from 1, ``hash`` is lower hex SHA-256."""

    sequence: int
    hash: str


START = Link(0, "")
"""What the first row follows."""


def moment(timestamp: datetime) -> str:
    """Return the one text of a time: both databases give the same moment, each in its own spelling."""
    return timestamp.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def follow(before: Link, row: db.Row) -> Link:
    """Return the link that ``row`` makes after ``before``.

    The hash is SHA-256 over texts in UTF-8, each after its length in bytes as 8 bytes, big-endian: the format's
    name, the previous hash, the sequence in decimal digits, then ``COLUMNS``.
    """
    sequence = before.sequence + 1
    stored = {**row, "timestamp": moment(row["timestamp"])}
    return Link(sequence, _digest(ROW, before.hash, str(sequence), *(str(stored[name]) for name in COLUMNS)).hex())


def _digest(form: bytes, *texts: str) -> bytes:
    found = hashlib.sha256()
    for part in (form, *(text.encode("utf-8", "surrogatepass") for text in texts)):
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def sign(key: Ed25519PrivateKey, link: Link) -> str:
    """Return the signature over the chain up to ``link``, base64."""
    return base64.b64encode(key.sign(_digest(CHECKPOINT, str(link.sequence), link.hash))).decode()


def is_signed(key: Ed25519PublicKey, link: Link, signature: str) -> bool:
    """Whether ``signature`` is ours over ``link``."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _digest(CHECKPOINT, str(link.sequence), link.hash))
    except (InvalidSignature, ValueError):
        return False
    return True


async def signing_key(cipher: Cipher) -> Ed25519PrivateKey:
    """Return the installation's key for checkpoints, made when first asked for.

    Raises:
        MisconfiguredError: the stored one cannot be opened.
    """
    stored = await recall(KEY)
    if not stored:
        raw = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
        stored = await remember(KEY, cipher.seal(raw, KEY_PLACE))
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(cipher.open(stored, KEY_PLACE)))
