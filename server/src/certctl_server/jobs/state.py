"""The one place that writes ``job.status``: moves of sets of rows, and the claims, beats and saves of workers.

Every move is a compare-and-set with its audit rows in the same transaction. A row that is missing from an
answer was taken by someone else.

Step 10 of the main flow (docs/main-flow.md).
"""

# ruff: noqa: S608  # the parts that statements share are ours, values are parameters
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from certctl_core.job import ORDERS, JobState, JobType, check
from certctl_core.run import LeaseLost
from piccolo.columns import Column
from piccolo.custom_types import Combinable

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.jobs.tables import Job

URGENT, NORMAL, LATER = 0, 5, 9
PRIORITIES = (URGENT, NORMAL, LATER)
CRASHES = 3
ENDED = {JobState.COMPLETED, JobState.CANCELLED}

#: What audit readers of the original look for; everything else is ``job_<state>``.
ACTIONS = {
    (JobType.DEPLOYMENT, JobState.RUNNING): "deployment_job_dispatched",
    (JobType.DEPLOYMENT, JobState.COMPLETED): "deployment_job_completed",
    (JobType.DEPLOYMENT, JobState.FAILED): "deployment_job_failed",
    **{(order, JobState.AWAITING_CSR): "renewal_awaiting_csr" for order in ORDERS},
    **{(order, JobState.COMPLETED): "renewal_job_completed" for order in ORDERS},
    **{(order, JobState.FAILED): "renewal_job_failed" for order in ORDERS},
}
MOVED = (
    Job.id, Job.type, Job.status, Job.certificate_id, Job.target_id, Job.agent_id, Job.issuer_id, Job.lane,
    Job.version_id, Job.failures, Job.request, Job.next_retry_at,
)  # fmt: skip
WORN = "crashed its worker"


async def move(
    where: Combinable,
    old: JobState,
    new: JobState,
    *,
    actor: Actor = SYSTEM,
    note: Mapping[str, Any] | None = None,
    **facts: Any,
) -> list[db.Row]:
    """Move every job that matches ``where`` and is still ``old``; return id, type and owners of those that moved.

    ``facts`` are columns to set in the same breath. A job that ends gives up its place, its lease and its turn;
    one that fails keeps the place only if ``next_retry_at`` is among the facts.

    Raises:
        IllegalTransition: no job goes from ``old`` to ``new``.
    """
    check(old, new)
    values = _follows(new, facts)
    values.update({"status": new, **facts})
    async with db.transaction():
        moved = await Job.update(values).where(Job.status == old, where).returning(*MOVED)
        await record(_event(row, old, new, actor, {**(note or {}), **_told(facts)}) for row in moved)
    return list(moved)


def _follows(new: JobState, facts: Mapping[str, Any]) -> dict[Column | str, Any]:
    idle: dict[Column | str, Any] = {"owner": "", "lease_until": None, "due_at": None, "offer_at": None}
    if new in ENDED or (new is JobState.FAILED and facts.get("next_retry_at") is None):
        return {**idle, "place": None, "next_retry_at": None, "completed_at": datetime.now(UTC)}
    if new is JobState.FAILED:
        return {**idle, "completed_at": datetime.now(UTC)}
    if new is JobState.PENDING:
        return {**idle, "next_retry_at": None, "completed_at": None}
    return {}


def _told(facts: Mapping[str, Any]) -> dict[str, str]:
    return {"error": facts["last_error"]} if facts.get("last_error") else {}


