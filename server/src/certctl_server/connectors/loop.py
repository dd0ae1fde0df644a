"""The one event loop that all connectors of a process share, in a thread of its own.

A connector that blocks stops other connectors and nothing else: neither HTTP nor a lease beat runs here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from certctl_core.errors import ConnectorError
from certctl_core.run import LeaseLost

from certctl_server.telemetry.metrics import BlockWatch

log = logging.getLogger(__name__)
T = TypeVar("T")
LATE = 1.0
"""Seconds without a turn after which the loop counts as blocked."""
PATIENCE = 2.0
"""Seconds that calls have to end once they are cancelled."""


class ConnectorBug(Exception):
    """A connector raised what it may not; ``error`` is that."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


class _Ours(Exception):
    """An error of our own side on its way through a connector."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


async def _late(results: list[T], ended: asyncio.Event) -> T:
    """What a call that was cancelled has come to; what a CA has just signed must not be lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
    if not results:
        raise asyncio.CancelledError
    if task := asyncio.current_task():
        task.uncancel()
        task.cancel()
    return results[0]


class ConnectorLoop:
    """Runs connector calls for the main loop; ``start`` and ``stop`` once."""

    def __init__(self) -> None:
        self.main = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="connectors", daemon=True)
        self._ended = asyncio.Event()
        self._turned = time.monotonic()
        self._watch: asyncio.Task[None] | None = None
        self.blocked: str | None = None
        """Who blocks the loop right now, as a line of code; None while it turns."""

    def start(self) -> None:
        """Begin to run calls."""
        self._thread.start()
        self._loop.call_soon_threadsafe(self._turn)
        self._watch = asyncio.create_task(self._watching(), name="connector watchdog")

    async def stop(self) -> None:
        """Cancel what still runs; a call that blocks is left behind with its daemon thread."""
        if self._watch:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        self._loop.call_soon_threadsafe(self._end)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._ended.wait()
        with suppress(RuntimeError):  # it is closed by now
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what ``work`` comes to over there; cancelling the caller cancels it.

        If it came to something nevertheless, that is returned, and the caller is cancelled where it waits next.

        Raises:
            ConnectorError: as the connector raised it, like LeaseLost and TimeoutError.
            ConnectorBug: it raised anything else.
        """
        results: list[T] = []
        ended = asyncio.Event()

        async def there() -> T:
            try:
                results.append(await work())
            finally:
                with suppress(RuntimeError):  # the main loop is closed: nobody waits
                    self.main.call_soon_threadsafe(ended.set)
            return results[0]

        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))
        except asyncio.CancelledError:
            return await _late(results, ended)
        except _Ours as exc:
            raise exc.error from exc
        except (ConnectorError, LeaseLost, TimeoutError):
            raise
        except Exception as exc:
            raise ConnectorBug(exc) from exc

    async def back(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what ``work`` comes to on the main loop, where the database is; called from over there."""

        async def there() -> T:
            try:
                return await work()
            except (ConnectorError, LeaseLost):
                raise
            except Exception as exc:
                raise _Ours(exc) from exc

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self.main))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()
        with suppress(RuntimeError):  # nobody waits if the main loop is closed as well
            self.main.call_soon_threadsafe(self._ended.set)

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._loop.call_later(LATE / 4, self._turn)

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda _: self._loop.stop())

    async def _watching(self) -> None:
        watch = BlockWatch()
        while True:
            await asyncio.sleep(LATE / 2)
            late = time.monotonic() - self._turned
            if late < LATE:
                self.blocked = None
                watch.turns()
                continue
            watch.late(late)
            if self.blocked is None:
                self.blocked = self._whereabouts()
                log.warning("a connector blocks all others", extra={"at": self.blocked, "seconds": round(late, 1)})

    def _whereabouts(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  # the only way to name who blocks
        stack = traceback.extract_stack(frame) if frame else []
        ours = [each for each in stack if "/asyncio/" not in each.filename and "threading.py" not in each.filename]
        connector = [each for each in ours if "certctl_server" not in each.filename]
        where = (connector or ours or stack)[-1:] if stack else []
        return "".join(f"{each.filename}:{each.lineno} in {each.name}" for each in where) or "?"
