"""Who runs the loops: one process at a time, by a lease with an epoch that every loop's transaction checks.

A lease is taken over only when the database's clock says that it is over and its beat stood still for as long on
our own clock, so that a clock that jumps takes nothing from the living.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Hashable
from datetime import timedelta

import asyncpg

from certctl_server import db

NAME = "leader"
TROUBLE = (
    *db.UNREACHABLE,
    sqlite3.OperationalError,
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
)
"""What a sound statement may come to while the database is away, full, busy or in a deadlock."""
# A lease that ends later than any may was given before a clock was set back: its beat alone says whether it is over.
OVER = "(lease_until <= {now} OR lease_until > {after:$2})"
ROW = db.Sql(f"SELECT owner, epoch, beat, {OVER} AS over FROM lease WHERE name = $1")  # noqa: S608  # ours
FIRST = db.Sql("INSERT INTO lease (name) VALUES ($1) ON CONFLICT DO NOTHING")
TAKE = db.Sql(
    f"""
    UPDATE lease SET owner = $3, epoch = epoch + 1, beat = 0, lease_until = {{after:$6}}
    WHERE name = $1 AND epoch = $4 AND beat = $5 AND (lease_until IS NULL OR {OVER}) RETURNING epoch
    """  # noqa: S608  # ours
)
BEAT = db.Sql(
    """
    UPDATE lease SET beat = beat + 1, lease_until = {after:$3} WHERE name = $1 AND owner = $2 AND epoch = $4
    RETURNING epoch
    """
)
RESIGN = db.Sql("UPDATE lease SET lease_until = NULL WHERE name = $1 AND owner = $2 AND epoch = $3")
STILL = db.Sql(
    postgres="SELECT epoch FROM lease WHERE name = $1 AND owner = $2 AND epoch = $3 FOR SHARE",
    sqlite="SELECT epoch FROM lease WHERE name = $1 AND owner = $2 AND epoch = $3",
)


class NotLeading(Exception):
    """Another process leads now: nothing was written."""


class Stillness:
    """How long things have stood still, on this process's own clock, ``monotonic``."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def of(self, name: str, state: Hashable) -> timedelta:
        """Return for how long ``name`` has been seen in ``state`` without a change."""
        now = self._monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != state:
            self._seen[name] = state, now
            return timedelta()
        return timedelta(seconds=now - known[1])

    def keep_only(self, names: set[str]) -> None:
        """Forget everything else."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}


class Leadership:
    """This process's part in the election. ``alone``: no other process can be alive, so nothing is waited for."""

    def __init__(self, owner: str, lease: timedelta, *, alone: bool) -> None:
        self.owner = owner
        self.epoch: int | None = None
        """The epoch in which this process leads; None while it does not."""
        self._lease = lease
        self._alone = alone
        self._stillness = Stillness()

    async def campaign(self) -> bool:
        """Lead if nobody does, stay leader if we are; return whether we lead. Call every third of the lease."""
        if self.epoch is not None:
            beaten = await db.fetch(BEAT, NAME, self.owner, self._lease.total_seconds(), self.epoch)
            self.epoch = beaten[0]["epoch"] if beaten else None
            return self.epoch is not None
        await db.fetch(FIRST, NAME)
        seconds = self._lease.total_seconds()
        [row] = await db.fetch(ROW, NAME, 2 * seconds)
        still = self._stillness.of(NAME, (row["epoch"], row["beat"]))
        held = row["over"] is not None
        if held and not self._alone and not (row["over"] and still >= self._lease):
            return False
        if held and self._alone:
            await db.fetch(RESIGN, NAME, row["owner"], row["epoch"])
        taken = await db.fetch(TAKE, NAME, 2 * seconds, self.owner, row["epoch"], row["beat"], seconds)
        self.epoch = taken[0]["epoch"] if taken else None
        return self.epoch is not None

    async def resign(self) -> None:
        """Let the next one lead at once."""
        if self.epoch is not None:
            await db.fetch(RESIGN, NAME, self.owner, self.epoch)
            self.epoch = None

    @contextlib.asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """A transaction that only a leader can commit.

        Raises:
            NotLeading: this process does not lead, or not any more.
        """
        async with db.transaction():
            if self.epoch is None or not await db.fetch(STILL, NAME, self.owner, self.epoch):
                raise NotLeading(f"{self.owner} does not lead")
            yield
