"""The process's one database: opened once, found by every table and statement, left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec
from piccolo.table import Table

from certctl_server.db import clock
from certctl_server.db.engines import LiteEngine, PgEngine
from certctl_server.db.sql import Dialect, Sql

log = logging.getLogger(__name__)
Row: TypeAlias = dict[str, Any]
CLOCK = Sql("SELECT {now} AS now")
FOLLOW_SECONDS = 5.0
_when_it_jumps: list[Callable[[], object]] = []
_engine: LiteEngine | PgEngine | None = None
_following: asyncio.Task[None] | None = None
_on_commit: ContextVar[list[Callable[[], object]] | None] = ContextVar("_on_commit", default=None)

_last_rows: ContextVar[dict[Sql, list[Row]] | None] = ContextVar("_last_rows", default=None)


async def connect(url: str, tables: Iterable[type[Table]], *, connections: int = 25) -> None:
    """Open the database at ``url`` and bind ``tables`` to it.

    ``url`` is ``sqlite:///path`` or ``postgres://...``.

    Raises:
        ValueError: another scheme.
    """
    global _engine, _following  # noqa: PLW0603  # Piccolo's tables are bound per process as well
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        _engine = LiteEngine(
            path=str(Path(unquote(parts.path)[1:] if parts.path.startswith("//") else unquote(parts.path)))
        )
    elif parts.scheme in {"postgres", "postgresql"}:
        _engine = PgEngine(url, connections)
    else:
        raise ValueError(f"a database is sqlite:///path or postgres://..., not {parts.scheme}://")
    await _engine.start()
    for table in tables:
        table._meta.db = _engine
    await follow_clock()
    _following = asyncio.create_task(_follow(), name="clock")


async def close() -> None:
    """Let go of the database; nothing if it was never opened."""
    global _engine, _following  # noqa: PLW0603
    if _following is not None:
        _following.cancel()
        _following = None
    _when_it_jumps.clear()
    clock.forget()
    if _engine is not None:
        await _engine.stop()
        _engine = None


def engine() -> LiteEngine | PgEngine:
    """Return the open engine; raise RuntimeError if there is none."""
    if _engine is None:
        raise RuntimeError("the database is closed")
    return _engine


def dialect() -> Dialect:
    """Return which dialect the open database speaks."""
    return "sqlite" if isinstance(engine(), LiteEngine) else "postgres"


async def present() -> datetime:
    """Return what the database's clock shows."""
    [row] = await fetch(CLOCK)
    return as_moment(row["now"])


async def follow_clock() -> None:
    """Set this process's time by the database's, if that has a clock of its own."""
    if dialect() == "postgres":
        clock.follow(await present())


def when_clock_jumps(call: Callable[[], object]) -> None:
    """Let ``call`` know, until the database is closed, when the clock was set to another time."""
    _when_it_jumps.append(call)


async def _follow() -> None:
    jumps = clock.Jumps()
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            await follow_clock()
        except Exception as exc:  # it counts on by itself meanwhile
            log.debug("the database's clock cannot be read", exc_info=exc)
        if abs(moved := jumps.since()) > clock.A_JUMP:
            log.warning("the clock was set", extra={"by_seconds": round(moved.total_seconds())})
            for call in _when_it_jumps:
                call()


async def fetch(sql: Sql, *args: Any) -> list[Row]:
    """Run ``sql`` and return its rows, inside the calling task's transaction if there is one."""
    current = engine()
    return await current.run(sql.text("sqlite" if isinstance(current, LiteEngine) else "postgres"), args)


@contextlib.asynccontextmanager
async def transaction() -> AsyncIterator[None]:
    """All or nothing. Inside another one it is part of that one; start no tasks inside.

    What ``after_commit`` was given meanwhile runs once the outermost one is committed.
    """
    if _on_commit.get() is not None:
        yield
        return
    waiting: list[Callable[[], object]] = []
    last_rows: dict[Sql, list[Row]] = {}
    tokens = _on_commit.set(waiting), _last_rows.set(last_rows)
    try:
        async with engine().transaction():
            yield
            for sql, rows in last_rows.items():
                await fetch(sql, msgspec.json.encode(rows).decode())
    finally:
        _on_commit.reset(tokens[0])
        _last_rows.reset(tokens[1])
    for call in waiting:
        call()


def in_transaction() -> bool:
    """Whether the calling task is inside a transaction."""
    return _on_commit.get() is not None


async def insert_last(sql: Sql, rows: Iterable[Row]) -> None:
    """Insert ``rows`` by a statement of ``insert_rows``, with all others for it at the end of the present transaction.

    At once if there is none.
    """
    last_rows = _last_rows.get()
    if last_rows is None:
        await fetch(sql, msgspec.json.encode(list(rows)).decode())
    else:
        last_rows.setdefault(sql, []).extend(rows)


def after_commit(call: Callable[[], object]) -> None:
    """Run ``call`` when the present transaction is committed, at once if there is none; never if it fails."""
    waiting = _on_commit.get()
    if waiting is None:
        call()
    else:
        waiting.append(call)


async def moment(sql: Sql, *args: Any) -> datetime | None:
    """Return the time in the first column of the only row that ``sql`` gives, None if it is NULL."""
    [row] = await fetch(sql, *args)
    value = next(iter(row.values()))
    return None if value is None else as_moment(value)


def as_moment(value: datetime | str) -> datetime:
    """Return a moment that came out of an expression: SQLite gives it as text, for it types columns only."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def text_of(moment: datetime) -> str:
    """Return a moment as SQLite stores it, and as rows that go in as JSON have it."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")
