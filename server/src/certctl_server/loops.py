"""The background loops: each runs on the leader, never beside itself, and leaves a beat that health shows.

A loop's work returns the next moment at which it has something to do, if it knows; it then runs at that moment,
and at the latest after its interval.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias, TypedDict

from certctl_server import db
from certctl_server.body import Time
from certctl_server.leader import TROUBLE, Leadership, NotLeading
from certctl_server.telemetry.metrics import LoopWatch

log = logging.getLogger(__name__)
Work: TypeAlias = Callable[[Leadership], Awaitable[datetime | None]]
SOONEST = timedelta(milliseconds=50)
PATIENCE = timedelta(seconds=5)
BEAT_EVERY = timedelta(seconds=20)
"""Fast loops write their beat this often, not at every turn."""
GRACE = timedelta(minutes=1)
"""A loop that missed two turns and this is late."""
BEAT = db.Sql(
    """
    INSERT INTO loop_beat (name, started_at, finished_at, last_error, late_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, finished_at = excluded.finished_at,
        last_error = excluded.last_error, late_at = excluded.late_at
    """
)
BEATS = db.Sql("SELECT name, finished_at, last_error FROM loop_beat ORDER BY name")


class Beat(TypedDict):
    """When a background loop last came to its end, and whether well."""

    name: str
    finished_at: Time | None
    ok: bool


async def beats() -> list[Beat]:
    """Return for each loop when it last came to its end, and whether well."""
    return [
        {"name": row["name"], "finished_at": row["finished_at"], "ok": not row["last_error"]}
        for row in await db.fetch(BEATS)
    ]


async def ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` until each has ended, also one that took a cancellation for something else."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=PATIENCE.total_seconds())


def _tell(event: str, error: Exception, **more: str) -> None:
    """Log what went wrong: trouble of the database in a line, anything else with its whereabouts."""
    if isinstance(error, TROUBLE):
        log.warning(event, extra={"error": f"{type(error).__name__}: {error}", **more})
    else:
        log.error(event, extra=more, exc_info=error)


@dataclass(frozen=True, slots=True)
class Loop:
    """One background loop."""

    name: str
    interval: timedelta
    work: Work
    at_start: bool = True
    looks: timedelta | None = None
    """How often it looks although nothing is known to be due: the word that something is may get lost."""


class Loops:
    """All loops of this process; they turn while it leads."""

    def __init__(self, leadership: Leadership, loops: Sequence[Loop], lease: timedelta) -> None:
        self._leadership = leadership
        self._loops = loops
        self._lease = lease
        self._pokes = {loop.name: asyncio.Event() for loop in loops}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to campaign, and to turn once elected."""
        db.when_clock_jumps(lambda: self.poke(*self._pokes))
        self._tasks = [asyncio.create_task(self._campaigning(), name="leadership")]
        self._tasks += [asyncio.create_task(self._turning(loop), name=f"loop {loop.name}") for loop in self._loops]

    def poke(self, *names: str) -> None:
        """Let loops look now, all if none is named: something may have become due sooner than they think."""
        for name in names or self._pokes:
            if name in self._pokes:
                self._pokes[name].set()

    async def stop(self) -> None:
        """End all loops where they may be ended, and resign."""
        await ended(self._tasks)
        with suppress(*TROUBLE):
            await self._leadership.resign()

    async def _campaigning(self) -> None:
        while True:
            led = self._leadership.epoch is not None
            try:
                async with asyncio.timeout(self._lease.total_seconds()):
                    leads = await self._leadership.campaign()
            except Exception as exc:  # noqa: BLE001  # it is told
                # Who stops to campaign never leads again: it goes on whatever happened.
                _tell("leadership cannot be kept", exc)
                leads = False
            if leads and not led:
                log.info("leading", extra={"owner": self._leadership.owner, "epoch": self._leadership.epoch})
                self.poke(*self._pokes)
            await asyncio.sleep(self._lease.total_seconds() / 3)

    async def _turning(self, loop: Loop) -> None:
        written: datetime | None = None
        poke, watch = self._pokes[loop.name], LoopWatch(loop.name)
        wait = SOONEST if loop.at_start else loop.interval
        while True:
            watch.expect(wait if self._leadership.epoch is not None else None)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait.total_seconds()):
                    await poke.wait()
            poke.clear()
            wait = loop.interval
            if self._leadership.epoch is None:
                continue
            started, error, due = db.now(), "", None
            try:
                due = await loop.work(self._leadership)
            except NotLeading:
                continue
            except Exception as exc:  # noqa: BLE001  # it is told
                # A loop that ends is a certificate that expires: it goes on whatever happened.
                _tell("loop failed", exc, loop=loop.name)
                error = f"{type(exc).__name__}: {exc}"
            watch.turned(db.now() - started, failed=bool(error))
            wait = self._wait(loop, due, failed=bool(error))
            if error or written is None or db.now() - written > BEAT_EVERY or loop.interval > BEAT_EVERY:
                written = db.now()
                await self._beat(loop, started, written, error)

    async def _beat(self, loop: Loop, started: datetime, finished: datetime, error: str) -> None:
        try:
            late_at = finished + 2 * max(loop.interval, BEAT_EVERY) + GRACE
            await db.fetch(BEAT, loop.name, started, finished, error, late_at)
        except Exception as exc:  # noqa: BLE001  # it is told
            _tell("beat of a loop not written", exc, loop=loop.name)

    def _wait(self, loop: Loop, due: datetime | None, *, failed: bool) -> timedelta:
        if failed:
            return min(loop.interval, timedelta(seconds=5))
        most = min(loop.interval, loop.looks or loop.interval)
        spread = most * (1 + random.uniform(-0.05, 0.05))  # so that replicas do not march in step
        return max(SOONEST, min(spread, due - db.now())) if due else spread
