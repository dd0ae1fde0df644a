"""Store what a CA signed: version, facts, deployments, the job's end and its intent, all in one transaction.

Step 7 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta

from certctl_core.csr import CheckedCsr
from certctl_core.issued import Issued
from certctl_core.job import JobState, JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.status import hold, settle
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, deployment_place
from certctl_server.jobs.state import Claimed, cancel, end
from certctl_server.jobs.tables import Job

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
# For each target the newest version that its agent has the key of: its own, else one that was made from no agent's CSR.
FITTING = db.Sql(
    """
    SELECT m.certificate_id, m.target_id, t.agent_id, m.state, m.version_id AS there, v.id AS version_id,
        v.not_after, v.revoked_at
    FROM certificate_target m JOIN target t ON t.id = m.target_id
        LEFT JOIN certificate_version v ON v.certificate_id = m.certificate_id AND v.version = coalesce(
            (SELECT max(n.version) FROM certificate_version n
                WHERE n.certificate_id = m.certificate_id AND n.agent_id = t.agent_id),
            (SELECT max(n.version) FROM certificate_version n
                WHERE n.certificate_id = m.certificate_id AND n.agent_id = ''))
    WHERE m.certificate_id IN ({ids:$1}) AND t.enabled AND t.agent_id IS NOT NULL
    ORDER BY m.certificate_id, m.position, m.target_id
    """
)
AWAITED = db.Sql(
    """
    UPDATE certificate_target SET state = 'pending', failures = 0, last_job_id = job.id FROM job
    WHERE job.id IN ({ids:$1}) AND certificate_target.certificate_id = job.certificate_id
        AND certificate_target.target_id = job.target_id
    """
)
# A deployment that nobody does any more has not brought its version there.
CALLED_OFF = db.Sql(
    """
    UPDATE certificate_target SET state = 'failed' FROM job
    WHERE job.id IN ({ids:$1}) AND job.type = 'Deployment' AND certificate_target.last_job_id = job.id
        AND certificate_target.certificate_id = job.certificate_id AND certificate_target.target_id = job.target_id
    """
)
SUPERSEDED = db.Sql(
    """
    SELECT old.id FROM job new JOIN job old ON old.certificate_id = new.certificate_id
        AND old.target_id = new.target_id AND old.type = 'Deployment' AND old.place IS NOT NULL
        AND old.version_id <> new.version_id
    WHERE new.id IN ({ids:$1})
    """
)
UNDER_WAY = db.Sql(
    "SELECT 1 AS yes FROM job WHERE certificate_id = $1 AND type = 'Deployment' AND place IS NOT NULL LIMIT 1"
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
        await hold([job.certificate_id])
        await end(
            job, JobState.COMPLETED, version_id=version_id, result=json.dumps({"version_id": version_id}), last_error=""
        )
        await db.fetch(
            INSERT,
            *(version_id, job.certificate_id, job.issuer_id, job.agent_id, job.id, leaf.serial_number),
            *(leaf.not_before, leaf.not_after, leaf.fingerprint_sha256, leaf.public_key_sha256, issued.full_pem),
            *(csr.pem, leaf.key.algorithm, leaf.key.size, reference, now),
        )
        await db.fetch(SETTLED, job.id, version_id, reference)
        await record([_stored(job, version_id, issued)])
        # Jobs first, then the places on targets, then the certificate: reports of agents lock in this order as well.
        await _supersede(job)
        rows = [row for row in await fitting([job.certificate_id]) if row["version_id"] == version_id]
        await deploy(rows, actor=SYSTEM, traceparent=job.traceparent)
        facts = (leaf.serial_number, leaf.not_before, leaf.not_after, leaf.fingerprint_sha256)
        await db.fetch(FACTS, job.certificate_id, version_id, *facts, leaf.key.algorithm, leaf.key.size, now)
        await settle([job.certificate_id], now=now)
    return version_id


async def _supersede(job: Claimed) -> None:
    """Call off what was to bring older versions of the certificate to the agent: it gets the newest one only."""
    if not await db.fetch(UNDER_WAY, job.certificate_id):
        return
    older = (Job.certificate_id == job.certificate_id) & (Job.type == JobType.DEPLOYMENT)
    theirs = older & (Job.agent_id == job.agent_id) if job.agent_id else older
    await cancel(theirs, actor=SYSTEM, reason="superseded by a newer version")


def _stored(job: Claimed, version_id: str, issued: Issued) -> Event:
    details = {
        "version_id": version_id,
        "serial_number": issued.leaf.serial_number,
        "fingerprint_sha256": issued.leaf.fingerprint_sha256,
        "issuer_id": job.issuer_id,
        "job_id": job.id,
    }
    return Event(SYSTEM, "certificate_issued", "certificate", job.certificate_id, details)


async def fitting(ids: Iterable[str]) -> list[db.Row]:
    """Return every enabled target of the certificates, with the version that it should have, None if there is none."""
    return await db.fetch(FITTING, json.dumps(sorted(set(ids))))


async def deploy(
    rows: Sequence[db.Row], *, actor: Actor, traceparent: str = "", after: timedelta | None = None
) -> list[NewJob]:
    """Make a Deployment job for each of ``rows``, as ``fitting`` returns them; return those that are new.

    Open deployments of other versions to the same targets are called off. ``after``: something else was just seen
    there, so the next try waits that long, and how often it went wrong is remembered.
    """
    jobs = [
        NewJob(
            type=JobType.DEPLOYMENT,
            place=deployment_place(row["version_id"], row["target_id"]),
            certificate_id=row["certificate_id"],
            target_id=row["target_id"],
            agent_id=row["agent_id"],
            version_id=row["version_id"],
            offered=True,
            offered_after=after or timedelta(),
            traceparent=traceparent,
        )
        for row in rows
    ]
    if not (made := await create(jobs, actor)):
        return []
    ids = json.dumps([job.id for job in made])
    if old := [row["id"] for row in await db.fetch(SUPERSEDED, ids)]:
        await cancel(Job.id.is_in(old), actor=actor, reason="superseded by a newer version")
    if after is None:
        await db.fetch(AWAITED, ids)
    for agent in {str(job.agent_id) for job in made}:
        bell.ring_agent(agent)
    return made
