"""The one place that writes ``job.status``: moves of sets of rows, and the claims, beats and saves of workers.

Every move is a compare-and-set with its audit rows in the same transaction. A row that is missing from an
answer was taken by someone else.

Step 10 of the main flow (docs/main-flow.md).
"""

# ruff: noqa: S608  # the parts that statements share are ours, values are parameters
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from certctl_core.job import ORDERS, JobState, JobType, check
from certctl_core.run import LeaseLost
from piccolo.columns import Column
from piccolo.custom_types import Combinable

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.jobs import bell, budgets, lanes
from certctl_server.jobs.priorities import FREE
from certctl_server.jobs.tables import Job
from certctl_server.telemetry import metrics

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
    Job.version_id, Job.failures, Job.request, Job.next_retry_at, Job.opens_at, Job.scheduled_at, Job.started_at,
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
        if new in metrics.ENDS:
            db.after_commit(lambda: metrics.jobs_ended(moved, new, db.now(), ran=old is JobState.RUNNING))
    return list(moved)


def _follows(new: JobState, facts: Mapping[str, Any]) -> dict[Column | str, Any]:
    idle: dict[Column | str, Any] = {
        "owner": "",
        "lease_until": None,
        "due_at": None,
        "offer_at": None,
        "waits_for": "",
    }
    again: dict[Column | str, Any] = {"priority": Job.urgency}
    if new in ENDED or (new is JobState.FAILED and facts.get("next_retry_at") is None):
        now = db.now()
        free: dict[Column | str, Any] = {"place": None, "next_retry_at": None, "opens_at": None, "window_at": None}
        return {**idle, **free, **again, "urgent_at": None, "completed_at": now, "kept_since": now}
    if new is JobState.FAILED:
        return {**idle, **again, "completed_at": db.now()}
    if new is JobState.PENDING:
        return {**idle, "next_retry_at": None, "completed_at": None, "kept_since": None}
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
    started_at = {now}, lease_until = {after:$2}, waits_for = ''"""
# What comes back without having failed, from a crash or to be asked about again, has its room in the budget already.
_SET += f", priority = {FREE}"
_TAKEN = """id, type, lane, fence, attempts, certificate_id, issuer_id, agent_id, request, run_state, csr_pem,
    requested_by, traceparent, failures, max_attempts, target_id"""
CLAIM_POSTGRES = db.Sql(
    postgres=f"""
    WITH pick AS ({re.sub(r"[$]([0-9])", lambda at: f"${int(at[1]) + 2}", lanes.BEST_POSTGRES)})
    UPDATE job SET {_SET} FROM pick WHERE job.id = pick.id
    RETURNING {", ".join(f"job.{name.strip()}" for name in _TAKEN.split(","))}, pick.priority, pick.due_at
    """,
    sqlite="SELECT 1",
)
# Claimed at the moment at which their room in the budget was taken: by that it is told which are on their way.
CLAIM_THESE = db.Sql(
    f"""
    UPDATE job SET {_SET.replace("started_at = {now}", "started_at = $4")}
    WHERE id IN ({{ids:$3}}) AND due_at IS NOT NULL RETURNING {_TAKEN}
    """
)
AHEAD = 200
"""How many due jobs are looked at together where those in front turned out to have no room in the budget."""
SPARE = 5
ROUNDS = 10
OURS = db.Sql("SELECT id, fence FROM job WHERE id IN ({ids:$2}) AND owner = $1 AND status = 'Running'")
BEAT = db.Sql(
    """UPDATE job SET beat = beat + 1, lease_until = {after:$2}
    WHERE id IN ({ids:$3}) AND owner = $1 AND status = 'Running' RETURNING id, fence"""
)
SAVE = db.with_rows(
    {"job": "text", "at": "bigint", "state": "text"},
    """
    UPDATE job SET run_state = row.state, crashes = 0 FROM {row}
    WHERE job.id = row.job AND job.fence = row.at AND job.status = 'Running' RETURNING id
    """,
)
# Whose rows these are stays so until the transaction ends.
RESULT = db.with_rows(
    {"job": "text", "at": "bigint", "version": "text", "told": "text"},
    """
    UPDATE job SET version_id = row.version, result = row.told FROM {row}
    WHERE job.id = row.job AND job.fence = row.at AND job.status = 'Running' RETURNING id
    """,
)
UNTIL_OPEN = db.Sql(
    """UPDATE job SET scheduled_at = opens_at, offer_at = CASE WHEN offer_at IS NOT NULL THEN opens_at END
    WHERE id IN ({ids:$1}) AND opens_at > {now}"""
)
EXPIRED = db.Sql(
    """SELECT id, type, fence, beat, owner, certificate_id FROM job
    WHERE lease_until IS NOT NULL AND lease_until <= {now} ORDER BY lease_until"""
)


async def claim(owner: str, lane: str, *, limit: int, lease: timedelta, usual: int | None = None) -> list[Claimed]:
    """Take the best due jobs of an open lane for ``owner``: at most ``limit``, and no more than there is room for.

    That is ``usual`` at once in a lane that says nothing else.
    """
    async with db.transaction():
        if (room := await lanes.room(lane, limit, usual)) is None:
            return []
        seconds = lease.total_seconds()
        if room.rates:
            rows = await _claim_in_budget(owner, seconds, room)
        elif db.dialect() == "postgres":
            rows = await db.fetch(CLAIM_POSTGRES, owner, seconds, lane, room.now, room.places, room.most)
            rows.sort(key=lambda row: (row["priority"], row["due_at"], row["id"]))
        else:
            best = [row["id"] for row in await lanes.look(room, room.places)]
            rows = await _claim_these(owner, seconds, room.now, best)
        await record(
            _event(row, "", JobState.RUNNING, SYSTEM, {"attempt": row["attempts"], "worker": owner}) for row in rows
        )
    return [Claimed.of(row) for row in rows]


async def _claim_these(owner: str, seconds: float, now: datetime, ids: Sequence[str]) -> list[db.Row]:
    if not ids:
        return []
    rows = {row["id"]: row for row in await db.fetch(CLAIM_THESE, owner, seconds, json.dumps(ids), now)}
    return [rows[id] for id in ids if id in rows]


async def _claim_in_budget(owner: str, seconds: float, room: lanes.Room) -> list[db.Row]:
    """Claim what there is room for; what there is none for waits elsewhere, and the next ones are looked at."""
    claimed: list[db.Row] = []
    await budgets.arrived(room.lane, room.oldest, room.now)
    for turn in range(ROUNDS):
        left = room.places - len(claimed)
        ahead = AHEAD if turn else left + SPARE
        rows = await lanes.look(room, ahead)
        choice = await budgets.choose(room.lane, room.rates, rows, places=left, now=room.now)
        claimed += await _claim_these(owner, seconds, room.now, choice.take)
        if choice.room_at is not None:
            await lanes.close(room.lane, choice.room_at)
            return claimed
        done = len(choice.take) + len(choice.later)
        if len(claimed) >= room.places or done == 0 or (done == len(rows) < ahead):
            return claimed
    bell.ring(room.lane)  # others have a turn before the rest is looked at
    return claimed


async def beat(owner: str, ids: Iterable[str], *, lease: timedelta) -> dict[str, int]:
    """Extend the leases of ``ids`` in one statement; return the fence of each that is still ``owner``'s."""
    rows = await db.fetch(BEAT, owner, lease.total_seconds(), json.dumps(list(ids)))
    return {row["id"]: row["fence"] for row in rows}


