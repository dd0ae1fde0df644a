"""The rollouts that are under way: who is in them, how far each target is, and what wakes them.

A rollout is the way of a certificate's newest versions to its targets under a plan of its renewal policy. It has a row
while it lasts, and one for each target that lacks its version or lacked it at the start; ``wave`` is NULL while such a
target is held back. What is to be done next is ``rollout``'s.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from certctl_core.certificate import DeploymentState
from certctl_core.job import JobState
from certctl_core.rollout import Plan, Progress, Standing, override_at

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.certificates.status import TRIES
from certctl_server.jobs import bell
from certctl_server.jobs.create import deployment_place, order_place, place_in_sql

LOOP = "rollouts"
RUNNING, HALTED = "Running", "Halted"
SILENCE = timedelta(hours=2)
"""As long as three tries take: a deployment that its agent has not begun by then, or tries no sooner, has failed."""
MISSED = "missed_at"
"""In a deployment's request: the end of the last whole maintenance window in which nobody began it."""
THERE = frozenset({DeploymentState.SERVED, DeploymentState.DEPLOYED})
AT_ONCE = {"waves": [100], "soak_seconds": 0, "max_failures": 1_000_000}
"""The plan for targets in a rollout whose policy has none any more."""
ROW = {"certificate_id": "text", "target_id": "text"}
ROLLOUT = {
    "certificate_id": "text", "status": "text", "waves": "text", "soak_seconds": "bigint", "max_failures": "bigint",
    "wave": "bigint", "passed_at": "timestamptz", "due_at": "timestamptz", "reason": "text",
    "started_at": "timestamptz",
}  # fmt: skip
TARGET = {**ROW, "version_id": "text", "previous_version_id": "text", "wave": "bigint"}


def _or_update(columns: Iterable[str], key: Iterable[str]) -> str:
    new = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {new}"


PUT = db.insert_rows("rollout", ROLLOUT, _or_update(ROLLOUT, ("certificate_id",)))
PUT_TARGETS = db.insert_rows("rollout_target", TARGET, _or_update(TARGET, ROW))
KNOWN = db.Sql("SELECT * FROM rollout WHERE certificate_id IN ({ids:$1})")
# What has arrived is no part of the next rollout.
ARRIVED = db.Sql(
    """
    DELETE FROM rollout_target WHERE certificate_id IN ({ids:$1}) AND EXISTS (
        SELECT 1 FROM certificate_target m WHERE m.certificate_id = rollout_target.certificate_id
            AND m.target_id = rollout_target.target_id AND m.version_id = rollout_target.version_id
            AND m.state IN ('served', 'deployed'))
    """
)
# What was held back by a rollout that was halted is sent to nobody by the next one.
DROP_HALTED = db.Sql(
    """
    DELETE FROM rollout_target WHERE certificate_id IN ({ids:$1}) AND wave IS NULL AND EXISTS (
        SELECT 1 FROM rollout r WHERE r.certificate_id = rollout_target.certificate_id AND r.status = 'Halted')
    """
)
AWAITS = db.with_rows(
    ROW,
    """
    UPDATE certificate_target SET state = 'pending', failures = 0 FROM {row}
    WHERE certificate_target.certificate_id = row.certificate_id AND certificate_target.target_id = row.target_id
    """,
)
TARGETS = db.Sql(
    f"""
    SELECT m.certificate_id, m.target_id, t.agent_id, m.state, m.failures, m.version_id AS there,
        m.not_before AS there_from, m.not_after AS there_until, h.version_id, h.previous_version_id, h.wave,
        v.not_after, v.revoked_at, v.agent_id AS made_for,
        b.not_after AS previous_until, b.revoked_at AS previous_revoked_at,
        j.id AS job_id, j.status AS job_status, j.scheduled_at, j.started_at, j.next_retry_at, j.request,
        EXISTS (SELECT 1 FROM job o
            WHERE o.place = {place_in_sql(order_place, "m.certificate_id", "t.agent_id")}) AS expected,
        EXISTS (SELECT 1 FROM agent_key k JOIN agent a ON a.id = k.agent_id WHERE k.agent_id = t.agent_id
            AND k.certificate_id = m.certificate_id AND k.public_key_sha256 <> b.public_key_sha256
            AND coalesce(a.capabilities, '[]') = '[]') AS key_lost
    FROM certificate_target m JOIN target t ON t.id = m.target_id
        LEFT JOIN rollout_target h ON h.certificate_id = m.certificate_id AND h.target_id = m.target_id
        LEFT JOIN certificate_version v ON v.id = h.version_id
        LEFT JOIN certificate_version b ON b.id = h.previous_version_id
        LEFT JOIN job j ON j.place = {place_in_sql(deployment_place, "h.version_id", "h.target_id")}
    WHERE m.certificate_id IN ({{ids:$1}}) AND t.enabled AND t.agent_id IS NOT NULL
    ORDER BY m.certificate_id, m.position, m.target_id
    """  # noqa: S608  # ours
)
POKE = db.Sql(
    "UPDATE rollout SET due_at = {now} WHERE certificate_id IN ({ids:$1}) AND status = 'Running' RETURNING status"
)
CALL_OFF = db.Sql("DELETE FROM rollout WHERE certificate_id IN ({ids:$1}) RETURNING certificate_id")


