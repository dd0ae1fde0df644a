"""What agents say: that they live, how far a job is, what they saw served."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from certctl_core.job import ORDER_PACE, Cause, JobState, JobType, retry_wait

from certctl_server import db
from certctl_server.agents.budget import may_start, vacated
from certctl_server.agents.health import AgentStatus, status_of
from certctl_server.agents.matching import KEYS, agent_keys
from certctl_server.agents.proof import landed, will_look
from certctl_server.audit.record import Actor, Event, record
from certctl_server.certificates.rollout_state import poke
from certctl_server.certificates.status import TRIES, hold, hold_of, settle
from certctl_server.errors import conflict, not_found
from certctl_server.jobs import bell
from certctl_server.jobs.failure import failed
from certctl_server.jobs.state import move, release
from certctl_server.jobs.tables import Job
from certctl_server.notices.tell import Notice, tell

#: What an agent may say of itself.
SAID = ("version", "hostname", "os", "architecture", "ip_address")
BEAT = db.update_rows(
    "agent",
    "id",
    {
        "last_heartbeat_at": "timestamptz",
        **dict.fromkeys((*SAID, "capabilities", "boot_id", "status", *KEYS), "text"),
        "clock_offset_ms": "bigint",
    },
)
ANEW = db.Sql(
    """
    UPDATE job SET offer_at = {now}, offered_until = NULL WHERE agent_id = $1 AND offer_at > {now}
        AND (opens_at IS NULL OR opens_at <= {now})
    """
)
OF_AGENT = db.Sql(
    """
    SELECT j.id, j.type, j.status, j.certificate_id, j.target_id, j.version_id, j.failures, j.max_attempts, j.owner,
        j.csr_sha256, j.verification_status, j.verification_fingerprint, j.offered_until > {now} AS is_offered,
        v.not_before, v.not_after, v.fingerprint_sha256, c.name, p.retry_interval_seconds,
        coalesce(m.failures, 0) AS missed, a.capabilities, t.config
    FROM job j JOIN certificate c ON c.id = j.certificate_id JOIN renewal_policy p ON p.id = c.renewal_policy_id
        JOIN agent a ON a.id = j.agent_id LEFT JOIN certificate_version v ON v.id = j.version_id
        LEFT JOIN target t ON t.id = j.target_id
        LEFT JOIN certificate_target m ON m.certificate_id = j.certificate_id AND m.target_id = j.target_id
    WHERE j.id = $1 AND j.agent_id = $2
    """
)
EXTEND = db.Sql("UPDATE job SET lease_until = {after:$3}, beat = beat + 1 WHERE id = $1 AND owner = $2 RETURNING id")
LEASE = db.Sql("UPDATE job SET lease_until = {after:$2} WHERE id = $1")
STAYED = db.Sql(
    """
    UPDATE certificate_target SET state = 'failed', failures = failures + 1, last_job_id = $3
    WHERE certificate_id = $1 AND target_id = $2 RETURNING failures
    """
)
# Why a rollout was halted stays to be read, also when what it had changed is put back.
DEPLOYED = db.Sql(
    """
    UPDATE certificate SET last_deployment_at = {now}, last_error = CASE WHEN EXISTS (
        SELECT 1 FROM rollout r WHERE r.certificate_id = $1 AND r.status = 'Halted') THEN last_error ELSE '' END
    WHERE id = $1
    """
)


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: empty texts keep what is known."""

    said: Mapping[str, str]
    capabilities: list[str] | None = None
    local_time: datetime | None = None
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """How far an agent is with a job."""

    status: JobState
    error: str = ""
    error_kind: str = ""


