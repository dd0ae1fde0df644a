"""Lanes: what a peer bears at once, which of its jobs is best, and a circuit that opens while it refuses everything.

What an issuer's rates allow is in ``budgets``. docs/lanes.md says it in prose.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from certctl_core.job import Cause

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.jobs import bell
from certctl_server.jobs.budgets import Rate, names_of, read_rates
from certctl_server.jobs.priorities import FREE, LEVELS, NORMAL, URGENT

log = logging.getLogger(__name__)
IN_A_ROW = 5
"""So many certificates fail alike, with no success in between: it is the issuer, and not they."""
WAITS = (timedelta(minutes=1), timedelta(minutes=4), timedelta(minutes=16), timedelta(hours=1))
"""How long the circuit stays open, by how often it has opened in a row."""
LONGEST_WORD = timedelta(hours=1)
"""The longest that a Retry-After, which may be about one name only, closes a whole lane; then one job asks again."""
ASKED_TO_WAIT = "retry-after"
MESSAGE = 300
_FAILING = f"lane.opened > 0 AND (lane.circuit_until > {{now}} OR lane.fault <> '{ASKED_TO_WAIT}')"

# Locked first and looked at afterwards: what another claimer has just taken is seen only by the next statement. Whoever
# waits for the lock reads the clock when it has it, which PostgreSQL does outside of the locking part alone.
LANE = db.Sql(
    postgres="SELECT held.*, {now} AS now FROM (SELECT * FROM lane WHERE name = $1 FOR UPDATE) held",
    sqlite="SELECT *, {now} AS now FROM lane WHERE name = $1",
)
RUNNING = db.Sql(
    "SELECT count(*) AS running, min(started_at) AS oldest FROM job WHERE lane = $1 AND status = 'Running'"
)
_NAMED = "job.id, job.type, job.priority, job.waits_for, c.common_name, c.sans"
# Each priority is a range of the one index of due jobs: what is not due yet is never walked over. The moment comes as
# an argument: PostgreSQL looks up no index by a clock that may move on meanwhile.
BEST_POSTGRES = f"""
    SELECT due.id, level.priority, due.due_at FROM (VALUES {", ".join(f"({level})" for level in LEVELS)})
        AS level (priority) CROSS JOIN LATERAL (
            SELECT id, due_at FROM job WHERE lane = $1 AND priority = level.priority AND due_at <= $2
            ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED) due
    WHERE level.priority <= $4 ORDER BY level.priority, due.due_at, due.id LIMIT $3
