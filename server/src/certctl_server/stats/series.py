"""How many there were, or will be, on each day: read from the range of an index that the days make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypedDict

from certctl_core.job import INTERNAL, JobState

from certctl_server import db

DAY = timedelta(days=1)
WEEK_DAYS = 7
NOT_SHOWN = ", ".join(f"'{each}'" for each in sorted(INTERNAL))


class Expiring(TypedDict):
    """How many certificates end in some days."""

    date: str
    count: int


class Ended(TypedDict):
    """How jobs ended in some days."""

    date: str
    completed_count: int
    failed_count: int
    success_rate: float


class Issued(TypedDict):
    """How many certificates were issued in some days."""

    date: str
    issued_count: int


def _by_day(column: str, table: str, *, what: str = "''", only: str = "") -> db.Sql:
    """Return the statement that counts rows between two moments by day and by ``what``."""
    days = {"postgres": f"({column} AT TIME ZONE 'UTC')::date", "sqlite": f"substr({column}, 1, 10)"}
    text = (
        f"SELECT {{0}} AS day, {what} AS what, count(*) AS n FROM {table}"  # noqa: S608  # ours
        f" WHERE {column} >= $1 AND {column} < $2 {only} GROUP BY 1, 2"
    )
    return db.Sql(postgres=text.replace("{0}", days["postgres"]), sqlite=text.replace("{0}", days["sqlite"]))


_ending = db.once(_by_day("expires_at", "certificate"))
_issued = db.once(_by_day("created_at", "certificate_version"))
_ended = db.once(
    _by_day(
        "completed_at",
        "job",
        what="status",
        only=f"AND status IN ('{JobState.COMPLETED}', '{JobState.FAILED}') AND type NOT IN ({NOT_SHOWN})",
    )
)


@dataclass(frozen=True, slots=True)
class Days:
    """Days in a row, one by one or in weeks."""

    first: date
    count: int
    weekly: bool = False
    short_first: bool = False
    """Where days are left over beside whole weeks: in front, else at the end."""

    def parts(self) -> Iterator[list[date]]:
        """Yield the days of each part in turn."""
        days = [self.first + number * DAY for number in range(self.count)]
        step = WEEK_DAYS if self.weekly else 1
        if (left_over := self.count % step) and self.short_first:
            yield days[:left_over]
            days = days[left_over:]
        for start in range(0, len(days), step):
            yield days[start : start + step]


def coming(count: int, *, weekly: bool = False) -> Days:
    """Return so many days from today on, UTC."""
    return Days(db.now().date(), count, weekly)


def past(count: int, *, weekly: bool = False) -> Days:
    """Return so many days that end with today, UTC."""
    return Days(db.now().date() - (count - 1) * DAY, count, weekly, short_first=True)


async def expirations(days: Days) -> list[Expiring]:
    """Return how many certificates end in each part of ``days``, by their newest version, whatever their status."""
    counted = await _counted(_ending, days)
    return [{"date": part[0].isoformat(), "count": sum(counted[day, ""] for day in part)} for part in days.parts()]


async def issued(days: Days) -> list[Issued]:
    """Return how many versions were stored in each part of ``days``."""
    counted = await _counted(_issued, days)
    return [
        {"date": part[0].isoformat(), "issued_count": sum(counted[day, ""] for day in part)} for part in days.parts()
    ]


async def ended(days: Days) -> list[Ended]:
    """Return how many jobs ended in each part of ``days``, and how many of a hundred ended well; 0 where none ended."""
    counted, found = await _counted(_ended, days), list[Ended]()
    for part in days.parts():
        good, bad = (sum(counted[day, state] for day in part) for state in (JobState.COMPLETED, JobState.FAILED))
        rate = round(100 * good / (good + bad), 2) if good else 0.0
        found.append({"date": part[0].isoformat(), "completed_count": good, "failed_count": bad, "success_rate": rate})
    return found


async def _counted(find: db.Once, days: Days) -> Counter[tuple[date, Any]]:
    start = datetime.combine(days.first, time(), UTC)
    rows = await find((start, start + days.count * DAY))
    return Counter({(_date(row["day"]), row["what"]): row["n"] for row in rows})


def _date(value: date | str) -> date:
    return date.fromisoformat(value) if isinstance(value, str) else value
