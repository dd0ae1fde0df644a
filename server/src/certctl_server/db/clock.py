"""The time as the database has it, so that all processes of an installation live by one clock.

What one process writes as due another one compares with the database's clock. A machine whose own clock is two hours
ahead would put everything it touches off by two hours. So each process asks the database every few seconds and counts
on from there by a clock that nobody sets.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

A_JUMP = timedelta(seconds=10)
"""More than clocks are corrected by while they run."""
_anchor: tuple[datetime, float] | None = None


def now() -> datetime:
    """Return the present, aware UTC: by the database's clock if it has one of its own, else by this machine's."""
    if _anchor is None:
        return datetime.now(UTC)
    at, counted = _anchor
    return at + timedelta(seconds=time.monotonic() - counted)


def follow(at: datetime) -> None:
    """Take ``at`` for what the database's clock shows, as it did a moment ago.

    So ours is never ahead: what is due now by ours is due by the database's as well.
    """
    global _anchor  # noqa: PLW0603  # one database per process
    _anchor = at, time.monotonic()


def forget() -> None:
    """Live by this machine's clock."""
    global _anchor  # noqa: PLW0603
    _anchor = None


class Jumps:
    """Notices that the present is not where counting led to: a clock was set, or the machine slept."""

    def __init__(self) -> None:
        self._seen = now(), time.monotonic()

    def since(self) -> timedelta:
        """Return by how much the clock was moved since this was asked last, on top of the time that went by."""
        at, counted = now(), time.monotonic()
        before, self._seen = self._seen, (at, counted)
        return at - before[0] - timedelta(seconds=counted - before[1])
