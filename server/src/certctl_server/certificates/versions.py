"""Store what a CA signed: version, facts, deployments, the job's end and its intent, all in one transaction.

Step 7 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from typing import Any

from certctl_core.csr import CheckedCsr
from certctl_core.issued import Issued
from certctl_core.job import JobState, JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.status import settle
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, deployment_place
from certctl_server.jobs.state import NORMAL, Claimed, end

INSERT = db.Sql(
    """
    INSERT INTO certificate_version (
        id, certificate_id, version, issuer_id, agent_id, job_id, serial_number, not_before, not_after,
        fingerprint_sha256, public_key_sha256, pem_chain, csr_pem, key_algorithm, key_size, reference, created_at)
    VALUES ($1, $2, (SELECT coalesce(max(version), 0) + 1 FROM certificate_version WHERE certificate_id = $2),
        $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
    """
)
FACTS = db.Sql(
    """
    UPDATE certificate SET version_id = $2, serial_number = $3, not_before = $4, expires_at = $5, fingerprint = $6,
        key_algorithm = $7, key_size = $8, issued_at = coalesce(issued_at, $9), revoked_at = NULL,
        revocation_reason = '', revocation_state = '', last_error = '',
        last_renewal_at = CASE WHEN version_id IS NULL THEN last_renewal_at ELSE $9 END
    WHERE id = $1
    """
)
MAPPED = db.Sql(
    """
    SELECT m.target_id, t.agent_id FROM certificate_target m JOIN target t ON t.id = m.target_id
    WHERE m.certificate_id = $1 AND t.enabled AND t.agent_id IS NOT NULL AND ($2 = '' OR t.agent_id = $2)
    ORDER BY m.position, m.target_id
    """
)
AWAITED = db.Sql(
    """
    UPDATE certificate_target SET state = 'pending', failures = 0, last_job_id = (
        SELECT id FROM job WHERE job.place = 'deploy|' || $2 || '|' || certificate_target.target_id)
    WHERE certificate_id = $1 AND target_id IN ({ids:$3})
    """
)
SETTLED = db.Sql(
    """
    UPDATE intent SET status = 'settled', settled_at = {now}, version_id = $2, reference = $3
    WHERE job_id = $1 AND status = 'open'
    """
)


async def store(job: Claimed, csr: CheckedCsr, issued: Issued, reference: str) -> str:
    """Keep the certificate that ``job`` ordered, end the job and send the version to its targets; return its id.

    Raises:
        LeaseLost: another owner has the job; nothing was written.
    """
    version_id, leaf, now = new_id("certver"), issued.leaf, db.now()
    async with db.transaction():
        await end(
            job, JobState.COMPLETED, version_id=version_id, result=json.dumps({"version_id": version_id}), last_error=""
        )
        await db.fetch(
            INSERT,
            *(version_id, job.certificate_id, job.issuer_id, job.agent_id, job.id, leaf.serial_number),
            *(leaf.not_before, leaf.not_after, leaf.fingerprint_sha256, leaf.public_key_sha256, issued.full_pem),
            *(csr.pem, leaf.key.algorithm, leaf.key.size, reference, now),
        )
        facts = (leaf.serial_number, leaf.not_before, leaf.not_after, leaf.fingerprint_sha256)
        await db.fetch(FACTS, job.certificate_id, version_id, *facts, leaf.key.algorithm, leaf.key.size, now)
        await db.fetch(SETTLED, job.id, version_id, reference)
        await record([_stored(job, version_id, issued)])
        await deploy(job.certificate_id, version_id, agent_id=job.agent_id, actor=SYSTEM, traceparent=job.traceparent)
        await settle([job.certificate_id], now=now)
    return version_id


def _stored(job: Claimed, version_id: str, issued: Issued) -> Event:
    details = {
        "version_id": version_id,
        "serial_number": issued.leaf.serial_number,
        "fingerprint_sha256": issued.leaf.fingerprint_sha256,
        "issuer_id": job.issuer_id,
        "job_id": job.id,
    }
    return Event(SYSTEM, "certificate_issued", "certificate", job.certificate_id, details)


async def deploy(  # noqa: PLR0913  # a deployment is between all of these
    certificate_id: str,
    version_id: str,
    *,
    agent_id: str = "",
    target_id: str = "",
    actor: Actor,
    traceparent: str = "",
    request: dict[str, Any] | None = None,
) -> list[NewJob]:
    """Make a Deployment job for each mapped target, or the one given; return those that are new.

    ``agent_id``: only that agent has the version's key; empty: whoever owns a target may have it.
    """
    rows = await db.fetch(MAPPED, certificate_id, agent_id)
    jobs = [
        NewJob(
            type=JobType.DEPLOYMENT,
            place=deployment_place(version_id, row["target_id"]),
            certificate_id=certificate_id,
            target_id=row["target_id"],
            agent_id=row["agent_id"],
            version_id=version_id,
            offered=True,
            priority=NORMAL,
            request=request or {},
            traceparent=traceparent,
        )
        for row in rows
        if target_id in {"", row["target_id"]}
    ]
    made = await create(jobs, actor)
    if made:
        await db.fetch(AWAITED, certificate_id, version_id, json.dumps([job.target_id for job in made]))
    for agent in {str(job.agent_id) for job in made}:
        bell.ring_agent(agent)
    return made
