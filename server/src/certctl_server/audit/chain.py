"""The chain as the database holds it: the texts of a row that are hashed, and the key that signs."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from operator import itemgetter

from certctl_core.audit import COLUMNS, Link, moment, row_hash
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certctl_server import db
from certctl_server.sealing import Cipher, place, recall, remember

KEY = "audit_signing_key"
KEY_PLACE = place("setting", KEY, "value")
HEAD_FILE = "audit-head"
#: Times as text: a driver's datetime costs more to make and to write out again than the hash of the whole row.
TEXTS = {
    "postgres": """to_char(audit_event.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS timestamp""",
    "sqlite": "audit_event.timestamp || '' AS timestamp",
}
AS_WRITTEN = 32
"""Characters of a time in SQLite as ``record`` writes it."""
_hashed = itemgetter(*COLUMNS)


def statement(text: str) -> db.Sql:
    """Return ``text`` as a statement in which ``{texts}`` stands for what is hashed of a row of ``audit_event``."""
    others = ", ".join(name for name in COLUMNS if name != "timestamp")
    postgres, sqlite = (text.replace("{texts}", f"{others}, {TEXTS[each]}") for each in ("postgres", "sqlite"))
    return db.Sql(postgres=postgres, sqlite=sqlite)


def texts(row: db.Row) -> tuple[str, ...]:
    """Return what is hashed of a row that ``statement`` read."""
    id_, timestamp, *others = _hashed(row)
    return (id_, timestamp if str(timestamp).endswith("Z") else _as_moment(str(timestamp)), *others)


def _as_moment(text: str) -> str:
    """Return how SQLite's text of a time is hashed: equal moments alike, and what is none as it is."""
    if len(text) == AS_WRITTEN and text.endswith("+00:00"):
        return f"{text[:10]}T{text[11:26]}Z"
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment(found if found.tzinfo else found.replace(tzinfo=UTC))


def follow(before: Link, row: db.Row) -> Link:
    """Return the link that ``row`` makes after ``before``."""
    sequence = before.sequence + 1
    return Link(sequence, row_hash(before.hash, sequence, texts(row)))


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