"""  # noqa: S608  # levels are ours
"""The best due jobs: of lane $1 at the moment $2, at most $3, of no later priority than $4."""
LOOK_POSTGRES = db.Sql(
    postgres=f"""
    WITH pick AS ({BEST_POSTGRES}) SELECT {_NAMED} FROM pick JOIN job ON job.id = pick.id
        LEFT JOIN certificate c ON c.id = job.certificate_id ORDER BY pick.priority, pick.due_at, pick.id
    """,  # noqa: S608  # ours
    sqlite="SELECT 1",
)
LOOK_SQLITE = db.Sql(
    sqlite=f"""
    SELECT {_NAMED} FROM job LEFT JOIN certificate c ON c.id = job.certificate_id
    WHERE job.lane = $1 AND job.priority = $4 AND job.due_at <= $2 ORDER BY job.due_at, job.id LIMIT $3
    """,  # noqa: S608  # ours
    postgres="SELECT 1",
)
CLOSE = db.Sql("UPDATE lane SET room_at = $2 WHERE name = $1")
SET_CIRCUIT = db.Sql("UPDATE lane SET fault = $2, faulted = $3, opened = $4, circuit_until = $5 WHERE name = $1")
TROUBLED = db.Sql("SELECT name FROM lane WHERE name IN ({ids:$1}) AND (opened > 0 OR fault <> '')")
HURRY = db.Sql(
    f"""
    UPDATE job SET urgency = {URGENT}, urgent_at = NULL,
        priority = CASE WHEN priority > {URGENT} THEN {URGENT} ELSE priority END,
        due_at = CASE WHEN waits_for <> '' AND due_at > scheduled_at THEN scheduled_at ELSE due_at END
    WHERE urgent_at <= (SELECT {{now}}) RETURNING lane
    """  # noqa: S608  # ours
)
# Back to the moment that they once waited for, so that they keep their places among each other.
REMEASURE = db.Sql(
    "UPDATE job SET due_at = scheduled_at, waits_for = '' WHERE lane = $1 AND waits_for <> '' AND due_at > scheduled_at"
)
_FIRST = """(SELECT due_at FROM job WHERE job.lane = lane.name AND priority = {0} AND due_at {1} (SELECT {{now}})
    ORDER BY due_at LIMIT 1) AS {2}_{3}"""
FIRST = db.Sql(
    f"""
    SELECT name, room_at, circuit_until, {{now}} AS now,
        {", ".join(_FIRST.format(level, "<=", "due", at) for at, level in enumerate(LEVELS))},
        {", ".join(_FIRST.format(level, ">", "next", at) for at, level in enumerate(LEVELS))} FROM lane
    """  # noqa: S608  # ours
)

OLDEST = db.Sql(
    f"""
    SELECT min(first) AS due_at FROM (SELECT (SELECT due_at FROM job WHERE job.lane = lane.name
        AND job.priority = level.priority AND due_at IS NOT NULL ORDER BY due_at LIMIT 1) AS first
        FROM lane CROSS JOIN ({" UNION ALL ".join(f"SELECT {level} AS priority" for level in LEVELS)}) level) firsts
    """  # noqa: S608  # ours
)
"""When the job that has been due longest fell due."""


def status_in_sql(kind: str) -> str:
    """Return the status of a peer, ``item``, in SQL: failing while its circuit is open, then until one job went well.

    ``kind`` is what its lane is called by, with its id.
    """
    return f"""CASE WHEN item.status = 'ready' AND EXISTS (SELECT 1 FROM lane
        WHERE lane.name = '{kind}:' || item.id AND {_FAILING}) THEN 'failing' ELSE item.status END"""  # noqa: S608  # ours


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a lane may be claimed right now."""

    lane: str
    now: datetime
    """The database's clock."""
    places: int
    rates: tuple[Rate, ...]
    oldest: datetime | None
    """When the first of those jobs was claimed that run now."""
    spent: bool
    """The whole budget is: only what costs none may be claimed."""

    @property
    def most(self) -> int:
        """The last priority that may be claimed."""
        return FREE if self.spent else NORMAL


async def room(lane: str, limit: int, usual: int | None = None) -> Room | None:
    """Hold ``lane`` and return how much of it may be claimed, at most ``limit``; None while it is closed or full.

    ``usual`` bounds what runs at once in a lane that says nothing of it.
    """
    for row in await db.fetch(LANE, lane):
        now = db.as_moment(row["now"])
        if row["circuit_until"] is not None and row["circuit_until"] > now:
            return None
        [count] = await db.fetch(RUNNING, lane)
        # Half open: whether the peer is well again is found out by one.
        most = 1 if row["opened"] else usual if row["concurrency"] is None else row["concurrency"]
        places = limit if most is None else min(most - count["running"], limit)
        if places > 0:
            spent = row["room_at"] is not None and row["room_at"] > now
            oldest = db.as_moment(count["oldest"]) if count["oldest"] else None
            return Room(lane, now, places, read_rates(row["rates"]), oldest, spent)
    return None


