"""Jobs that wait for a maintenance window: begun when it begins, put off when it ends, timed anew when it changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from certctl_core.job import ORDERS, JobState, JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.orders import ask_for_csr
from certctl_server.certificates.rollout_state import MISSED, poke
from certctl_server.certificates.status import hold
from certctl_server.certificates.timing import (
    PUT_BACK,
    Expiring,
    Held,
    Overriding,
    announce,
    replaced_by_order,
    replaced_on_target,
    timed,
)
from certctl_server.jobs import bell
from certctl_server.jobs.priorities import URGENT
from certctl_server.leader import Leadership

BATCH = 1000
DUE = db.Sql("SELECT id, certificate_id FROM job WHERE window_at <= $1 ORDER BY window_at LIMIT $2")
NEXT = db.Sql("SELECT min(window_at) AS due_at FROM job WHERE window_at IS NOT NULL")
OPEN = db.Sql("SELECT id FROM job WHERE certificate_id IN ({ids:$1}) AND coalesce(place, '') <> ''")
_FACTS = """
    SELECT j.id, j.type, j.status, j.certificate_id, j.agent_id, j.version_id, j.csr_sha256, j.request, j.offer_at,
        j.opens_at, j.window_at, j.scheduled_at, p.maintenance_windows, c.expires_at, t.enabled,
        v.not_after, m.version_id AS there, m.not_after AS there_until, n.id AS agents_version,
        n.not_after AS agents_until
    FROM job j JOIN certificate c ON c.id = j.certificate_id JOIN renewal_policy p ON p.id = c.renewal_policy_id
        LEFT JOIN target t ON t.id = j.target_id
        LEFT JOIN certificate_version v ON v.id = j.version_id
        LEFT JOIN certificate_target m ON m.certificate_id = j.certificate_id AND m.target_id = j.target_id
        LEFT JOIN certificate_version n ON n.certificate_id = j.certificate_id AND n.version = (
            SELECT max(w.version) FROM certificate_version w
            WHERE w.certificate_id = j.certificate_id AND w.agent_id = coalesce(j.agent_id, ''))
    WHERE j.id IN ({ids:$1}) ORDER BY j.id
    """
# A worker that claimed a job meanwhile would otherwise find it offered again.
FACTS = db.Sql(postgres=f"{_FACTS} FOR NO KEY UPDATE OF j", sqlite=_FACTS)
WRITE = db.update_rows(
    "job",
    "id",
    {
        "opens_at": "timestamptz",
        "window_at": "timestamptz",
        "offer_at": "timestamptz",
        "scheduled_at": "timestamptz",
        "request": "text",
    },
)
# From now on it is what a fresh request of that person would have made.
START = db.Sql(
    f"""
    UPDATE job SET opens_at = NULL, window_at = NULL, scheduled_at = {{now}}, priority = {URGENT}, urgency = {URGENT},
        urgent_at = NULL, requested_by = $2, request = '{{"force": false}}'
    WHERE id IN ({{ids:$1}}) AND status = 'Pending' AND type IN ('Issuance', 'Renewal') AND opens_at > {{now}}
    RETURNING id, agent_id
    """  # noqa: S608  # ours
)


async def look(leadership: Leadership) -> datetime | None:
    """Begin what a window has opened for and put off what it has closed for; return when to look again."""
    while True:
        async with leadership.leading():
            rows = await db.fetch(DUE, db.now(), BATCH)
            await hold(row["certificate_id"] for row in rows)
            await _time([row["id"] for row in rows])
        if len(rows) < BATCH:
            return await db.moment(NEXT)


async def time_anew(certificate_ids: Iterable[str]) -> None:
    """Let the open jobs of certificates follow windows that have just changed."""
    ids = sorted(set(certificate_ids))
    async with db.transaction():
        await hold(ids)
        await _time([row["id"] for row in await db.fetch(OPEN, json.dumps(ids))])


async def start_now(ids: Sequence[str], actor: Actor) -> list[str]:
    """Begin those orders that wait for a window, because a person wants them; return which these are."""
    rows = await db.fetch(START, json.dumps(list(ids)), actor.name)
    await record(Event(actor, "job_started_outside_windows", "job", row["id"]) for row in rows)
    await ask_for_csr(((row["id"], row["agent_id"]) for row in rows), actor)
    return [row["id"] for row in rows]


async def _time(ids: Sequence[str]) -> None:
    if not ids:
        return
    now = db.now()
    rows = [row for row in await db.fetch(FACTS, json.dumps(list(ids))) if _is_held(row)]
    times, turns, overriding = list[Held](), [], []
    for row in rows:
        type_, expiring = JobType(row["type"]), _expiring(row)
        held, overrides = timed(type_, row["maintenance_windows"], expiring, now)
        times.append(held)
        request = _missing(row) if _is_missed(row, now) else row["request"]
        turns.append({"id": row["id"], **held, **_turn(row, held["opens_at"], now), "request": request})
        if overrides and expiring and row["window_at"] is not None:
            overriding.append(Overriding(row["id"], type_, row["certificate_id"], expiring))
    await db.fetch(WRITE, json.dumps(turns, default=str))
    await poke(row["certificate_id"] for row in rows if _is_missed(row, now))
    await _begin(row for row, held in zip(rows, times, strict=True) if (held["opens_at"] or now) <= now)
    await announce(times, overriding)


async def _begin(rows: Iterable[db.Row]) -> None:
    """Send on what may start: orders to their agents, agents to what they are offered."""
    every = list(rows)
    await ask_for_csr(((row["id"], row["agent_id"]) for row in every if _is_unasked(row)), SYSTEM)
    for agent_id in {row["agent_id"] for row in every if row["offer_at"]}:
        bell.ring_agent(agent_id)


def _is_held(row: db.Row) -> bool:
    """Deployments but for what a halted rollout puts back, orders if the scan made them and no agent was asked yet."""
    asked = json.loads(row["request"])
    if row["type"] == JobType.DEPLOYMENT:
        return not asked.get(PUT_BACK)
    if row["window_at"] is not None:
        return True
    return row["status"] == JobState.AWAITING_APPROVAL and bool(asked.get("automatic"))


def _is_missed(row: db.Row, now: datetime) -> bool:
    """Whether a window has closed over a deployment that could have been begun all the while."""
    opened, closed = row["opens_at"], row["window_at"]
    if row["type"] != JobType.DEPLOYMENT or row["status"] != JobState.PENDING or not row["enabled"]:
        return False
    return bool(opened and closed and row["scheduled_at"] <= opened < closed <= now)


def _missing(row: db.Row) -> str:
    return json.dumps({**json.loads(row["request"]), MISSED: row["window_at"].isoformat()})


def _is_unasked(row: db.Row) -> bool:
    return row["type"] in ORDERS and row["status"] == JobState.PENDING and not row["csr_sha256"]


def _expiring(row: db.Row) -> Expiring | None:
    if row["type"] == JobType.DEPLOYMENT:
        return replaced_on_target(row)
    return replaced_by_order(row["agents_version"], row["agents_until"], row["expires_at"])


def _turn(row: db.Row, opens_at: datetime | None, now: datetime) -> dict[str, Any]:
    """When it is its turn: not before the window; a wait for another reason, a retry's, goes on beside it."""
    offer_at, scheduled_at = row["offer_at"], row["scheduled_at"]
    if row["status"] == JobState.PENDING:
        starts, waited = max(opens_at or now, now), row["opens_at"] is not None and row["opens_at"] > now
        if offer_at is not None:
            offer_at = starts if waited else max(offer_at, starts)
        if waited or starts > now:
            scheduled_at = starts
    return {"offer_at": offer_at, "scheduled_at": scheduled_at}
