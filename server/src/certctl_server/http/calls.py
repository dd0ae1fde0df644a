"""One audit row per API call, written a moment after the answer and many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import asyncpg

from certctl_server import db
from certctl_server.audit.record import Event, record
from certctl_server.db.engines import UNREACHABLE

log = logging.getLogger(__name__)
EVERY_SECONDS = 0.5
FULL = 500
MOST_WAITING = 20_000
#: So much less may anonymous calls take up, that they never push out those with a key.
MOST_STRANGERS = 5_000
MOST_ADDRESSES = 1_000
#: CRL and OCSP, old and standard, and liveness: read by machines all day long, and open.
UNRECORDED = re.compile(r"/(health|ready)\Z|/api/v1/(health\Z|crl(/|\Z)|ocsp/)|/\.well-known/pki/")
POLLS = re.compile(r"/api/v1/agents/([^/]+)/(heartbeat|work)\Z")


class CallLog:
    """Collects what was called; ``running`` writes it down until the server stops, before the database is closed.

    So long, ``patience``, a server that stops waits for a database that takes no rows.
    """

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience
        self._waiting: list[Event] = []
        self._counted: dict[str, Event] = {}
        self._minute = ""
        self._polled: dict[tuple[str, str, str], None] = {}
        self._ring = asyncio.Event()

    def add(self, event: Event, *, idle: bool = False) -> None:
        """Take a call. Of ``idle`` polls the first in an hour is kept."""
        if idle and self._is_repeated(event):
            return
        if len(self._waiting) >= MOST_WAITING:
            log.error("call not recorded: the database does not take audit rows", extra={"path": event.resource_id})
            return
        self._waiting.append(event)
        if len(self._waiting) >= FULL:
            self._ring.set()

    def add_stranger(self, event: Event) -> None:
        """Take a call without a key; one too many at a time is counted only."""
        if len(self._waiting) < MOST_STRANGERS:
            self.add(event)
        else:
            self.count(event)

    def count(self, event: Event) -> None:
        """Count a call that led nowhere: one row an address and minute, which says how its first call was.

        Addresses beyond 1,000 a minute share one row, whose ``remote_addr`` is empty.
        """
        self._close_minute()
        address = str(event.details["remote_addr"])
        if address not in self._counted and len(self._counted) >= MOST_ADDRESSES:
            address = ""
        first = self._counted.get(address)
        if first is None:
            told = {name: event.details[name] for name in ("method", "path", "status")}
            told |= {"remote_addr": address, "minute": self._minute, "calls": 0}
            first = Event(replace(event.actor, request_id=""), "api_refused", "api", event.resource_id, told)
        self._counted[address] = replace(first, details={**first.details, "calls": first.details["calls"] + 1})

    def _close_minute(self, *, early: bool = False) -> None:
        """Hand the counts of a minute that is over on; while the database takes nothing, they grow on instead."""
        minute = db.now().isoformat()[:16]
        if minute == self._minute and not early:
            return
        self._minute = minute
        if len(self._waiting) < MOST_STRANGERS:
            self._waiting += self._counted.values()
            self._counted = {}

    def _is_repeated(self, event: Event) -> bool:
        hour = db.now().isoformat()[:13]
        key = (event.actor.name, event.resource_id, hour)
        if key in self._polled:
            return True
        if self._polled and next(iter(self._polled))[2] != hour:
            self._polled.clear()
        self._polled[key] = None
        return False

    async def flush(self, *, last: bool = False) -> None:
        """Write what waits; what the database did not take waits on. ``last`` does not wait for the minute's end."""
        self._close_minute(early=last)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), FULL):
            try:
                await record(waiting[start : start + FULL])
            except (*UNREACHABLE, asyncpg.PostgresError, sqlite3.Error) as exc:
                log.warning(
                    "call rows wait: the database took none", extra={"rows": len(waiting) - start}, exc_info=exc
                )
                self._waiting = waiting[start:] + self._waiting
                return

    @contextlib.asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """Write every half second; at the end, what is left."""
        task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._finish()

    async def _finish(self) -> None:
        left = len(self._waiting)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.total_seconds()):
                await self.flush(last=True)
                while self._waiting or self._counted:
                    await asyncio.sleep(EVERY_SECONDS)
                    await self.flush(last=True)
                return
        log.error("calls not recorded: the database took no audit rows to the end", extra={"rows": left})

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ring.wait(), EVERY_SECONDS)
            self._ring.clear()
            # Shielded: half a write that is cancelled would be written again at the end.
            await asyncio.shield(self.flush())
