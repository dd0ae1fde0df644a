"""The sealed trail in its order: rows, and after each the checkpoint that signs it, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from operator import itemgetter

from certctl_core.audit import START, Link

from certctl_server import db
from certctl_server.audit import chain

PAGE = 1000
ROWS = chain.statement(
    """
    SELECT sequence, previous_hash, hash, {texts} FROM audit_event
    WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3
    """
)
CHECKPOINTS = db.Sql(
    """
    SELECT sequence, hash, signature FROM audit_checkpoint
    WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3
    """
)
# Numbers are given before a row is committed, places in the chain after: what waits may have any number.
WAITING = chain.statement(
    """
    SELECT number, {texts} FROM audit_event
    WHERE number > $1 AND number <= $2 AND (sequence IS NULL OR sequence > $3) ORDER BY number LIMIT $4
    """
)
EXTENT = db.Sql(
    """
    SELECT (SELECT max(sequence) FROM audit_event) AS sealed, (SELECT max(sequence) FROM audit_checkpoint) AS signed,
        (SELECT number FROM audit_event WHERE sequence IS NULL ORDER BY number LIMIT 1) AS waiting,
        (SELECT max(number) FROM audit_event) AS newest, (SELECT max(last_sequence) FROM audit_archive) AS archived
    """
)
_sequence = itemgetter("sequence")


@dataclass(frozen=True, slots=True)
class Extent:
    """What there was of the trail at one moment: what comes later is left to the next who asks."""

    after: int
    """The last row that was archived; 0 if none was."""
    upto: int
    """The last row that is sealed, or that a checkpoint names."""
    waiting: int = 1
    """The lowest number of a row that waits for its seal; more than ``newest`` if none does."""
    newest: int = 0
    """The highest number of a row."""


async def extent() -> Extent:
    """Return what there is now."""
    [row] = await db.fetch(EXTENT)
    newest = row["newest"] or 0
    waiting = newest + 1 if row["waiting"] is None else row["waiting"]
    return Extent(row["archived"] or 0, max(row["sealed"] or 0, row["signed"] or 0), waiting, newest)


async def pages(after: int, upto: int) -> AsyncIterator[list[db.Row]]:
    """Yield rows and checkpoints behind place ``after`` in their order; checkpoints have a ``signature``."""
    signed, coming = _paged(CHECKPOINTS, after, upto), list[db.Row]()
    async for rows in _paged(ROWS, after, upto):
        reached = rows[-1]["sequence"]
        while (not coming or coming[-1]["sequence"] <= reached) and (more := await anext(signed, None)):
            coming += more
        here = [row for row in coming if row["sequence"] <= reached]
        coming = coming[len(here) :]
        # Stable: a checkpoint stays behind the row that it signs.
        yield sorted([*rows, *here], key=_sequence) if here else rows
    if coming:
        yield coming
    async for rest in signed:
        yield rest


async def waiting(found: Extent, after: int) -> AsyncIterator[list[db.Row]]:
    """Yield the rows that waited for their seal when ``found`` was found, the end of the chain being ``after``."""
    number = found.waiting - 1
    while rows := await db.fetch(WAITING, number, found.newest, after, PAGE):
        yield rows
        number = rows[-1]["number"]


async def checkpoint(sequence: int) -> db.Row | None:
    """Return the checkpoint at a place; None if there is none."""
    rows = await db.fetch(CHECKPOINTS, sequence - 1, sequence, 1)
    return rows[0] if rows else None


async def _paged(sql: db.Sql, after: int, upto: int) -> AsyncIterator[list[db.Row]]:
    rows = await db.fetch(sql, after, upto, PAGE)
    while rows:
        # The database looks for the next page while this one is worked on.
        coming = asyncio.create_task(db.fetch(sql, rows[-1]["sequence"], upto, PAGE))
        try:
            yield rows
            rows = await coming
        finally:
            coming.cancel()


def link_of(row: db.Row | None) -> Link:
    """Return the link that a row or a checkpoint names."""
    return Link(row["sequence"], row["hash"]) if row else START
