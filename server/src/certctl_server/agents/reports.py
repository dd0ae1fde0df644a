"""What agents say: that they live, how far a job is, what they saw served."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from certctl_core.certificate import DeploymentState
from certctl_core.job import Cause, JobState, JobType, retry_wait

from certctl_server import db
from certctl_server.agents.health import AgentStatus, status_of
from certctl_server.audit.record import Actor, Event, audited, record
from certctl_server.certificates.status import TRIES, settle
from certctl_server.errors import conflict, invalid, not_found
from certctl_server.jobs import bell
from certctl_server.jobs.state import move, release
from certctl_server.jobs.tables import Job
from certctl_server.notices.tell import Notice, tell

HOUR = timedelta(hours=1)
BEAT = db.Sql(
    """
    UPDATE agent SET last_heartbeat_at = $2, version = $3, hostname = $4, os = $5, architecture = $6, ip_address = $7,
        capabilities = $8, clock_offset_ms = $9, boot_id = $10, status = $11 WHERE id = $1
    """
)
ANEW = db.Sql("UPDATE job SET offer_at = {now} WHERE agent_id = $1 AND offer_at > {now}")
OF_AGENT = db.Sql(
    """
    SELECT j.id, j.type, j.status, j.certificate_id, j.target_id, j.version_id, j.failures, j.max_attempts, j.owner,
        j.verification_status, j.verification_fingerprint, v.not_before, v.not_after, v.fingerprint_sha256, c.name
    FROM job j LEFT JOIN certificate_version v ON v.id = j.version_id LEFT JOIN certificate c ON c.id = j.certificate_id
    WHERE j.id = $1 AND j.agent_id = $2
    """
)
EXTEND = db.Sql("UPDATE job SET lease_until = {after:$3}, beat = beat + 1 WHERE id = $1 AND owner = $2 RETURNING id")
LEASE = db.Sql("UPDATE job SET lease_until = {after:$2} WHERE id = $1")
ARRIVED = db.Sql(
    """
    UPDATE certificate_target SET state = $3, failures = $4, version_id = $5, served_fingerprint = $6, not_before = $7,
        not_after = $8, last_job_id = $9, last_deployed_at = {now} WHERE certificate_id = $1 AND target_id = $2
    """
)
STAYED = db.Sql(
    """
    UPDATE certificate_target SET state = 'failed', failures = failures + 1, last_job_id = $3
    WHERE certificate_id = $1 AND target_id = $2 RETURNING failures
    """
)
DEPLOYED = db.Sql("UPDATE certificate SET last_deployment_at = {now}, last_error = '' WHERE id = $1")
SAY = db.Sql("UPDATE certificate SET last_error = $2 WHERE id = $1")
VERIFIED = db.Sql(
    """
    UPDATE job SET verification_status = $2, verified_at = {now}, verification_error = $3, verification_fingerprint = $4
    WHERE id = $1
    """
)
#: In order of BEAT's parameters: what an agent may say of itself.
SAID = ("version", "hostname", "os", "architecture", "ip_address")


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
    said = [beat.said.get(name) or agent[name] for name in SAID]
    known = json.dumps(beat.capabilities) if beat.capabilities is not None else agent["capabilities"]
    offset = round((beat.local_time - now).total_seconds() * 1000) if beat.local_time else agent["clock_offset_ms"]
    status = status_of(now, offset, [], now)
    # What its last jobs say is the health loop's to know: a heartbeat alone does not clear it.
    if agent["status"] == AgentStatus.DEGRADED:
        status = AgentStatus.DEGRADED
    boot_id = beat.boot_id or agent["boot_id"]
    async with db.transaction():
        await db.fetch(BEAT, agent["id"], now, *said, known, offset, boot_id, status)
        if beat.boot_id and agent["boot_id"] and beat.boot_id != agent["boot_id"]:
            await _restarted(agent["id"])
    return now


async def _restarted(agent_id: str) -> None:
    where = (Job.agent_id == agent_id) & (Job.owner == owner_of(agent_id))
    moved = await release(where, reason="the agent started again")
    await db.fetch(ANEW, agent_id)
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
    rows = await db.fetch(OF_AGENT, job_id, agent_id)
    if not rows:
        raise not_found("Job")
    row = rows[0]
    if said.status is JobState.RUNNING:
        await _running(agent_id, row, lease, actor)
    elif row["status"] == said.status:
        return
    elif row["type"] == JobType.DEPLOYMENT and row["status"] in {JobState.PENDING, JobState.RUNNING}:
        await _running(agent_id, row, lease, actor)
        if said.status is JobState.COMPLETED:
            await _deployed(row, actor)
        else:
            await _not_deployed(row, said, actor)
    elif said.status is JobState.FAILED and row["status"] == JobState.AWAITING_CSR:
        await _no_csr(row, said, actor)
    else:
        raise conflict(f"The job is {row['status']} and cannot become {said.status}")


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
    }
    async with db.transaction():
        where = (Job.id == row["id"]) & (Job.agent_id == agent_id)
        if not await move(where, JobState.PENDING, JobState.RUNNING, actor=actor, offer_at=None, **started):
            raise conflict("The job was taken by another run of this agent")
        await db.fetch(LEASE, row["id"], seconds)


async def _deployed(row: db.Row, actor: Actor) -> None:
    """Completed: served if a handshake said so, a mismatch if it said otherwise, else deployed."""
    seen = row["verification_status"]
    state = {"success": DeploymentState.SERVED, "failed": DeploymentState.MISMATCH}.get(seen, DeploymentState.DEPLOYED)
    facts: dict[str, Any] = {} if seen in {"success", "failed"} else {"verification_status": "skipped"}
    failures = row["failures"] + 1 if state is DeploymentState.MISMATCH else 0
    served = row["fingerprint_sha256"] if state is DeploymentState.SERVED else row["verification_fingerprint"]
    async with db.transaction():
        where = Job.id == row["id"]
        await _must(await move(where, JobState.RUNNING, JobState.COMPLETED, actor=actor, last_error="", **facts))
        place = (row["version_id"], served, row["not_before"], row["not_after"], row["id"])
        await db.fetch(ARRIVED, row["certificate_id"], row["target_id"], state, failures, *place)
        await db.fetch(DEPLOYED, row["certificate_id"])
        await settle([row["certificate_id"]])


async def _not_deployed(row: db.Row, said: Report, actor: Actor) -> None:
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
        await _must(await move(Job.id == row["id"], JobState.RUNNING, JobState.FAILED, actor=actor, **facts))
        bell.poke("job retry")
        failed = await db.fetch(STAYED, row["certificate_id"], row["target_id"], row["id"])
        await db.fetch(SAY, row["certificate_id"], error)
        await settle([row["certificate_id"]])
        if failed and failed[0]["failures"] == TRIES:
            subject = f"{row['name']} is not deployed to {row['target_id']}"
            occurrence = f"{row['version_id']}|{row['target_id']}"
            notice = Notice("DeploymentFailure", row["certificate_id"], subject, error, "critical", occurrence)
            await tell(notice)


async def _no_csr(row: db.Row, said: Report, actor: Actor) -> None:
    cause = Cause(said.error_kind) if said.error_kind else Cause.TRANSIENT
    failures = row["failures"] + 1
    error = said.error or "the agent could not make a CSR and said nothing more"
    facts: dict[str, Any] = {"last_error": error, "failures": failures}
    if failures < row["max_attempts"] and (wait := _wait(JobType(row["type"]), cause, failures)) is not None:
        facts["next_retry_at"] = db.now() + wait
    async with db.transaction():
        await _must(await move(Job.id == row["id"], JobState.AWAITING_CSR, JobState.FAILED, actor=actor, **facts))
        await db.fetch(SAY, row["certificate_id"], error)
        bell.poke("job retry")
        await settle([row["certificate_id"]])


def _wait(kind: JobType, cause: Cause, failures: int) -> timedelta | None:
    return retry_wait(kind, cause, failures, cap=HOUR, retry_after=None, jitter=random.random())  # a spread


async def _must(moved: list[db.Row]) -> None:
    if not moved:
        raise conflict("The job was moved on by somebody else")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a handshake with a target showed."""

    target_id: str
    expected: str
    actual: str
    verified: bool
    error: str = ""


async def verify(job: db.Row, seen: Seen, actor: Actor) -> tuple[bool, datetime]:
    """Note what is served; the server compares, whatever the agent concluded.

    Raises:
        Refused: 409 for a job that deploys nothing, 400 for another target than the job's.
    """
    if job["type"] != JobType.DEPLOYMENT:
        raise conflict("Only a Deployment can be verified")
    if seen.target_id != job["target_id"]:
        raise invalid({"target_id": "is not the target of this job"})
    good = seen.verified and seen.expected == seen.actual
    error = seen.error or ("" if good else "another certificate is served")
    action = "job_verification_success" if good else "job_verification_failed"
    told = {"target_id": seen.target_id, "expected": seen.expected, "actual": seen.actual, "error": error}
    async with audited(actor, action, "job", job["id"], told):
        await db.fetch(VERIFIED, job["id"], "success" if good else "failed", "" if good else error, seen.actual)
    return good, db.now()


async def retrieved(agent_id: str, certificate_id: str, actor: Actor) -> None:
    """Note that an agent fetched a certificate."""
    await record([Event(actor, "certificate_retrieved", "certificate", certificate_id, {"agent_id": agent_id})])