def _event(row: db.Row, old: str, new: str, actor: Actor, note: Mapping[str, Any]) -> Event:
    action = ACTIONS.get((row["type"], JobState(new)), f"job_{JobState(new).lower()}")
    told = {"type": row["type"], "certificate_id": row["certificate_id"] or "", "from": old, "to": new}
    if row.get("target_id"):
        told["target_id"] = row["target_id"]
    return Event(actor, action, "job", row["id"], {**told, **note})


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this process runs, for as long as nobody else has a higher fence."""

    id: str
    type: JobType
    lane: str
    fence: int
    attempts: int
    certificate_id: str
    issuer_id: str
    agent_id: str
    request: dict[str, Any]
    run_state: dict[str, Any]
    csr_pem: str
    requested_by: str
    traceparent: str
    failures: int
    max_attempts: int

    @classmethod
    def of(cls, row: db.Row) -> Claimed:
        """Read a row of the claim."""
        texts = {name: row[name] or "" for name in ("certificate_id", "issuer_id", "agent_id", "csr_pem")}
        return cls(
            id=row["id"],
            type=JobType(row["type"]),
            lane=row["lane"],
            fence=row["fence"],
            attempts=row["attempts"],
            request=json.loads(row["request"]),
            run_state=json.loads(row["run_state"]),
            requested_by=row["requested_by"],
            traceparent=row["traceparent"],
            failures=row["failures"],
            max_attempts=row["max_attempts"],
            **texts,
        )


_SET = """status = 'Running', owner = $1, fence = fence + 1, beat = 0, attempts = attempts + 1, due_at = NULL,
    started_at = {now}, lease_until = {after:$2}"""
_TAKEN = """id, type, lane, fence, attempts, certificate_id, issuer_id, agent_id, request, run_state, csr_pem,
    requested_by, traceparent, failures, max_attempts, target_id"""
# The lane's row is locked first, so that two claimers cannot both see its last free place. Each priority is a
# range of its own in the index: jobs that are not due yet are never walked over.
CLAIM_POSTGRES = db.Sql(
    postgres=f"""
    WITH open AS MATERIALIZED (
        SELECT name, coalesce(tokens, 1000000) AS tokens, concurrency FROM lane
        WHERE name = $3 AND coalesce(tokens, 1) > 0 AND (circuit_until IS NULL OR circuit_until <= {{now}}) FOR UPDATE),
    room AS (
        SELECT name, least(tokens, concurrency
            - (SELECT count(*) FROM job WHERE lane = open.name AND status = 'Running'), $4)::int AS places FROM open),
    pick AS (
        SELECT job.id FROM room CROSS JOIN LATERAL (
            SELECT due.id FROM (VALUES (0), (5), (9)) AS level (priority) CROSS JOIN LATERAL (
                SELECT id, due_at FROM job
                WHERE lane = room.name AND priority = level.priority AND due_at <= {{now}}
                ORDER BY due_at, id LIMIT greatest(room.places, 0) FOR UPDATE SKIP LOCKED) due
            ORDER BY level.priority, due.due_at, due.id LIMIT greatest(room.places, 0)) job),
    paid AS (UPDATE lane SET tokens = tokens - (SELECT count(*) FROM pick) WHERE name = $3 AND tokens IS NOT NULL)
    UPDATE job SET {_SET} FROM pick WHERE job.id = pick.id
    RETURNING {", ".join(f"job.{name.strip()}" for name in _TAKEN.split(","))}
    """,
    sqlite="SELECT 1",
)
ROOM_SQLITE = db.Sql(
    sqlite="""
    SELECT min(coalesce(tokens, 1000000), concurrency
        - (SELECT count(*) FROM job WHERE lane = $1 AND status = 'Running'), $2) AS places
    FROM lane WHERE name = $1 AND (circuit_until IS NULL OR circuit_until <= {now})
    """,
    postgres="SELECT 1",
)
CLAIM_SQLITE = db.Sql(
    sqlite=f"""
    UPDATE job SET {_SET} WHERE id IN (
        SELECT id FROM job WHERE lane = $3 AND priority = $4 AND due_at <= {{now}} ORDER BY due_at, id LIMIT $5)
    RETURNING {_TAKEN}
    """,
    postgres="SELECT 1",
)
PAY_SQLITE = db.Sql("UPDATE lane SET tokens = tokens - $2 WHERE name = $1 AND tokens IS NOT NULL")
BEAT = db.Sql(
    """UPDATE job SET beat = beat + 1, lease_until = {after:$2}
    WHERE id IN ({ids:$3}) AND owner = $1 AND status = 'Running' RETURNING id, fence"""
)
SAVE = db.Sql(
    """UPDATE job SET run_state = $3, crashes = 0 WHERE id = $1 AND fence = $2 AND status = 'Running' RETURNING id"""
)
EXPIRED = db.Sql(
    """SELECT id, type, fence, beat, owner, certificate_id FROM job
    WHERE lease_until IS NOT NULL AND lease_until <= {now} ORDER BY lease_until LIMIT 500"""
)


async def claim(owner: str, lane: str, *, limit: int, lease: timedelta) -> list[Claimed]:
    """Take the best due jobs of an open lane for ``owner``: at most ``limit``, and no more than there is room for."""
    seconds = lease.total_seconds()
    async with db.transaction():
        if db.dialect() == "postgres":
            rows = await db.fetch(CLAIM_POSTGRES, owner, seconds, lane, limit)
        else:
            rows = await _claim_sqlite(owner, seconds, lane, limit)
        await record(
            _event(row, "", JobState.RUNNING, SYSTEM, {"attempt": row["attempts"], "worker": owner}) for row in rows
        )
    return [Claimed.of(row) for row in rows]


async def _claim_sqlite(owner: str, seconds: float, lane: str, limit: int) -> list[db.Row]:
    rows: list[db.Row] = []
    for room in await db.fetch(ROOM_SQLITE, lane, limit):
        for priority in PRIORITIES:
            if (left := room["places"] - len(rows)) > 0:
                rows += await db.fetch(CLAIM_SQLITE, owner, seconds, lane, priority, left)
        if rows:
            await db.fetch(PAY_SQLITE, lane, len(rows))
    return rows


async def beat(owner: str, ids: Iterable[str], *, lease: timedelta) -> dict[str, int]:
    """Extend the leases of ``ids`` in one statement; return the fence of each that is still ``owner``'s."""
    rows = await db.fetch(BEAT, owner, lease.total_seconds(), json.dumps(list(ids)))
    return {row["id"]: row["fence"] for row in rows}


