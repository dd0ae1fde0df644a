"""Store what a CA signed: version, facts, deployments, the job's end and its intent, all in one transaction.

Step 7 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from certctl_core.csr import CheckedCsr
from certctl_core.issued import Issued
from certctl_core.job import JobType
from certctl_core.run import LeaseLost
from certctl_sdk import tracing

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.rollout_state import admitted
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.timing import PUT_BACK, Expiring, announce_new, replaced_on_target, timed
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, deployment_place
from certctl_server.jobs.state import Claimed, cancel, complete, lost
from certctl_server.jobs.tables import Job
from certctl_server.policies.judge import renewed

ROW = {
    "id": "text", "certificate_id": "text", "issuer_id": "text", "agent_id": "text", "job_id": "text",
    "serial_number": "text", "not_before": "timestamptz", "not_after": "timestamptz", "fingerprint_sha256": "text",
    "public_key_sha256": "text", "pem_chain": "text", "csr_pem": "text", "key_algorithm": "text", "key_size": "bigint",
    "reference": "text", "created_at": "timestamptz",
}  # fmt: skip
INSERT = db.with_rows(
    ROW,
    f"""
    INSERT INTO certificate_version (version, {", ".join(ROW)})
    SELECT (SELECT coalesce(max(v.version), 0) + 1 FROM certificate_version v
        WHERE v.certificate_id = row.certificate_id), {", ".join(f"row.{name}" for name in ROW)} FROM {{row}}
    """,  # noqa: S608  # names are ours
)
FACTS = db.with_rows(
    ROW,
    """
    UPDATE certificate SET version_id = row.id, serial_number = row.serial_number, not_before = row.not_before,
        expires_at = row.not_after, fingerprint = row.fingerprint_sha256, key_algorithm = row.key_algorithm,
        key_size = row.key_size, issued_at = coalesce(issued_at, row.created_at), revoked_at = NULL,
        revocation_reason = '', revocation_state = '', last_error = '',
        last_renewal_at = CASE WHEN version_id IS NULL THEN last_renewal_at ELSE row.created_at END
    FROM {row} WHERE certificate.id = row.certificate_id
    """,
)
# For each target the newest version that its agent has the key of: its own, else one that was made from no agent's CSR.
FITTING = db.Sql(
    """
    SELECT m.certificate_id, m.target_id, t.agent_id, m.state, m.version_id AS there, m.not_after AS there_until,
        v.id AS version_id, v.not_after, v.revoked_at, p.maintenance_windows, p.rollout,
        h.version_id AS rolled, h.wave AS rolled_in
    FROM certificate_target m JOIN target t ON t.id = m.target_id JOIN certificate c ON c.id = m.certificate_id
        JOIN renewal_policy p ON p.id = c.renewal_policy_id
        LEFT JOIN rollout_target h ON h.certificate_id = m.certificate_id AND h.target_id = m.target_id
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
        AND old.target_id = new.target_id AND old.type = 'Deployment' AND coalesce(old.place, '') <> ''
        AND old.version_id <> new.version_id
    WHERE new.id IN ({ids:$1})
    """
)
UNDER_WAY = db.Sql(
    """
    SELECT DISTINCT certificate_id FROM job
    WHERE certificate_id IN ({ids:$1}) AND type = 'Deployment' AND coalesce(place, '') <> ''
    """
)
SETTLED = db.with_rows(
    ROW,
    """
    UPDATE intent SET status = 'settled', settled_at = {now}, version_id = row.id, reference = row.reference
    FROM {row} WHERE intent.job_id = row.job_id AND intent.status = 'open'
    """,
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a CA signed for a claimed job, and what that belongs to."""

    job: Claimed
    csr: CheckedCsr
    issued: Issued
    reference: str
    traceparent: str
    version_id: str = field(default_factory=lambda: new_id("certver"))


async def store(job: Claimed, csr: CheckedCsr, issued: Issued, reference: str) -> str:
    """Keep the certificate that ``job`` ordered, end the job and send the version to its targets; return its id.

    What is to be stored at the same time is stored in one transaction, as long as none of it stands in the way.

    Raises:
        LeaseLost: another owner has the job; nothing was written.
    """
    signed = Signed(job, csr, issued, reference, tracing.current())
    await _store(signed)
    return signed.version_id


async def _store_all(every: list[Signed]) -> list[LeaseLost | None]:
    """Store all, those of one certificate one after the other."""
    stored, left = set[str](), every
    while left:
        some = list({signed.job.certificate_id: signed for signed in reversed(left)}.values())
        stored |= await _store_some(some)
        chosen = {signed.version_id for signed in some}
        left = [signed for signed in left if signed.version_id not in chosen]
    return [None if signed.job.id in stored else lost(signed.job) for signed in every]


