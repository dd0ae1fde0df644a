"""One SQLite connection whose short statements run on the event loop, and the others in a thread.

A statement that finds its rows by an index takes some tens of microseconds; handing it to a thread and getting the
answer back costs several times that, and waits for the interpreter lock twice. So each statement runs where its
last run says: on the loop while that took less than ``SHORT_SECONDS``, in a thread of the connection's own if it took
longer, was never seen before, or carries so much that it may be about many rows. What waits for the disk or for a
lock is always sent to the thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from certctl_server.whole import whole

T = TypeVar("T")
SHORT_SECONDS = 0.002
LONG_ARGUMENT = 16_384
"""Characters; a certificate chain is short, a list of hundreds of ids is not."""
KEPT = 512
"""Statements that stay prepared, and whose cost is remembered."""


class Costs:
    """What the last run of each statement cost, in seconds of processor time; shared by a file's connections."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def short(self, text: str, args: Sequence[Any]) -> bool:
        """Whether the event loop may wait for this statement."""
        if self._seconds.get(text, SHORT_SECONDS) >= SHORT_SECONDS:
            return False
        return not any(isinstance(arg, str) and len(arg) > LONG_ARGUMENT for arg in args)

    def note(self, text: str, seconds: float) -> None:
        """Remember what a run of ``text`` cost."""
        if len(self._seconds) >= KEPT and text not in self._seconds:
            self._seconds.clear()  # whoever asks again is measured again
        self._seconds[text] = seconds


class Lite:
    """A connection for one borrower at a time; whoever borrows it sees to that."""

    def __init__(self, connection: sqlite3.Connection, costs: Costs, thread: ThreadPoolExecutor) -> None:
        self.raw = connection
        self._costs = costs
        self._thread = thread
        self._closed = False

    @classmethod
    async def open(cls, costs: Costs, **options: Any) -> Lite:
        """Open a connection; ``options`` are those of ``sqlite3.connect``."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        connection = thread.submit(lambda: sqlite3.connect(**options, check_same_thread=False, cached_statements=KEPT))
        try:
            return cls(await whole(asyncio.wrap_future(connection)), costs, thread)
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and not connection.exception():
                connection.result().close()
            thread.shutdown(wait=False)
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether something is written that is not committed."""
        return self.raw.in_transaction

    async def fetch(self, text: str, args: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run one statement and return its rows.

        Raises:
            sqlite3.Error: as SQLite says.
        """
        self._check_open()
        if self._costs.short(text, args):
            return self._run(text, args)
        return await self._away(lambda: self._run(text, args))

    async def wait(self, text: str) -> None:
        """Run a statement without rows that may wait for the disk or for a lock."""
        self._check_open()
        await self._away(lambda: self.raw.execute(text))

    def mark(self, text: str) -> None:
        """Run a statement without rows that waits for nothing, such as SAVEPOINT."""
        self._check_open()
        self.raw.execute(text)

    async def close(self) -> None:
        """Close the connection, after what runs on it; what comes later is refused."""
        # Before the thread begins: a statement on the loop beside a close in the thread would crash the process.
        self._closed = True
        await self._away(self.raw.close)
        self._thread.shutdown(wait=False)

    def _check_open(self) -> None:
        if self._closed:
            raise sqlite3.ProgrammingError("the database is closed")

    def _run(self, text: str, args: Sequence[Any]) -> list[dict[str, Any]]:
        began = time.thread_time()
        cursor = self.raw.execute(text, args)
        if cursor.description is None:
            rows = []
        else:
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        self._costs.note(text, time.thread_time() - began)
        return rows

    async def _away(self, work: Callable[[], T]) -> T:
        # Not even a cancelled caller leaves while the thread is still at it: the next one would meet it there.
        return await whole(asyncio.get_running_loop().run_in_executor(self._thread, work))
