"""The one SQLite connection that writes, lent in turn, and one sync of the disk for all whose turn is over.

A commit that survives power loss waits for the disk, a millisecond or more. Alone behind each other, a hundred
small transactions would wait a hundred times. So each piece of work is a savepoint of a transaction that is
committed as soon as everybody has had a turn who asked for one before; nobody is told "done" earlier.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator

from certctl_server.db.lite import Lite
from certctl_server.whole import whole


class Writer:
    """Lends ``connection`` to one borrower at a time, in the order they asked."""

    def __init__(self, connection: Lite) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        self._batch: asyncio.Future[None] | None = None
        """Done when what was released so far is on disk; None if nothing waits for that."""
        self._committing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def work(self) -> AsyncIterator[Lite]:
        """Lend the connection: what is done with it is on disk in the end, or undone if anything is raised.

        Raises:
            sqlite3.Error: it could not be written, and nothing of it was.
        """
        async with self._turn:
            try:
                await self._begin()
                yield self._connection
            except BaseException:
                await self._undo()
                raise
            self._keep()
            stored = self._batch
        if stored is not None:
            await whole(stored)

    async def close(self) -> None:
        """Write down what waits for it, then close the connection."""
        await asyncio.gather(*self._committing)
        await self._connection.close()

    async def _begin(self) -> None:
        if not self._connection.in_transaction:
            await self._connection.wait("BEGIN IMMEDIATE")
        self._connection.mark("SAVEPOINT piece")

    async def _undo(self) -> None:
        if not self._connection.in_transaction:
            # After some errors, a full disk among them, SQLite undoes the whole transaction by itself.
            self._settle(sqlite3.OperationalError("undone by SQLite together with a statement that failed"))
        elif self._batch is None:
            await self._connection.wait("ROLLBACK")
        else:
            self._connection.mark("ROLLBACK TO piece")
            self._connection.mark("RELEASE piece")

    def _keep(self) -> None:
        self._connection.mark("RELEASE piece")
        if self._batch is None:
            self._batch = asyncio.get_running_loop().create_future()
            # Its turn comes after all who wait for theirs by now.
            task = asyncio.create_task(self._commit(), name="commit")
            self._committing.add(task)
            task.add_done_callback(self._committing.discard)

    async def _commit(self) -> None:
        async with self._turn:
            if self._batch is None:
                return
            try:
                await self._connection.wait("COMMIT")
            except sqlite3.Error as exc:
                self._settle(exc)
                if self._connection.in_transaction:
                    await self._connection.wait("ROLLBACK")
            else:
                self._settle(None)

    def _settle(self, error: sqlite3.Error | None) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if error is None:
            batch.set_result(None)
        else:
            batch.set_exception(error)
            batch.exception()  # whoever waited may be gone