async def heartbeat(agent: db.Row, beat: Beat) -> datetime:
    """Note that an agent lives; a new ``boot_id`` ends every lease of its former run at once."""
    now = db.now()
    said = {name: beat.said.get(name) or agent[name] for name in SAID}
    known = json.dumps(beat.capabilities) if beat.capabilities is not None else agent["capabilities"]
    offset = round((beat.local_time - now).total_seconds() * 1000) if beat.local_time else agent["clock_offset_ms"]
    status = status_of(now, offset, [], now)
    # What its last jobs say is the health loop's to know: a heartbeat alone does not clear it.
    if agent["status"] == AgentStatus.DEGRADED:
        status = AgentStatus.DEGRADED
    row = {"id": agent["id"], "last_heartbeat_at": str(now), **said, **agent_keys(said), "capabilities": known}
    row |= {"clock_offset_ms": offset, "boot_id": beat.boot_id or agent["boot_id"], "status": status}
    if row["boot_id"] == agent["boot_id"] and known == agent["capabilities"]:
        await _note(row)
        return now
    async with db.transaction():
        await _note(row)
        if agent["boot_id"] and row["boot_id"] != agent["boot_id"]:
            await _restarted(agent["id"])
        elif known != agent["capabilities"]:
            await db.fetch(ANEW, agent["id"])  # it may be able to do what was kept back
    return now


async def _note_all(rows: list[db.Row]) -> list[None]:
    by_id = {row["id"]: row for row in rows}
    # In the order in which every server would lock them.
    await db.fetch(BEAT, json.dumps([by_id[id] for id in sorted(by_id)]))
    return [None] * len(rows)


_note = db.Together(_note_all, apart=True)


async def _restarted(agent_id: str) -> None:
    where = (Job.agent_id == agent_id) & (Job.owner == owner_of(agent_id))
    await hold_of(where & (Job.status == JobState.RUNNING))
    moved = await release(where, reason="the agent started again")
    await db.fetch(ANEW, agent_id)
    await vacated(agent_id)
    await settle({row["certificate_id"] for row in moved if row["certificate_id"]})
    bell.ring_agent(agent_id)
    bell.poke("job retry")


def owner_of(agent_id: str) -> str:
    """Return what ``job.owner`` says while an agent runs a job."""
    return f"agent:{agent_id}"


async def report(agent_id: str, job_id: str, said: Report, lease: timedelta, actor: Actor) -> None:
    """Note how far an agent is with one of its jobs; the same report again changes nothing.

    Raises:
        Refused: 404 for a job that is not this agent's, 409 for a step that no job in its state can take.
    """
    async with db.transaction():
        row = await _held(agent_id, job_id)
        open_deployment = row["type"] == JobType.DEPLOYMENT and row["status"] in {JobState.PENDING, JobState.RUNNING}
        if said.status is JobState.RUNNING:
            if row["status"] == JobState.PENDING and not row["is_offered"] and not await may_start(agent_id):
                raise conflict("The offer has run out, and others of the agent's group took its place: it comes again")
            await _running(agent_id, row, lease, actor)
        elif row["status"] == said.status:
            return
        elif open_deployment:
            await _running(agent_id, row, lease, actor)
            await (_deployed(row, actor) if said.status is JobState.COMPLETED else _not_deployed(row, said, actor))
            await vacated(agent_id)
        elif said.status is JobState.FAILED and row["status"] == JobState.AWAITING_CSR and not row["csr_sha256"]:
            await _no_csr(row, said, actor)
        else:
            raise conflict(f"The job is {row['status']} and cannot become {said.status}")
        if row["status"] != said.status:
            told = {"from": row["status"], "to": said.status} | ({"error": said.error} if said.error else {})
            await record([Event(actor, "job_status_reported", "job", job_id, told)])


async def _held(agent_id: str, job_id: str) -> db.Row:
    """Return the agent's job as it is while nobody else can change its certificate."""
    if not (rows := await db.fetch(OF_AGENT, job_id, agent_id)):
        raise not_found("Job")
    await hold([rows[0]["certificate_id"]])
    [row] = await db.fetch(OF_AGENT, job_id, agent_id)
    return row