async def save(job: Claimed, state: Mapping[str, Any]) -> None:
    """Replace the job's saved state, durably, under its fence.

    Raises:
        LeaseLost: another owner has the job.
    """
    if not await db.fetch(SAVE, job.id, job.fence, json.dumps(state)):
        raise LeaseLost(f"job {job.id} is not ours any more")


def mine(job: Claimed) -> Combinable:
    """The condition that ``job`` is still run by whoever claimed it."""
    return (Job.id == job.id) & (Job.fence == job.fence)


async def end(job: Claimed, new: JobState, **facts: Any) -> None:
    """Move a claimed job on, under its fence.

    Raises:
        LeaseLost: another owner has it; nothing was written.
    """
    if not await move(mine(job), JobState.RUNNING, new, **facts):
        raise LeaseLost(f"job {job.id} is not ours any more")


async def release(where: Combinable, *, reason: str, crashed: bool = True) -> list[db.Row]:
    """Give back running jobs whose owner is gone: agents' to their agent, others to the next worker.

    One whose owner crashed for the third time in a row, with nothing saved in between, fails instead.
    """
    now, note = datetime.now(UTC), {"reason": reason}
    worn: dict[str, Any] = {"note": note, "last_error": WORN, "crashes": 0}
    again: dict[str, Any] = {"note": note} | ({"crashes": Job.crashes + 1} if crashed else {})
    agents = Job.type == JobType.DEPLOYMENT
    workers = Job.type != JobType.DEPLOYMENT
    last = Job.crashes >= (CRASHES - 1 if crashed else 1_000_000)
    async with db.transaction():
        moved = await move(where & workers & last, JobState.RUNNING, JobState.FAILED, **worn)
        moved += await move(where & agents & last, JobState.RUNNING, JobState.FAILED, **worn, next_retry_at=now)
        moved += await move(where & agents, JobState.RUNNING, JobState.PENDING, **again, offer_at=now)
        moved += await move(where & workers, JobState.RUNNING, JobState.PENDING, **again, due_at=now)
    return moved


async def requeue(where: Combinable, *, actor: Actor = SYSTEM, **facts: Any) -> list[db.Row]:
    """Put failed jobs back into their queues: deployments and orders without a CSR to their agents, others to workers.

    ``facts`` are columns to set in the same breath.
    """
    now = db.now()
    again: dict[str, Any] = {"actor": actor, "scheduled_at": now, **facts}
    unanswered = Job.type.is_in(list(ORDERS)) & (Job.csr_sha256 == "")
    answered = Job.type.not_in(list(ORDERS)) | (Job.csr_sha256 != "")
    deployments, others = Job.type == JobType.DEPLOYMENT, Job.type != JobType.DEPLOYMENT
    async with db.transaction():
        moved = await move(where & deployments, JobState.FAILED, JobState.PENDING, **again, offer_at=now)
        moved += await move(where & others & answered, JobState.FAILED, JobState.PENDING, **again, due_at=now)
        waiting = await move(where & unanswered, JobState.FAILED, JobState.PENDING, **again)
        if waiting:
            ids = Job.id.is_in([row["id"] for row in waiting])
            moved += await move(ids, JobState.PENDING, JobState.AWAITING_CSR, actor=actor, offer_at=now)
    return moved


async def retry_due(now: datetime) -> list[db.Row]:
    """Put failed jobs whose time has come back into their queues."""
    return await requeue(Job.next_retry_at.is_not_null() & (Job.next_retry_at <= now))


async def cancel(where: Combinable, *, actor: Actor, reason: str, states: Sequence[JobState] = ()) -> list[db.Row]:
    """Cancel every open job that matches, or those in ``states``; one that runs loses its lease and so its task."""
    moved: list[db.Row] = []
    open_states = states or (JobState.PENDING, JobState.AWAITING_CSR, JobState.AWAITING_APPROVAL, JobState.RUNNING)
    async with db.transaction():
        for old in open_states:
            moved += await move(where, old, JobState.CANCELLED, actor=actor, last_error=reason, fence=Job.fence + 1)
        if not states:
            waiting = where & Job.place.is_not_null()
            moved += await move(waiting, JobState.FAILED, JobState.CANCELLED, actor=actor, last_error=reason)
    return moved