_store = db.Together(_store_all, apart=True)


async def _store_some(every: list[Signed]) -> set[str]:
    """Store what was signed for different certificates; return the ids of the jobs that were still ours."""
    now = db.now()
    async with db.transaction():
        await hold(signed.job.certificate_id for signed in every)
        ours = await complete((signed.job, signed.version_id) for signed in every)
        if not (every := [signed for signed in every if signed.job.id in ours]):
            return ours
        ids = [signed.job.certificate_id for signed in every]
        rows = json.dumps([_row(signed, now) for signed in every], default=str)
        await db.fetch(INSERT, rows)
        await db.fetch(SETTLED, rows)
        await record(_stored(signed.job, signed.version_id, signed.issued) for signed in every)
        # Jobs first, then the places on targets, then the certificate: reports of agents lock in this order as well.
        await _supersede(signed.job for signed in every)
        traces = {signed.version_id: signed.traceparent for signed in every}
        theirs = [row for row in await fitting(ids) if row["version_id"] in traces]
        await deploy(await admitted(theirs), actor=SYSTEM, traces=traces)
        await db.fetch(FACTS, rows)
        await renewed(ids)
        await settle(ids, now=now)
    return ours


def _row(signed: Signed, now: datetime) -> dict[str, Any]:
    job, leaf = signed.job, signed.issued.leaf
    return {
        "id": signed.version_id,
        "certificate_id": job.certificate_id,
        "issuer_id": job.issuer_id,
        "agent_id": job.agent_id,
        "job_id": job.id,
        "serial_number": leaf.serial_number,
        "not_before": leaf.not_before,
        "not_after": leaf.not_after,
        "fingerprint_sha256": leaf.fingerprint_sha256,
        "public_key_sha256": leaf.public_key_sha256,
        "pem_chain": signed.issued.full_pem,
        "csr_pem": signed.csr.pem,
        "key_algorithm": leaf.key.algorithm,
        "key_size": leaf.key.size,
        "reference": signed.reference,
        "created_at": now,
    }


async def _supersede(jobs: Iterable[Claimed]) -> None:
    """Call off what was to bring older versions of the certificates to the agents: they get the newest one only."""
    by_id = {job.certificate_id: job for job in jobs}
    for row in await db.fetch(UNDER_WAY, json.dumps(list(by_id))):
        job = by_id[row["certificate_id"]]
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
    rows: Sequence[db.Row], *, actor: Actor, after: timedelta | None = None, traces: Mapping[str, str] | None = None
) -> list[NewJob]:
    """Make a Deployment job for each of ``rows``, as ``fitting`` returns them; return those that are new.

    Open deployments of other versions to the same targets are called off. ``after``: something else was just seen
    there, so the next try waits that long, and how often it went wrong is remembered. Outside of the policy's
    maintenance windows they wait for the next one.
    """
    jobs = [_deployment(row, after or timedelta(), (traces or {}).get(row["version_id"], "")) for row in rows]
    if not (made := await create([job for job, _ in jobs], actor)):
        return []
    await announce_new(made, {job.id: expiring for job, expiring in jobs if expiring})
    ids = json.dumps([job.id for job in made])
    if old := [row["id"] for row in await db.fetch(SUPERSEDED, ids)]:
        await cancel(Job.id.is_in(old), actor=actor, reason="superseded by a newer version")
    if after is None:
        await db.fetch(AWAITED, ids)
    for agent in {str(job.agent_id) for job in made}:
        bell.ring_agent(agent)
    return made


def _deployment(row: db.Row, after: timedelta, traceparent: str) -> tuple[NewJob, Expiring | None]:
    """The job, and what it replaces if its start overrides maintenance windows."""
    expiring = replaced_on_target(row)
    held, overrides = timed(JobType.DEPLOYMENT, row["maintenance_windows"], expiring, db.now())
    job = NewJob(
        type=JobType.DEPLOYMENT,
        place=deployment_place(row["version_id"], row["target_id"]),
        certificate_id=row["certificate_id"],
        target_id=row["target_id"],
        agent_id=row["agent_id"],
        version_id=row["version_id"],
        offered=True,
        offered_after=after,
        **held,
        request={PUT_BACK: True} if row.get(PUT_BACK) else {},
        traceparent=traceparent,
    )
    return job, expiring if overrides else None
