"""An audit trail of any length, sealed as the sealer would have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from certctl_core.audit import CHECKPOINT_ROWS, COLUMNS, Link, moment, row_hash, sign
from certctl_server import db
from certctl_server.audit import chain, entries
from certctl_server.audit.export import verifiable
from certctl_server.audit.record import Actor, Event, record
from certctl_server.audit.sealer import head
from certctl_server.sealing import Cipher

AT_ONCE = 5000
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
CALL = {
    "method": "GET",
    "body_hash": "",
    "status": 200,
    "latency_ms": 1.234,
    "remote_addr": "192.0.2.17",
}
INSERT = db.insert_rows(
    "audit_event",
    {
        **dict.fromkeys(COLUMNS, "text"),
        "timestamp": "timestamptz",
        "sequence": "bigint",
        **dict.fromkeys(("previous_hash", "hash"), "text"),
    },
)
CHECKPOINTS = db.insert_rows(
    "audit_checkpoint", {"sequence": "bigint", "hash": "text", "signature": "text", "created_at": "timestamptz"}
)
#: What keeps rows from coming sealed.
NEW = db.Sql("SELECT sql FROM sqlite_master WHERE name = 'audit_event_new'")


def _texts(number: int) -> tuple[str, ...]:
    path = f"/api/v1/certificates/mc-plenty-{number}"
    details = json.dumps({**CALL, "path": path}, separators=(",", ":"))
    at = moment(BEGINNING + timedelta(milliseconds=number))
    called = ("api", path, details, f"{number:08x}-0000-4000-8000-000000000000")
    return (f"audit-{number:024}", at, f"person-{number % 20}", "User", "api_get", *called)


async def fill(cipher: Cipher, rows: int) -> None:
    """Put so many sealed rows and their checkpoints into the open database."""
    key, at = await chain.signing_key(cipher), await head()
    made = 0
    guard = await _off()
    while made < rows:
        count = min(AT_ONCE, rows - made)
        links = list(_links(at, count))
        await db.fetch(INSERT, json.dumps([row for _, row in links]))
        signed = [link for link, _ in links if link.sequence % CHECKPOINT_ROWS == 0]
        checkpoints = [
            {"sequence": link.sequence, "hash": link.hash, "signature": sign(key, link), "created_at": str(BEGINNING)}
            for link in signed
        ]
        await db.fetch(CHECKPOINTS, json.dumps(checkpoints))
        made, at = made + count, links[-1][0]
    await db.fetch(guard)


def _links(at: Link, count: int) -> Iterator[tuple[Link, dict[str, object]]]:
    for number in range(at.sequence + 1, at.sequence + count + 1):
        texts = _texts(number)
        link = Link(number, row_hash(at.hash, number, texts))
        stored = str(datetime.fromisoformat(texts[1]).isoformat(sep=" ", timespec="microseconds"))
        row = {**dict(zip(COLUMNS, texts, strict=True)), "timestamp": stored}
        yield link, {**row, "sequence": number, "previous_hash": at.hash, "hash": link.hash}
        at = link


async def _off() -> db.Sql:
    """Let rows come sealed; return what ends that."""
    if db.dialect() == "postgres":
        await db.fetch(db.Sql("ALTER TABLE audit_event DISABLE TRIGGER USER"))
        return db.Sql("ALTER TABLE audit_event ENABLE TRIGGER USER")
    [row] = await db.fetch(NEW)
    await db.fetch(db.Sql("DROP TRIGGER audit_event_new"))
    return db.Sql(row["sql"])


async def write_waiting(count: int) -> None:
    """Put so many rows into the open database that wait for their seal."""
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        await record(
            Event(Actor("ada"), "api_get", "api", f"/api/v1/jobs/{n}", {**CALL, "path": "/x"}) for n in numbers
        )


async def exported(cipher: Cipher) -> bytes:
    """Return an export of the open database."""
    parts = verifiable(await chain.signing_key(cipher), await entries.extent())
    return b"".join([part async for part in parts])
