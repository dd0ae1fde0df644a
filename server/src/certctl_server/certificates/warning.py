"""Which lives of a certificate people are warned of, and what they were told already; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from certctl_core.renewal import alert_at

from certctl_server import db

TYPICAL_LIFE = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Life:
    """A version that is in use, or a certificate that was made elsewhere."""

    key: str
    """The version's id; of one that was made elsewhere its end."""
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Alert:
    """That a life comes to its end, at a threshold of the renewal policy."""

    life: Life
    threshold_days: int
    at: datetime


def born(row: db.Row) -> datetime | None:
    """Return when the certificate's life began; of one that was made elsewhere perhaps only its end is known."""
    known: datetime | None = row["not_before"]
    return known if known is not None or row["expires_at"] is None else row["expires_at"] - TYPICAL_LIFE


def untold(row: db.Row, mapped: Iterable[db.Row]) -> Iterator[Alert]:
    """Yield the alerts of a certificate that nobody was told of yet, whenever they come; ``mapped`` are its targets.

    A threshold counts as told once a lower one was: one that is put into the policy late is no news any more.
    """
    told = json.loads(row["alerted"])
    for life in lives(row, mapped):
        lowest = told.get(life.key)
        for days in _thresholds(row["alert_thresholds_days"]):
            if lowest is None or days < lowest:
                yield Alert(life, days, alert_at(life.not_before, life.not_after, days))


def lives(row: db.Row, mapped: Iterable[db.Row]) -> Iterable[Life]:
    """Return what is deployed, each version once; where nothing is, the newest."""
    deployed = {
        each["version_id"]: Life(each["version_id"], each["not_before"], each["not_after"])
        for each in mapped
        if each["version_id"] and each["not_after"]
    }
    start, end = born(row), row["expires_at"]
    if deployed or start is None or end is None:
        return deployed.values()
    return (Life(row["version_id"] or end.isoformat(), start, end),)


@lru_cache(maxsize=1024)
def _thresholds(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))