async def _running(agent_id: str, row: db.Row, lease: timedelta, actor: Actor) -> None:
    owner, seconds = owner_of(agent_id), lease.total_seconds()
    if row["status"] == JobState.RUNNING and await db.fetch(EXTEND, row["id"], owner, seconds):
        return
    if row["type"] != JobType.DEPLOYMENT or row["status"] != JobState.PENDING:
        raise conflict(f"The job is {row['status']} and cannot become Running")
    started: dict[str, Any] = {
        "owner": owner,
        "fence": Job.fence + 1,
        "attempts": Job.attempts + 1,
        "started_at": db.now(),
        "offer_at": None,
        "offered_until": None,
    }
    async with db.transaction():
        where = (Job.id == row["id"]) & (Job.agent_id == agent_id)
        if not await move(where, JobState.PENDING, JobState.RUNNING, actor=actor, **started):
            raise conflict("The job was taken by another run of this agent")
        await db.fetch(LEASE, row["id"], seconds)


async def _deployed(row: db.Row, actor: Actor) -> None:
    """Completed: served if a handshake said so, a mismatch if it said otherwise, else deployed, or awaiting a look."""
    facts: dict[str, Any] = {}
    if row["verification_status"] == "pending" and not will_look(row):
        facts["verification_status"] = row["verification_status"] = "skipped"
    await _must(
        await move(Job.id == row["id"], JobState.RUNNING, JobState.COMPLETED, actor=actor, last_error="", **facts)
    )
    await db.fetch(DEPLOYED, row["certificate_id"])
    await landed(row)


async def _not_deployed(row: db.Row, said: Report, actor: Actor) -> None:
    """Failed: everything is as it was, and the same job is tried again."""
    cause = Cause(said.error_kind) if said.error_kind else Cause.DEPLOYMENT
    failures = row["failures"] + 1
    wait = _wait(JobType.DEPLOYMENT, cause, failures)
    error = said.error or "the agent reported a failure without a cause"
    async with db.transaction():
        facts: dict[str, Any] = {
            "last_error": error,
            "failures": failures,
            "crashes": 0,
            "verification_status": "pending",
        }
        if wait is not None:
            facts["next_retry_at"] = db.now() + wait
        moved = await move(Job.id == row["id"], JobState.RUNNING, JobState.FAILED, actor=actor, **facts)
        await _must(moved)
        stayed = await db.fetch(STAYED, row["certificate_id"], row["target_id"], row["id"])
        await failed(moved, error)
        await poke([row["certificate_id"]])
        if stayed and stayed[0]["failures"] == TRIES:
            subject = f"{row['name']} is not deployed to {row['target_id']}"
            occurrence = f"{row['version_id']}|{row['target_id']}"
            notice = Notice("DeploymentFailure", row["certificate_id"], subject, error, "critical", occurrence)
            await tell(notice)


async def _no_csr(row: db.Row, said: Report, actor: Actor) -> None:
    cause = Cause(said.error_kind) if said.error_kind else Cause.TRANSIENT
    failures = row["failures"] + 1
    error = said.error or "the agent could not make a CSR and said nothing more"
    facts: dict[str, Any] = {"last_error": error, "failures": failures}
    cap = timedelta(seconds=row["retry_interval_seconds"])
    wait = _wait(JobType(row["type"]), cause, failures, cap) if failures < row["max_attempts"] else None
    if wait is not None:
        facts["next_retry_at"] = db.now() + wait
    moved = await move(Job.id == row["id"], JobState.AWAITING_CSR, JobState.FAILED, actor=actor, **facts)
    await _must(moved)
    await failed(moved, error)


def _wait(kind: JobType, cause: Cause, failures: int, cap: timedelta = ORDER_PACE) -> timedelta | None:
    return retry_wait(kind, cause, failures, cap=cap, retry_after=None, jitter=random.random())  # a spread


async def _must(moved: list[db.Row]) -> None:
    if not moved:
        raise conflict("The job was moved on by somebody else")


async def retrieved(agent_id: str, certificate_id: str, actor: Actor) -> None:
    """Note that an agent fetched a certificate."""
    await record([Event(actor, "certificate_retrieved", "certificate", certificate_id, {"agent_id": agent_id})])