async def look(room: Room, limit: int) -> list[db.Row]:
    """Return the best due jobs of a lane that is held, with the names that they are about."""
    if db.dialect() == "postgres":
        return await db.fetch(LOOK_POSTGRES, room.lane, room.now, limit, room.most)
    rows: list[db.Row] = []
    for level in LEVELS:
        if level <= room.most and len(rows) < limit:
            rows += await db.fetch(LOOK_SQLITE, room.lane, room.now, limit - len(rows), level)
    return rows


async def close(lane: str, until: datetime) -> None:
    """Claim no new orders of ``lane`` until its budget has room again."""
    await db.fetch(CLOSE, lane, until)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What there is to do."""

    due: list[str]
    """Lanes of which something may be claimed."""
    wait: timedelta | None
    """How long until there is more: a job falls due, or a closed lane opens."""


async def outlook() -> Outlook:
    """Look at every lane, whoever rang for it or not; closed ones hold up nobody."""
    lanes: list[str] = []
    waits: list[timedelta] = []
    for row in await db.fetch(FIRST):
        now = db.as_moment(row["now"])
        closed, spent = (moment is not None and moment > now for moment in (row["circuit_until"], row["room_at"]))
        most = FREE if spent else NORMAL
        if not closed and any(row[f"due_{at}"] for at, level in enumerate(LEVELS) if level <= most):
            lanes.append(row["name"])
        later = [row["circuit_until"] if closed else None, row["room_at"] if spent else None]
        later += [db.as_moment(row[f"next_{at}"]) for at in range(len(LEVELS)) if row[f"next_{at}"] and not closed]
        waits += [moment - now for moment in later if moment is not None]
    return Outlook(lanes, min(waits, default=None))


async def hurry() -> list[str]:
    """Put in front what has become urgent by now; return the lanes that have some."""
    return sorted({row["lane"] for row in await db.fetch(HURRY) if row["lane"]})


async def relax(lane: str) -> None:
    """Let everything that waits for room in ``lane`` be measured anew: its rates have changed."""
    await db.fetch(REMEASURE, lane)
    bell.ring(lane)


@dataclass(frozen=True, slots=True)
class Circuit:
    """How a peer has done lately."""

    fault: str = ""
    """What the last failures have in common."""
    faulted: tuple[str, ...] = ()
    """Whose orders they were."""
    opened: int = 0
    """How often in a row the circuit opened; 0: it is closed."""
    until: datetime | None = None
    """Nothing is claimed until then; afterwards one job is, which decides."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Circuit:
        """Read a row of the lane."""
        return cls(row["fault"], tuple(json.loads(row["faulted"])), row["opened"], row["circuit_until"])

    def holds_at(self, now: datetime) -> bool:
        """Whether nothing may be claimed at this moment."""
        return self.until is not None and self.until > now


@dataclass(frozen=True, slots=True)
class Failure:
    """One order that failed, as far as it says something about its issuer."""

    fault: str
    """Equal for failures that are alike; empty if this one is about nothing but its own names."""
    whose: str
    """The certificate."""
    refused: bool = False
    """The peer answered, and refused this order."""
    retry_after: timedelta | None = None
    """How long the peer wants to be left alone."""


def after_failure(circuit: Circuit, failure: Failure, now: datetime) -> Circuit:
    """Return the circuit as it is after one more failure; pure."""
    if failure.retry_after is not None:
        return _asked(circuit, now + min(failure.retry_after, LONGEST_WORD), now)
    if circuit.holds_at(now):
        return circuit  # it was under way before
    alike = failure.fault != "" and failure.fault == circuit.fault
    if circuit.opened and (alike or not failure.refused):
        wait = WAITS[min(circuit.opened, len(WAITS) - 1)]
        return Circuit(failure.fault, (failure.whose,), circuit.opened + 1, now + wait)
    if not failure.fault:
        return Circuit()
    faulted = tuple(dict.fromkeys([*circuit.faulted, failure.whose])) if alike else (failure.whose,)
    if len(faulted) >= IN_A_ROW:
        return Circuit(failure.fault, faulted, 1, now + WAITS[0])
    return Circuit(failure.fault, faulted)


