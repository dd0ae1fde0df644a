"""The trail as a file: for reading as csv or json, and as ndjson to be verified without the server."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from operator import itemgetter

import msgspec
from certctl_core.audit import Trailer, key_text, moment, sign
from certctl_core.errors import TransientError
from certctl_sdk.audit_file import Line, encode
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certctl_server import db
from certctl_server.audit import chain, entries
from certctl_server.audit.entries import Extent, checkpoint, link_of
from certctl_server.audit.witness import Witness
from certctl_server.lists import Row, Show

CELLS = (
    *("timestamp", "actor", "actor_type", "action", "resource_type", "resource_id", "details", "id", "request_id"),
    *("previous_hash", "hash"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
Pages = AsyncIterator[list[Row]]


async def verifiable(key: Ed25519PrivateKey, found: Extent, seen: Witness | None = None) -> AsyncIterator[bytes]:
    """Yield the whole trail as ``certctl audit verify`` takes it; what is in memory at once is a page.

    ``seen`` is what was known of its end before ``found`` was found: one more checkpoint, outside the database.

    Raises:
        TransientError: rows left for an archive meanwhile, so that some may be missing; nothing vouches for the rest.
    """
    public, digest = key_text(key.public_key()), hashlib.sha256()
    before = await checkpoint(found.after) if found.after else None
    head, first, unsealed = link_of(before), 0, 0
    if before:
        part = encode(_signed(before, public))
        digest.update(part)
        yield part
    async for page in _witnessed(found, seen):
        rows = [row for row in page if "signature" not in row]
        first, head = (first or rows[0]["sequence"], link_of(rows[-1])) if rows else (first, head)
        part = b"".join(encode(_signed(row, public) if "signature" in row else _row(row)) for row in page)
        digest.update(part)
        yield part
    async for rows in entries.waiting(found, head.sequence):
        unsealed += len(rows)
        part = b"".join(encode(_row(row)) for row in rows)
        digest.update(part)
        yield part
    if (await entries.extent()).after != found.after:
        raise TransientError("rows were archived meanwhile: export once more")
    trailer = Trailer(
        first or head.sequence + 1, head.sequence, head.hash, unsealed, moment(db.now()), digest.hexdigest()
    )
    yield encode(Line(trailer=trailer, key=public, signature=sign(key, trailer)))


async def _witnessed(found: Extent, seen: Witness | None) -> Pages:
    """Yield the pages of ``found``, with ``seen`` in its place, which is behind all rows if it saw more of them."""
    last = found.after
    async for page in entries.pages(found.after, found.upto):
        reached = page[-1]["sequence"]
        if seen and last < seen.link.sequence <= reached and seen.link.sequence not in _places(page):
            yield sorted([*page, _checkpoint(seen)], key=itemgetter("sequence"))
        else:
            yield page
        last = reached
    if seen and last < seen.link.sequence:
        yield [_checkpoint(seen)]


def _places(page: Sequence[db.Row]) -> set[int]:
    """Return the places of the checkpoints of a page."""
    return {row["sequence"] for row in page if "signature" in row}


def _checkpoint(seen: Witness) -> db.Row:
    return {"sequence": seen.link.sequence, "hash": seen.link.hash, "signature": seen.signature}


def _signed(row: db.Row, public: str) -> Line:
    return Line(checkpoint=link_of(row), key=public, signature=row["signature"])


def _row(row: db.Row) -> Line:
    id_, timestamp, actor, actor_type, action, resource_type, resource_id, details, request_id = chain.texts(row)
    return Line(
        sequence=row.get("sequence") or 0,
        previous_hash=row.get("previous_hash") or "",
        hash=row.get("hash") or "",
        id=id_,
        timestamp=timestamp,
        actor=actor,
        actor_type=actor_type,
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        request_id=request_id,
        details_text=details,
        details=_readable(details),
    )


def _readable(details: str) -> msgspec.Raw:
    """Return stored details as they go into a line; null for what somebody made unreadable behind the server's back."""
    try:
        msgspec.json.decode(details, type=msgspec.Raw)
    except msgspec.DecodeError:
        return msgspec.Raw(b"null")
    return msgspec.Raw(b"null" if "\n" in details or "\r" in details else details.encode())


async def _ndjson(pages: Pages, show: Show) -> AsyncIterator[bytes]:
    async for rows in pages:
        yield b"".join(msgspec.json.encode(show(row)) + b"\n" for row in rows)


async def _json(pages: Pages, show: Show) -> AsyncIterator[bytes]:
    before = b"["
    async for rows in pages:
        yield before + b",\n".join(msgspec.json.encode(show(row)) for row in rows)
        before = b",\n"
    yield b"[]\n" if before == b"[" else b"]\n"


async def _csv(pages: Pages, _: Show) -> AsyncIterator[bytes]:
    yield _lines([CELLS])
    async for rows in pages:
        yield _lines([[_cell(row[name]) for name in CELLS] for row in rows])


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    """Return a value as a cell that a spreadsheet shows and does not compute."""
    text = "" if value is None else moment(value) if isinstance(value, datetime) else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


FORMS: dict[str, tuple[Callable[[Pages, Show], AsyncIterator[bytes]], str]] = {
    "ndjson": (_ndjson, "application/x-ndjson"),
    "json": (_json, "application/json"),
    "csv": (_csv, "text/csv"),
}
"""By name: what makes a file of pages, and its content type."""
