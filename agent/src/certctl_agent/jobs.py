"""The jobs at hand: a few at a time, never two for one certificate or one target."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from weakref import WeakValueDictionary

from certctl_core.errors import TransientError

from certctl_agent.api import Refused
from certctl_agent.work import Item

log = logging.getLogger(__name__)

AT_ONCE = 4


class Jobs:
    """Runs ``do`` for each item, and each item once however often it is offered."""

    def __init__(self, do: Callable[[Item], Awaitable[None]]) -> None:
        self._do = do
        self._at_hand: dict[str, asyncio.Task[None]] = {}
        self._started: set[str] = set()
        self._again: dict[str, Item] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def take(self, items: Iterable[Item]) -> int:
        """Start what is new among ``items``; return how many that were.

        What is offered while it is being done is done once more: its end may have crossed with the offer.
        """
        fresh = 0
        for item in items:
            if item.id in self._started:
                self._again[item.id] = item
            elif item.id not in self._at_hand:
                self._start(item)
                fresh += 1
        return fresh

    def _start(self, item: Item) -> None:
        self._at_hand[item.id] = asyncio.create_task(self._run(item), name=item.id)

    async def room(self) -> None:
        """Return once another job could start at once: what waits here is better offered to a later poll."""
        while len(self._at_hand) >= AT_ONCE:
            await asyncio.wait(self._at_hand.values(), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)

    async def finish(self, patience: timedelta) -> None:
        """Drop what has not begun, let the rest finish; what lasts longer than ``patience`` is taken back."""
        self._again.clear()
        for job_id, task in self._at_hand.items():
            if job_id not in self._started:
                task.cancel()
        if left := list(self._at_hand.values()):
            log.info("waiting for jobs under way", extra={"jobs": sorted(self._started)})
            await asyncio.wait(left, timeout=patience.total_seconds())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _run(self, item: Item) -> None:
        try:
            # Always in this order, so that nobody waits for somebody who waits for him.
            async with (
                self._lock(f"certificate {item.certificate_id}"),
                self._lock(f"target {item.target_id or item.id}"),
                self._slots,
            ):
                self._started.add(item.id)
                await self._do(item)
        except (TransientError, Refused) as exc:
            log.warning("job left for a later poll", extra={"job": item.id, "said": str(exc)})
        except Exception:  # one job that breaks must not end the others
            log.exception("job broke", extra={"job": item.id})
        finally:
            self._started.discard(item.id)
            del self._at_hand[item.id]
            if again := self._again.pop(item.id, None):
                self._start(again)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name) or asyncio.Lock()
        self._locks[name] = lock
        return lock