def _asked(circuit: Circuit, until: datetime, now: datetime) -> Circuit:
    if until <= max(circuit.until or now, now):
        return circuit
    fault = circuit.fault if circuit.holds_at(now) else ASKED_TO_WAIT
    return replace(circuit, fault=fault, opened=max(circuit.opened, 1), until=until)


def after_success(circuit: Circuit, now: datetime) -> Circuit:
    """Return the circuit as it is after a success; pure. What the peer asked for itself holds nevertheless."""
    return circuit if circuit.fault == ASKED_TO_WAIT and circuit.holds_at(now) else Circuit()


VARIES = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[\w+/=-]{20,}|[0-9a-f]*\d[0-9a-f]*", re.IGNORECASE)


def fault_of(cause: Cause, message: str, row: Mapping[str, Any] | None) -> str:
    """Return what this failure has in common with others that are alike: numbers and names differ from one to the next.

    Empty for an order that was refused for the sake of its own names; ``row`` has the names of its certificate.
    """
    text = message.lower()
    names = {name.value.removeprefix("*.").lower() for name in names_of(row)} if row else set()
    mentioned = sorted((name for name in names if name in text), key=len, reverse=True)
    if mentioned and cause is Cause.REJECTED:
        return ""
    for name in mentioned:
        text = text.replace(name, "#")
    return f"{cause}: {' '.join(VARIES.sub('#', text).split())}"[:MESSAGE]


async def failed(lane: str, failure: Failure, message: str) -> None:
    """Note that a job of ``lane`` failed, in the transaction that ends it; the circuit may open."""
    for row in await db.fetch(LANE, lane):
        old, now = Circuit.of(row), db.as_moment(row["now"])
        new = after_failure(old, failure, now)
        if new != old:
            await _set(lane, new)
        if new.holds_at(now) and not old.holds_at(now):
            told = {"until": str(new.until), "reason": message[:MESSAGE], "times": new.opened}
            log.warning("lane closed", extra={"lane": lane, **told})
            await record([_event(lane, "opened", told)])
        elif old.opened and not new.opened:
            await _told_open(lane, old)


async def succeeded(lane: str) -> None:
    """Note that a job of ``lane`` was done: its circuit closes, and failures are counted anew."""
    if not await _troubled(lane):
        return
    async with db.transaction():
        for row in await db.fetch(LANE, lane):
            old, now = Circuit.of(row), db.as_moment(row["now"])
            new = after_success(old, now)
            if new == old:
                continue
            await _set(lane, new)
            if old.opened:
                await _told_open(lane, old)


async def reset(lane: str) -> None:
    """Let ``lane`` be tried at once: what it works with was changed. Part of that change's transaction."""
    if not await _troubled(lane):
        return
    for row in await db.fetch(LANE, lane):
        await _set(lane, Circuit())
        if (old := Circuit.of(row)).opened:
            await _told_open(lane, old)
    bell.ring(lane)


async def _troubled_among(lanes: list[str]) -> list[bool]:
    found = {row["name"] for row in await db.fetch(TROUBLED, json.dumps(sorted(set(lanes))))}
    return [lane in found for lane in lanes]


_troubled = db.Together(_troubled_among)


async def _set(lane: str, circuit: Circuit) -> None:
    faulted = json.dumps(circuit.faulted[:IN_A_ROW])
    await db.fetch(SET_CIRCUIT, lane, circuit.fault, faulted, circuit.opened, circuit.until)


async def _told_open(lane: str, old: Circuit) -> None:
    log.info("lane open again", extra={"lane": lane})
    await record([_event(lane, "closed", {"times": old.opened})])
    bell.ring(lane)


def _event(lane: str, became: str, told: Mapping[str, Any]) -> Event:
    kind, _, id = lane.partition(":")
    return Event(SYSTEM, f"{kind}_circuit_{became}", kind, id, told)