async def ours(owner: str, ids: Iterable[str]) -> dict[str, int]:
    """Return the fence of each of ``ids`` that is still ``owner``'s."""
    rows = await db.fetch(OURS, owner, json.dumps(list(ids)))
    return {row["id"]: row["fence"] for row in rows}


async def save(job: Claimed, state: Mapping[str, Any]) -> None:
    """Replace the job's saved state, durably, under its fence.

    Raises:
        LeaseLost: another owner has the job.
    """
    await _save((job, json.dumps(state)))


async def _save_all(asked: list[tuple[Claimed, str]]) -> list[LeaseLost | None]:
    rows = [{"job": job.id, "at": job.fence, "state": state} for job, state in asked]
    saved = {row["id"] for row in await db.fetch(SAVE, json.dumps(rows))}
    return [None if job.id in saved else lost(job) for job, _ in asked]


_save = db.Together(_save_all, apart=True)


def lost(job: Claimed) -> LeaseLost:
    """Return the error of whoever writes for a job that another owner has."""
    return LeaseLost(f"job {job.id} is not ours any more")


async def complete(orders: Iterable[tuple[Claimed, str]]) -> set[str]:
    """Complete claimed orders under their fences, each with its version; return the ids of those that were ours."""
    rows = [
        {"job": job.id, "at": job.fence, "version": version_id, "told": json.dumps({"version_id": version_id})}
        for job, version_id in orders
    ]
    async with db.transaction():
        ours = [row["id"] for row in await db.fetch(RESULT, json.dumps(rows))]
        moved = await move(Job.id.is_in(ours), JobState.RUNNING, JobState.COMPLETED, last_error="") if ours else []
    return {row["id"] for row in moved}


def mine(job: Claimed) -> Combinable:
    """The condition that ``job`` is still run by whoever claimed it."""
    return (Job.id == job.id) & (Job.fence == job.fence)


async def end(job: Claimed, new: JobState, **facts: Any) -> list[db.Row]:
    """Move a claimed job on, under its fence; return it as ``move`` does.

    Raises:
        LeaseLost: another owner has it; nothing was written.
    """
    if not (moved := await move(mine(job), JobState.RUNNING, new, **facts)):
        raise lost(job)
    return moved


