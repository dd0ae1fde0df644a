"""Maintenance windows: stretches of the week, by the clock on a wall somewhere, in which things may be changed.

Windows follow the wall clock over changes to and from daylight saving time: one begins at the first moment at
which the clock there shows its start or later, and ends at the first moment at which it shows its end or later.
A time that the clock skips is thus the moment of the skip, and one that it shows twice counts at its first time.
All moments that go in and come out are aware UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""The days of the week as the API spells them, in the order of ``date.weekday``."""
NEAR_EXPIRY = timedelta(hours=48)
"""What expires within this time is not made to wait for a window."""
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_AHEAD = 15
"""Days to look through: two weeks hold each day of the week twice, and no clock skips the same time of both."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of some days of the week; an end that is not after the start lies on the next day."""

    days: frozenset[int]
    """Those on which it starts, as ``date.weekday`` counts them."""
    start: time
    """By the clock on the wall in ``zone``, without a zone of its own."""
    end: time
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Start:
    """When something that windows hold back may start; free of windows if both moments are None."""

    opens_at: datetime | None = None
    """It may start from here on; in the past while a window is open."""
    closes_at: datetime | None = None
    """It may start until here. What has not is to be asked about again then."""
    overrides: bool = False
    """It is free only because an expiry is near; people are to be told."""


def windows_of(found: Iterable[Mapping[str, Any]]) -> tuple[Window, ...]:
    """Return windows that the API has as ``days``, ``start``, ``end`` and ``timezone``.

    Raises:
        ValueError: a day or a time is none.
        KeyError: a time zone is not known on this machine, or something is missing.
    """
    return tuple(
        Window(
            frozenset(DAYS.index(day) for day in each["days"]),
            time.fromisoformat(each["start"]),
            time.fromisoformat(each["end"]),
            ZoneInfo(each["timezone"]),
        )
        for each in found
    )


def start_at(windows: Collection[Window], now: datetime, *, expires_at: datetime | None) -> Start:
    """Return when something may start, asked at ``now``.

    Where the expiry is near before the next window begins, the answer is an empty stretch at that moment: asked
    again then, it overrides the windows.

    Args:
        windows: None of them holds nothing back.
        now: The present.
        expires_at: End of the certificate that is to be replaced, or that is to be brought where none is.
    """
    if not windows:
        return Start()
    near = None if expires_at is None else expires_at - NEAR_EXPIRY
    if near is not None and near <= now:
        return Start(overrides=True)
    opens_at, closes_at = stretch(windows, now)
    return Start(near, near) if near is not None and near < opens_at else Start(opens_at, closes_at)


def stretch(windows: Collection[Window], at: datetime) -> tuple[datetime, datetime]:
    """Return begin and end of the stretch that ``at`` lies in, else of the next one.

    Of several that are open it is the one that lasts longest.

    Raises:
        ValueError: there is no window.
    """
    found = [each for window in windows for each in _next(window, at)]
    is_open = [each for each in found if each[0] <= at]
    return max(is_open, key=lambda each: each[1]) if is_open else min(found)


def _next(window: Window, at: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield what is open at ``at`` and the first stretch that begins later."""
    # Zones differ by up to 26 hours, and a stretch that is open began up to a day before it ends.
    first = at.astimezone(window.zone).date() - 2 * _DAY
    for ahead in range(_AHEAD + 3):
        day = first + ahead * _DAY
        if day.weekday() not in window.days:
            continue
        begin, end = _on(window, day)
        if begin < end and end > at:
            yield begin, end
            if begin > at:
                return


def _on(window: Window, day: date) -> tuple[datetime, datetime]:
    last = day if window.end > window.start else day + _DAY
    return (
        _first_showing(datetime.combine(day, window.start), window.zone),
        _first_showing(datetime.combine(last, window.end), window.zone),
    )


def _first_showing(wall: datetime, zone: tzinfo) -> datetime:
    """Return the first moment at which the clock in ``zone`` shows ``wall``, or the skip that leaves it out."""
    # With fold 0 a time that comes twice is its first one, and a skipped one is reckoned by the offset before the skip.
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall:
        return moment
    before, after = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)