async def admitted(rows: Sequence[db.Row]) -> list[db.Row]:
    """Return which of ``rows``, as ``fitting`` returns them, may be deployed now; the others wait in a rollout.

    A rollout begins, or begins anew, when there is a version that it does not know. Call it while the certificates are
    held, and settle them afterwards.
    """
    free = [row for row in rows if row["rolled"] is None and row["rollout"] is None]
    sent = [row for row in rows if row["rolled"] == row["version_id"] and row["rolled_in"] is not None]
    fresh: dict[str, list[db.Row]] = defaultdict(list)
    for row in rows:
        if row["rolled"] != row["version_id"] and (row["rolled"] or row["rollout"]) is not None:
            fresh[row["certificate_id"]].append(row)
    if fresh:
        await _enter(fresh)
    return free + sent


def is_held(row: db.Row) -> bool:
    """Whether a target, a row of ``fitting``, waits for its wave."""
    return row["rolled"] is not None and row["rolled_in"] is None


async def _enter(fresh: Mapping[str, list[db.Row]]) -> None:
    now, ids = db.now(), json.dumps(sorted(fresh))
    known = {row["certificate_id"]: row for row in await db.fetch(KNOWN, ids)}
    anew = [id for id, rows in fresh.items() if id not in known or any(row["rolled"] for row in rows)]
    started = [_begun(id, fresh[id][0]["rollout"], now) for id in anew]
    joined = [row | {"due_at": now} for id, row in known.items() if id not in anew and row["status"] == RUNNING]
    await db.fetch(ARRIVED, json.dumps(anew))
    await db.fetch(DROP_HALTED, json.dumps(anew))
    await put(started + joined)
    targets = [row for rows in fresh.values() for row in rows]
    await put_targets([_held(row) for row in targets])
    await db.fetch(AWAITS, _pairs(targets))
    await record(
        Event(SYSTEM, "rollout_started", "certificate", row["certificate_id"], {"waves": json.loads(row["waves"])})
        for row in started
    )
    bell.poke(LOOP)


def _begun(certificate_id: str, plan: str | None, now: datetime) -> dict[str, Any]:
    asked = json.loads(plan) if plan else AT_ONCE
    return {
        "certificate_id": certificate_id,
        "status": RUNNING,
        "waves": json.dumps(asked["waves"]),
        "soak_seconds": asked["soak_seconds"],
        "max_failures": asked["max_failures"],
        "wave": 0,
        "passed_at": None,
        "due_at": now,
        "reason": "",
        "started_at": now,
    }


def _held(row: db.Row) -> dict[str, Any]:
    previous = row["there"] if row["there"] != row["version_id"] else None
    return {**{name: row[name] for name in (*ROW, "version_id")}, "previous_version_id": previous, "wave": None}


def _pairs(rows: Iterable[db.Row]) -> str:
    return json.dumps([{name: row[name] for name in ROW} for row in rows])


