"""How many orders a CA takes: counted where every worker sees it, so that none is placed that would be refused.

A rate says how many orders may begin in any stretch of so many seconds: for the account, for one registered domain, or
for one exact set of names. The table ``budget`` keeps a running total for each of these; what was ordered since some
moment is the difference of two of its rows, each found by an index, however large the rate.

An order that was claimed a moment ago may reach the CA much later. So it counts as placed when it is over, or was
claimed so long ago that it must have arrived, and until then as if it were placed right now.

An order without room waits: its due moment is moved to when there is some, so that it neither costs a claim nor holds
up the others of its lane. What is moved there is a plan, and room goes to whoever is best when it is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import Any

from certctl_core.job import ORDERS
from certctl_core.names import San, SanKind, normalise_sans
from publicsuffixlist import PublicSuffixList  # type: ignore[import-untyped, unused-ignore]

from certctl_server import db
from certctl_server.jobs.priorities import FREE, LEVELS, URGENT

ACCOUNT, DOMAIN, NAMES = "account", "domain", "names"
LEAST_SLACK, MOST_SLACK = timedelta(milliseconds=50), timedelta(minutes=1)
ON_ITS_WAY = timedelta(minutes=1)
"""The longest that an order is on its way to the CA: one that hangs there must not stop all others."""
LOOK_AGAIN = timedelta(milliseconds=250)
"""How soon to look whether those that are on their way have arrived."""
# For each rate of each key: what was ordered, what of that is out of the window by now, and when the order was placed
# that has to leave it before there is room.
STANDS = db.with_rows(
    {"key": "text", "count": "bigint", "since": "timestamptz", "seconds": "double precision"},
    """
    SELECT asked.key, asked.count, asked.seconds, asked.total,
        (SELECT at FROM budget WHERE lane = $2 AND key = asked.key AND total = asked.total) AS newest,
        coalesce(
            (SELECT total FROM budget WHERE lane = $2 AND key = asked.key AND arrived_at <= asked.since
                ORDER BY arrived_at DESC, total DESC LIMIT 1),
            (SELECT total - orders FROM budget WHERE lane = $2 AND key = asked.key ORDER BY total LIMIT 1)) AS gone,
        (SELECT coalesce(arrived_at, at) FROM budget WHERE lane = $2 AND key = asked.key
            AND total > asked.total - asked.count ORDER BY total LIMIT 1) AS before
    FROM (SELECT row.key, row.count, row.since, row.seconds,
            (SELECT max(total) FROM budget WHERE lane = $2 AND key = row.key) AS total FROM {row}) asked
    """,
)
# By key, until when others wait already.
WAITING = db.with_rows(
    {"key": "text", "level": "bigint"},
    """
    SELECT row.key, row.level, (
        SELECT due_at FROM job WHERE lane = $2 AND waits_for <> '' AND waits_for = row.key AND priority = row.level
            AND due_at IS NOT NULL ORDER BY due_at DESC LIMIT 1) AS due_at
    FROM {row}
    """,
)
SPEND = db.insert_rows(
    "budget",
    {
        "lane": "text",
        "key": "text",
        "total": "bigint",
        "orders": "bigint",
        "at": "timestamptz",
        "until": "timestamptz",
    },
)
ARRIVED = db.Sql(
    """
    UPDATE budget SET arrived_at = CASE WHEN at > $2 THEN at ELSE $2 END
    WHERE lane = $1 AND arrived_at IS NULL AND at < $3
    """
)
WAIT = db.update_rows("job", "id", {"due_at": "timestamptz", "waits_for": "text"})
FORGET = db.Sql("DELETE FROM budget WHERE until <= (SELECT {now})")


@dataclass(frozen=True, slots=True)
class Rate:
    """No more than ``count`` orders in any stretch of ``per``, for each thing of ``scope``."""

    count: int
    per: timedelta
    scope: str

    @property
    def window(self) -> timedelta:
        """``per``, and a little more: not everybody's clock is as good as the database's."""
        return self.per + min(max(self.per / 100, LEAST_SLACK), MOST_SLACK)

    @property
    def pace(self) -> timedelta:
        """How far apart orders are at this rate on the average."""
        return self.window / self.count


def read_rates(text: str) -> tuple[Rate, ...]:
    """Return the rates of a lane as they are stored."""
    return tuple(
        Rate(each["count"], timedelta(seconds=each["per_seconds"]), each["scope"]) for each in json.loads(text)
    )


@dataclass(slots=True)
class Bucket:
    """How things stand for one account, domain or set of names."""

    key: str
    room: int
    """How many orders may begin now."""
    total: int
    newest: datetime | None
    free_at: datetime | None
    """When there will be room; None while there is some."""
    pace: timedelta
    last: dict[int, datetime] = field(default_factory=dict)
    """By priority, until when the last of those waits that wait for room here."""
    again: int = 0
    """How many were told once more to wait."""

    def wait(self, free_at: datetime, priority: int, *, known: bool) -> datetime:
        """Return when an order may come back. Who is ``known`` to wait keeps its place: at the front."""
        if known:
            self.again += 1
            return free_at + (self.again - 1) * self.pace
        ahead = [moment for level, moment in self.last.items() if level <= priority]
        found = max([free_at, *(moment + self.pace for moment in ahead)])
        self.last[priority] = found
        return found


@dataclass(slots=True)
class Choice:
    """What is to become of the best due jobs of a lane."""

    take: list[str] = field(default_factory=list)
    later: list[dict[str, str]] = field(default_factory=list)
    """Those without room: id, due_at, waits_for."""
    spent: Counter[str] = field(default_factory=Counter)
    """New orders by key."""
    room_at: datetime | None = None
    """The whole lane has no room for new orders until then."""


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def registered_domain(name: San) -> str:
    """Return what a CA counts ``name`` under: the label below a public suffix, or an address as it is."""
    if name.kind is SanKind.IP:
        return name.value
    host = name.value
    if name.kind is SanKind.EMAIL:
        host = host.rpartition("@")[2]
    elif name.kind is SanKind.URI:
        host = host.partition("://")[2].partition("/")[0] or host
    host = host.removeprefix("*.")
    return str(_suffixes().privatesuffix(host) or host)


def keys_of(row: Mapping[str, Any], scopes: Iterable[str]) -> list[str]:
    """Return what an order counts against, as far as there are rates of these ``scopes``."""
    wanted = frozenset(scopes)
    found = [ACCOUNT] if ACCOUNT in wanted else []
    if wanted <= {ACCOUNT}:
        return found
    names = names_of(row)
    if DOMAIN in wanted:
        found += sorted({f"{DOMAIN} {registered_domain(name)}" for name in names})
    if NAMES in wanted:
        spelt = "\n".join(sorted(f"{name.kind} {name.value}" for name in names))
        found.append(f"{NAMES} {sha256(spelt.encode()).hexdigest()}")
    return found


def names_of(row: Mapping[str, Any]) -> tuple[San, ...]:
    """Return the names that the certificate of a job is to carry; nothing if they are none."""
    texts = [row["common_name"] or "", *json.loads(row["sans"] or "[]")]
    try:
        return normalise_sans(filter(None, texts))
    except ValueError:
        return ()


def needs_room(row: Mapping[str, Any]) -> bool:
    """Whether a job is a new order; one that is under way at the CA, or asks for something else, is not."""
    return row["type"] in ORDERS and row["priority"] != FREE


async def choose(lane: str, rates: Sequence[Rate], rows: Sequence[db.Row], *, places: int, now: datetime) -> Choice:
    """Decide about due jobs of ``lane``, best first, and write down what is spent and who waits until when.

    The caller holds the lane and claims what is to be taken. ``rows`` have id, type, priority, waits_for and names.
    """
    scopes = {rate.scope for rate in rates}
    keys = {row["id"]: keys_of(row, scopes) if needs_room(row) else [] for row in rows}
    buckets = await _stand(lane, rates, {key for each in keys.values() for key in each}, now)
    choice = decide(rows, keys, buckets, places)
    if choice.spent:
        entries = [_entry(lane, rates, buckets[key], orders, now) for key, orders in choice.spent.items()]
        await db.fetch(SPEND, json.dumps(entries))
    if choice.later:
        await db.fetch(WAIT, json.dumps(choice.later))
    return choice


def decide(
    rows: Sequence[Mapping[str, Any]], keys: Mapping[str, Sequence[str]], buckets: Mapping[str, Bucket], places: int
) -> Choice:
    """Return what is to become of ``rows``, best first; pure but for what it notes in ``buckets``."""
    choice = Choice()
    for row in rows:
        if len(choice.take) >= places:
            break
        needed = [buckets[key] for key in keys[row["id"]]]
        full = {bucket.key: bucket.free_at for bucket in needed if bucket.free_at is not None}
        if ACCOUNT in full:
            choice.room_at = full[ACCOUNT]
        elif full:
            worst = max(full, key=full.__getitem__)
            known = row["waits_for"] == worst and row["priority"] > URGENT
            until = buckets[worst].wait(full[worst], row["priority"], known=known)
            choice.later.append({"id": row["id"], "due_at": db.text_of(until), "waits_for": worst})
        elif all(bucket.room > 0 for bucket in needed):
            choice.take.append(row["id"])
            for bucket in needed:
                bucket.room -= 1
                choice.spent[bucket.key] += 1
        # Where the last room has just been taken by one ahead, when there is some again is only known next time.
    return choice


async def _stand(lane: str, rates: Sequence[Rate], keys: set[str], now: datetime) -> dict[str, Bucket]:
    asked = [
        {
            "key": key,
            "count": rate.count,
            "since": db.text_of(now - rate.window),
            "seconds": rate.window.total_seconds(),
        }
        for key in sorted(keys)
        for rate in rates
        if rate.scope == key.partition(" ")[0]
    ]
    found: dict[str, Bucket] = {}
    for row in await db.fetch(STANDS, json.dumps(asked), lane) if asked else []:
        bucket = _bucket(row, now)
        known = found.setdefault(bucket.key, bucket)
        known.room = min(known.room, bucket.room)
        known.pace = max(known.pace, bucket.pace)
        known.free_at = max(filter(None, (known.free_at, bucket.free_at)), default=None)
    full = [bucket.key for bucket in found.values() if bucket.free_at and bucket.key != ACCOUNT]
    levels = [{"key": key, "level": level} for key in full for level in LEVELS if level != FREE]
    for row in await db.fetch(WAITING, json.dumps(levels), lane) if levels else []:
        if row["due_at"]:
            found[row["key"]].last[row["level"]] = db.as_moment(row["due_at"])
    return found


def _bucket(row: db.Row, now: datetime) -> Bucket:
    window = timedelta(seconds=float(row["seconds"]))
    total = row["total"] or 0
    room = row["count"] - (total - (row["gone"] or 0))
    free_at = max(db.as_moment(row["before"]) + window, now + LOOK_AGAIN) if room <= 0 else None
    newest = db.as_moment(row["newest"]) if row["newest"] else None
    return Bucket(row["key"], max(room, 0), total, newest, free_at, window / row["count"])


def _entry(lane: str, rates: Sequence[Rate], bucket: Bucket, orders: int, now: datetime) -> dict[str, Any]:
    # A clock that was put back must not put an order in front of an older one.
    at = max(now, bucket.newest or now)
    until = at + ON_ITS_WAY + max(rate.window for rate in rates if rate.scope == bucket.key.partition(" ")[0])
    total = bucket.total + orders
    row = {"lane": lane, "key": bucket.key, "total": total, "orders": orders}
    return {**row, "at": db.text_of(at), "until": db.text_of(until)}


async def arrived(lane: str, oldest: datetime | None, now: datetime) -> None:
    """Note which orders of ``lane`` are at the CA by now: those before the ``oldest`` that runs, None if none does."""
    cut = max(oldest or now, now - ON_ITS_WAY)
    await db.fetch(ARRIVED, lane, now, cut)


async def forget() -> None:
    """Remove what is past every window."""
    await db.fetch(FORGET)
