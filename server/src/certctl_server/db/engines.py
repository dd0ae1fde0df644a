"""Piccolo's engines, mended: connections that are kept, transactions that always give theirs back.

Piccolo opens a SQLite connection for every query and lets a transaction begin as a reader, so that a second
writer fails at once; its PostgreSQL transaction keeps the connection when COMMIT fails. Both are replaced here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg
from piccolo.engine.postgres import PostgresEngine, PostgresTransaction
from piccolo.engine.sqlite import SQLiteEngine, SQLiteTransaction, TransactionType

from certctl_server.db.lite import Costs, Lite
from certctl_server.db.writer import Writer
from certctl_server.whole import whole

READERS = 3
LONGEST_STATEMENT = 300.0
"""Seconds; a database whose machine is gone says nothing for ever."""
LONGEST_SILENCE = "10s"
"""Within a transaction: what a process locked that stands still, others need."""
# FULL: a committed intent to sign must survive a power cut, not only a crash.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=1", "busy_timeout=5000", "cache_size=-16000")


class LiteTransaction(SQLiteTransaction):
    """A piece of the one writing connection's work, from its turn until it is on disk or undone."""

    engine: LiteEngine
    connection: Lite

    async def __aenter__(self) -> Self:
        if self._parent is not None:
            return self._parent  # type: ignore[return-value]
        self._lent = self.engine.writer.work()
        self.connection = await self._lent.__aenter__()
        self.context = self.engine.current_transaction.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._parent is not None:
            return exception is None
        self.engine.current_transaction.reset(self.context)
        return bool(await self._lent.__aexit__(kind, exception, trace))


class LiteEngine(SQLiteEngine):
    """One writer in front of a fair queue, and a few readers, for as long as the process lives."""

    def __init__(self, path: str) -> None:
        super().__init__(path=path)
        self._costs = Costs()
        self._writer: Writer | None = None
        self._reader: Lite | None = None
        """For reads that are over at once; it is never lent."""
        self._readers: asyncio.LifoQueue[Lite] = asyncio.LifoQueue()
        self._all: list[Lite] = []

    async def start(self) -> None:
        """Open the file, making it if it is not there."""
        self._writer = Writer(await self._open())
        for _ in range(READERS + 1):
            reader = await self._open()
            self._all.append(reader)
            await reader.wait("PRAGMA query_only=1")
        self._reader = self._all[0]
        for reader in self._all[1:]:
            self._readers.put_nowait(reader)

    async def stop(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        for connection in self._all:
            await connection.close()
        self._all.clear()
        if self._writer:
            await self._writer.close()
            self._writer = None

    async def _open(self) -> Lite:
        connection = await Lite.open(self._costs, **self.connection_kwargs)
        try:
            for pragma in PRAGMAS:
                await connection.wait(f"PRAGMA {pragma}")
        except BaseException:
            await connection.close()  # else its thread would keep the process alive
            raise
        return connection

    @property
    def writer(self) -> Writer:
        """Who lends the connection that writes."""
        if self._writer is None:
            raise RuntimeError("the database is closed")
        return self._writer

    async def run(self, text: str, args: Sequence[Any]) -> list[dict[str, Any]]:
        """Run one statement, inside the transaction of the calling task if it has one."""
        if current := self.current_transaction.get():
            inside: Lite = current.connection
            return await inside.fetch(text, args)
        if text.lstrip()[:6].upper() == "SELECT":
            if self._reader is not None and self._costs.short(text, args):
                return await self._reader.fetch(text, args)
            reader = await self._readers.get()
            try:
                return await reader.fetch(text, args)
            finally:
                self._readers.put_nowait(reader)
        async with self.writer.work() as connection:
            return await connection.fetch(text, args)

    async def _run_in_new_connection(
        self, query: str, args: list[Any] | None = None, query_type: str = "generic", table: Any = None
    ) -> list[dict[str, Any]]:
        return await self.run(query, args or [])

    async def _run_in_existing_connection(self, connection: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
        return await self._run_in_new_connection(*args, **options)

    def transaction(
        self,
        transaction_type: TransactionType = TransactionType.immediate,
        allow_nested: bool = True,  # noqa: FBT001, FBT002  # as Piccolo has it
    ) -> LiteTransaction:
        """Begin as a writer: a transaction that starts as a reader cannot become one when another has written."""
        return LiteTransaction(engine=self, transaction_type=transaction_type, allow_nested=allow_nested)


class PgTransaction(PostgresTransaction):
    """Gives its connection back and clears the context, also when COMMIT fails or the task is cancelled."""

    engine: PgEngine

    async def __aenter__(self) -> Self:
        if self._parent is not None:
            return self._parent  # type: ignore[return-value]
        self.connection = await self.get_connection()  # type: ignore[no-untyped-call]
        self.transaction = self.connection.transaction()
        try:
            await self.begin()  # type: ignore[no-untyped-call]
        except BaseException:
            await whole(self.engine.give_back(self.connection))
            raise
        self.context = self.engine.current_transaction.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._parent is not None:
            return exception is None
        self.engine.current_transaction.reset(self.context)
        try:
            if exception is None and not self._committed and not self._rolled_back:
                await whole(self.commit())  # type: ignore[no-untyped-call]
            elif exception is not None and not self._rolled_back:
                await whole(self.rollback())  # type: ignore[no-untyped-call]
        finally:
            await whole(self.engine.give_back(self.connection))
        return False


async def _as_it_is(_: Any) -> None:
    """Spare the round trip that resets a returned connection: we set no state outside transactions."""


class PgEngine(PostgresEngine):
    """A pool of connections that all speak UTC."""

    def __init__(self, url: str, connections: int) -> None:
        self._connections = connections
        super().__init__(config={"dsn": url})

    async def check_version(self) -> None:
        """Spare Piccolo's own connection at construction; ``start`` says what is wrong, if anything is."""

    async def prep_database(self) -> None:
        """Nothing: we use no extensions."""

    async def start(self) -> None:
        """Open the pool."""
        await self.start_connection_pool(
            min_size=1,
            max_size=self._connections,
            reset=_as_it_is,
            command_timeout=LONGEST_STATEMENT,
            server_settings={
                "timezone": "UTC",
                "application_name": "certctl",
                "idle_in_transaction_session_timeout": LONGEST_SILENCE,
            },
        )

    async def stop(self) -> None:
        """Close the pool, waiting for those who still use it."""
        if self.pool:
            await self.close_connection_pool()

    async def give_back(self, connection: Any) -> None:
        """Return a borrowed connection."""
        if self.pool:
            await self.pool.release(connection)
        else:
            await connection.close()

    async def run(self, text: str, args: Sequence[Any]) -> list[dict[str, Any]]:
        """Run one statement, inside the transaction of the calling task if it has one."""
        if current := self.current_transaction.get():
            return [dict(row) for row in await current.connection.fetch(text, *args)]
        if self.pool is None:
            raise RuntimeError("the database is closed")
        async with self.pool.acquire() as connection:
            return [dict(row) for row in await connection.fetch(text, *args)]

    def transaction(self, allow_nested: bool = True) -> PgTransaction:  # noqa: FBT001, FBT002  # as Piccolo has it
        """Begin at PostgreSQL's default isolation, read committed."""
        return PgTransaction(engine=self, allow_nested=allow_nested)


UNREACHABLE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
)
"""What a database makes a statement raise that is not there, or gave up on us."""