async def put(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rollouts, new or known."""
    if rows:
        await db.fetch(PUT, json.dumps([{name: row[name] for name in ROLLOUT} for row in rows], default=str))


async def put_targets(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the part of targets in their rollouts."""
    if rows:
        await db.fetch(PUT_TARGETS, json.dumps([{name: row[name] for name in TARGET} for row in rows]))


async def await_again(rows: Sequence[db.Row]) -> None:
    """Note that targets are to get their version yet, with all tries."""
    if rows:
        await db.fetch(AWAITS, _pairs(rows))


async def targets_of(ids: Iterable[str]) -> dict[str, list[db.Row]]:
    """Return the enabled targets of certificates, in their order, with their part in the rollout if they have one."""
    found: dict[str, list[db.Row]] = defaultdict(list)
    for row in await db.fetch(TARGETS, json.dumps(sorted(set(ids)))):
        found[row["certificate_id"]].append(row)
    return found


def takes_part(row: db.Row, now: datetime) -> bool:
    """Whether the version that is meant for a target can still be brought there."""
    alive = row["version_id"] is not None and row["revoked_at"] is None and row["not_after"] > now
    return bool(alive and row["made_for"] in {"", row["agent_id"]})


def progress(row: db.Row, now: datetime) -> Progress:
    """Return how far a target is that takes part."""
    if row["wave"] is None:
        return Progress.HELD
    arrived = row["there"] == row["version_id"]
    if arrived and row["state"] in THERE:
        return Progress.SERVED
    # It has arrived, and its agent may still say what is served.
    if arrived and row["job_id"] is None and row["state"] == DeploymentState.PENDING:
        return Progress.SENT
    return Progress.FAILED if row["failures"] >= TRIES or _is_given_up(row, now) else Progress.SENT


def _is_given_up(row: db.Row, now: datetime) -> bool:
    match row["job_status"]:
        case None:
            return True
        case JobState.PENDING:
            return _is_silent(row, now)
        case JobState.FAILED:
            return bool(row["next_retry_at"] is None or row["next_retry_at"] > now + SILENCE)
    return False


def _is_silent(row: db.Row, now: datetime) -> bool:
    """Whether nobody began what its agent could have had for too long, or over a whole maintenance window.

    ``scheduled_at`` is moved on by what keeps the agent from it: no room in a group, a target that is disabled, a run
    that came to nothing because the agent died.
    """
    begun = row["started_at"]
    missed = json.loads(row["request"]).get(MISSED)
    if missed and (begun is None or begun < datetime.fromisoformat(missed)):
        return True
    return bool(row["scheduled_at"] <= now - SILENCE)


def standing(rollout: db.Row, rows: Sequence[db.Row], now: datetime) -> Standing:
    """Return where a rollout is; ``rows`` are its certificate's, as ``targets_of`` returns them."""
    parts = [row for row in rows if takes_part(row, now)]
    others = [row for row in rows if not takes_part(row, now)]
    waiting = [row for row in parts if row["wave"] is None and row["there_until"] is not None]
    return Standing(
        wave=rollout["wave"],
        targets=[progress(row, now) for row in parts],
        mapped=len(rows),
        ready=sum(row["there"] is not None and not row["expected"] for row in others),
        expected=any(row["expected"] for row in rows),
        passed_at=rollout["passed_at"],
        override_at=min(
            (override_at(row["there_from"], row["there_until"]) for row in waiting if row["there_from"]), default=None
        ),
    )


def plan_of(rollout: db.Row) -> Plan:
    """Return the plan that a rollout began with."""
    soak = timedelta(seconds=rollout["soak_seconds"])
    return Plan(tuple(json.loads(rollout["waves"])), soak, rollout["max_failures"])


async def poke(ids: Iterable[str]) -> None:
    """Let the rollouts of certificates be looked at: something became of one of their targets."""
    if await db.fetch(POKE, json.dumps(sorted(set(ids)))):
        bell.poke(LOOP)


async def call_off(ids: Iterable[str]) -> None:
    """End the rollouts of certificates, which are revoked or archived: nothing of theirs is deployed any more."""
    await db.fetch(CALL_OFF, json.dumps(sorted(set(ids))))