async def release(where: Combinable, *, reason: str, crashed: bool = True) -> list[db.Row]:
    """Give back running jobs whose owner is gone: agents' to their agent, others to the next worker.

    One whose owner crashed for the third time in a row, with nothing saved in between, fails instead.
    """
    now, note = db.now(), {"reason": reason}
    worn: dict[str, Any] = {"note": note, "last_error": WORN, "crashes": 0}
    again: dict[str, Any] = {"note": note} | ({"crashes": Job.crashes + 1} if crashed else {})
    agents = Job.type == JobType.DEPLOYMENT
    workers = Job.type != JobType.DEPLOYMENT
    # Agents are waited for from now on, however long ago they began (certificates/rollout_state.py).
    offered: dict[str, Any] = {"offer_at": now, "scheduled_at": now}
    last = Job.crashes >= (CRASHES - 1 if crashed else 1_000_000)
    async with db.transaction():
        moved = await move(where & workers & last, JobState.RUNNING, JobState.FAILED, **worn)
        moved += await move(where & agents & last, JobState.RUNNING, JobState.FAILED, **worn, next_retry_at=now)
        moved += await until_open(await move(where & agents, JobState.RUNNING, JobState.PENDING, **again, **offered))
        moved += await move(where & workers, JobState.RUNNING, JobState.PENDING, **again, due_at=now)
    return moved


async def requeue(where: Combinable, *, actor: Actor = SYSTEM, **facts: Any) -> list[db.Row]:
    """Put failed jobs back into their queues: deployments and orders without a CSR to their agents, others to workers.

    ``facts`` are columns to set in the same breath. Outside of their maintenance windows they wait in Pending; an
    order that has its CSR is past that.
    """
    now = db.now()
    again: dict[str, Any] = {"actor": actor, "scheduled_at": now, **facts}
    unanswered = Job.type.is_in(list(ORDERS)) & (Job.csr_sha256 == "")
    answered = Job.type.not_in(list(ORDERS)) | (Job.csr_sha256 != "")
    deployments, others = Job.type == JobType.DEPLOYMENT, Job.type != JobType.DEPLOYMENT
    async with db.transaction():
        moved = await until_open(
            await move(where & deployments, JobState.FAILED, JobState.PENDING, **again, offer_at=now)
        )
        moved += await move(where & others & answered, JobState.FAILED, JobState.PENDING, **again, due_at=now)
        unasked = await until_open(await move(where & unanswered, JobState.FAILED, JobState.PENDING, **again))
        moved += [row for row in unasked if is_early(row)]
        if waiting := [row for row in unasked if not is_early(row)]:
            ids = Job.id.is_in([row["id"] for row in waiting])
            moved += await move(ids, JobState.PENDING, JobState.AWAITING_CSR, actor=actor, offer_at=now)
    return moved


def is_early(row: db.Row) -> bool:
    """Whether a job waits for its maintenance window to begin."""
    return row["opens_at"] is not None and row["opens_at"] > db.now()


async def until_open(moved: list[db.Row]) -> list[db.Row]:
    """Let jobs that became Pending outside of their maintenance windows wait for the next one; return all."""
    if early := [row["id"] for row in moved if is_early(row)]:
        await db.fetch(UNTIL_OPEN, json.dumps(early))
    return moved


async def retry_due(now: datetime) -> list[db.Row]:
    """Put failed jobs whose time has come back into their queues."""
    return await requeue(Job.next_retry_at.is_not_null() & (Job.next_retry_at <= now))


_watchers: set[Callable[[set[str]], object]] = set()


def watch_cancelled(watcher: Callable[[set[str]], object]) -> Callable[[], None]:
    """Tell ``watcher`` the ids of jobs that are cancelled here while they run; return what ends that."""
    _watchers.add(watcher)
    return lambda: _watchers.discard(watcher)


def _tell_watchers(ids: set[str]) -> None:
    db.after_commit(lambda: [watcher(ids) for watcher in list(_watchers)])


async def cancel(where: Combinable, *, actor: Actor, reason: str, states: Sequence[JobState] = ()) -> list[db.Row]:
    """Cancel every open job that matches, or those in ``states``; one that runs loses its lease and so its task.

    Who runs it in this process is told as soon as that is committed, others find out within a second.
    """
    moved: list[db.Row] = []
    open_states = states or (JobState.PENDING, JobState.AWAITING_CSR, JobState.AWAITING_APPROVAL, JobState.RUNNING)
    async with db.transaction():
        for old in open_states:
            some = await move(where, old, JobState.CANCELLED, actor=actor, last_error=reason, fence=Job.fence + 1)
            if some and old is JobState.RUNNING:
                _tell_watchers({row["id"] for row in some})
            moved += some
        if not states:
            waiting = where & Job.place.is_not_null()
            moved += await move(waiting, JobState.FAILED, JobState.CANCELLED, actor=actor, last_error=reason)
    return moved
