"""A certificate that a CA signed for an order that was called off meanwhile: nobody has it, so it is revoked."""

from __future__ import annotations

from certctl_core.issued import Issued
from certctl_core.job import JobState
from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.certificates.revoke import REASONS, revocation_job, told_state, write_revocations
from certctl_server.jobs import bell, intents
from certctl_server.jobs.create import create
from certctl_server.jobs.state import Claimed

REASON = "cessationOfOperation"
STATE = db.Sql(
    """
    SELECT j.status, i.type, (SELECT count(*) FROM certificate_version v WHERE v.fingerprint_sha256 = $2) AS kept
    FROM job j JOIN issuer i ON i.id = j.issuer_id WHERE j.id = $1
    """
)


async def orphaned(job: Claimed, issued: Issued, reference: str, plugins: Plugins) -> None:
    """Revoke what was signed for a job that is Cancelled; nothing where a worker still has the job."""
    [row] = await db.fetch(STATE, job.id, issued.leaf.fingerprint_sha256)
    if row["status"] != JobState.CANCELLED or row["kept"]:
        return
    serial, state = issued.leaf.serial_number, told_state(plugins, row["type"])
    no_version = {
        "id": "",
        "issuer_id": job.issuer_id,
        "certificate_id": job.certificate_id,
        "serial_number": serial,
    }
    request = {"cert_pem": issued.full_pem, "reference": reference, "serial_number": serial, "reason": REASONS[REASON]}
    async with db.transaction():
        await write_revocations([no_version], REASON, {job.issuer_id: state})
        await intents.close(job, "unresolved", intents.CALLED_OFF)
        told = {"serial_number": serial, "issuer_id": job.issuer_id, "job_id": job.id, "reason": intents.CALLED_OFF}
        await record([Event(SYSTEM, "certificate_orphaned", "certificate", job.certificate_id, told)])
        if state == "pending":
            await create([revocation_job(job.certificate_id, job.issuer_id, serial, request)], SYSTEM)
            bell.ring(job.lane)
