"""What is served after a deployment: agents look, the server compares, and what was not seen is presumed in time."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from certctl_core.certificate import DeploymentState
from certctl_core.job import Cause, JobState, JobType, retry_wait

from certctl_server import db
from certctl_server.agents.health import is_plain
from certctl_server.audit.record import SYSTEM, Actor, Event, audited, record
from certctl_server.certificates.rollout_state import poke
from certctl_server.certificates.status import TRIES, hold, settle
from certctl_server.certificates.versions import deploy, fitting
from certctl_server.errors import conflict, invalid
from certctl_server.leader import Leadership
from certctl_server.notices.tell import Notice, tell

PATIENCE = timedelta(minutes=5)
"""How long an agent may take to say what is served before it counts as not looked at."""
ADDRESSES = ("host", "hostname", "target", "address")
"""Options of a target in which a plain agent finds where to look."""
OF_JOBS = db.Sql(
    """
    SELECT j.id, j.status, j.certificate_id, j.target_id, j.version_id, j.verification_status,
        j.verification_fingerprint, v.not_before, v.not_after, v.fingerprint_sha256, c.name,
        coalesce(m.failures, 0) AS missed
    FROM job j JOIN certificate c ON c.id = j.certificate_id JOIN certificate_version v ON v.id = j.version_id
        JOIN certificate_target m ON m.certificate_id = j.certificate_id AND m.target_id = j.target_id
    WHERE j.id IN ({ids:$1}) AND m.last_job_id = j.id
    """
)
ARRIVED = db.Sql(
    """
    UPDATE certificate_target SET state = $3, failures = $4, version_id = $5, served_fingerprint = $6, not_before = $7,
        not_after = $8, last_job_id = $9, last_deployed_at = {now} WHERE certificate_id = $1 AND target_id = $2
    """
)
VERIFIED = db.Sql(
    """
    UPDATE job SET verification_status = $2, verified_at = {now}, verification_error = $3, verification_fingerprint = $4
    WHERE id = $1
    """
)
UNSEEN = db.Sql(
    """
    SELECT id, certificate_id FROM job
    WHERE type = 'Deployment' AND status = 'Completed' AND verification_status = 'pending' AND completed_at <= $1
        ORDER BY completed_at LIMIT 500
    """
)
SKIP = db.Sql(
    """
    UPDATE job SET verification_status = 'skipped' WHERE id IN ({ids:$1}) AND verification_status = 'pending'
    RETURNING id
    """
)
NEXT_UNSEEN = db.Sql(
    """
    SELECT min(completed_at) AS at FROM job WHERE type = 'Deployment' AND status = 'Completed'
        AND verification_status = 'pending'
    """
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a handshake with a target showed."""

    target_id: str
    expected: str
    actual: str
    verified: bool
    error: str = ""


def will_look(row: db.Row) -> bool:
    """Whether the agent of a Deployment may still say what is served, after it reported Completed.

    Ours looks before it reports. A plain agent looks where its target's options name an address.
    """
    options = json.loads(row["config"] or "{}")
    return is_plain(row) and any(options.get(name) for name in ADDRESSES)


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
    status = "success" if good else "failed"
    error = "" if good else seen.error or "another certificate is served"
    action = f"job_verification_{status}"
    told = {"target_id": seen.target_id, "expected": seen.expected, "actual": seen.actual, "error": error}
    async with audited(actor, action, "job", job["id"], told):
        await hold([job["certificate_id"]])
        before = await db.fetch(OF_JOBS, json.dumps([job["id"]]))
        await db.fetch(VERIFIED, job["id"], status, error, seen.actual)
        for row in before:
            if row["status"] == JobState.COMPLETED and row["verification_status"] != status:
                await landed(row | {"verification_status": status, "verification_fingerprint": seen.actual})
    return good, db.now()


async def landed(row: db.Row) -> None:
    """Note on a target that a deployment came to its end there, as far as its ``verification_status`` says.

    Where something else is served, the deployment is tried again with backoff, and people are told after the third.
    """
    state = {
        "success": DeploymentState.SERVED,
        "failed": DeploymentState.MISMATCH,
        "skipped": DeploymentState.DEPLOYED,
    }.get(row["verification_status"], DeploymentState.PENDING)
    missed = row["missed"] + 1 if state is DeploymentState.MISMATCH else row["missed"]
    failures = 0 if state in {DeploymentState.SERVED, DeploymentState.DEPLOYED} else missed
    served = row["fingerprint_sha256"] if state is DeploymentState.SERVED else row["verification_fingerprint"]
    life = (row["not_before"], row["not_after"])
    await db.fetch(
        ARRIVED, row["certificate_id"], row["target_id"], state, failures, row["version_id"], served, *life, row["id"]
    )
    if state is DeploymentState.MISMATCH:
        await _again(row, missed)
    await settle([row["certificate_id"]])
    await poke([row["certificate_id"]])


async def _again(row: db.Row, missed: int) -> None:
    same = [
        each
        for each in await fitting([row["certificate_id"]])
        if (each["target_id"], each["version_id"]) == (row["target_id"], row["version_id"])
    ]
    wait = retry_wait(JobType.DEPLOYMENT, Cause.DEPLOYMENT, missed, retry_after=None, jitter=random.random())
    await deploy(same, actor=SYSTEM, after=wait)
    if missed == TRIES:
        subject = f"{row['name']} is not served by {row['target_id']}"
        text = f"after {missed} deployments another certificate is served"
        occurrence = f"{row['version_id']}|{row['target_id']}"
        await tell(Notice("DeploymentFailure", row["certificate_id"], subject, text, "critical", occurrence))


async def presume(leadership: Leadership) -> datetime | None:
    """Take as deployed what nobody said anything about in time; return when the next one is."""
    async with leadership.leading():
        unseen = await db.fetch(UNSEEN, db.now() - PATIENCE)
        # As who reports a proof does: what was said meanwhile is not passed over, and nobody waits in a circle.
        await hold(row["certificate_id"] for row in unseen)
        skipped = await db.fetch(SKIP, json.dumps([row["id"] for row in unseen]))
        rows = await db.fetch(OF_JOBS, json.dumps([row["id"] for row in skipped]))
        await record(Event(SYSTEM, "job_verification_skipped", "job", row["id"]) for row in rows)
        for row in rows:
            await landed(row | {"verification_status": "skipped"})
    first = await db.moment(NEXT_UNSEEN)
    return first + PATIENCE if first else None
