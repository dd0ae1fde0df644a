"""Tell an issuer that a certificate is revoked."""

from __future__ import annotations

from certctl_core.errors import RejectedError
from certctl_core.issuer import Revoker, RevokeRequest
from certctl_core.job import JobState
from certctl_core.run import Run

from certctl_server import db
from certctl_server.connectors.instances import Instances
from certctl_server.jobs.state import Claimed, end
from certctl_server.notices.tell import Notice, tell

VERSION = db.Sql("SELECT pem_chain, reference FROM certificate_version WHERE id = $1")
CONFIRMED = db.Sql(
    "UPDATE revocation SET state = 'confirmed', confirmed_at = {now} WHERE issuer_id = $1 AND serial_number = $2"
)
ALL_CONFIRMED = db.Sql(
    """
    UPDATE certificate SET revocation_state = 'confirmed' WHERE id = $1 AND revocation_state <> ''
        AND NOT EXISTS (SELECT 1 FROM revocation WHERE certificate_id = $1 AND state <> 'confirmed')
    """
)
UNTOLD = db.Sql("UPDATE revocation SET state = 'failed' WHERE issuer_id = $1 AND serial_number = $2")
ANY_UNTOLD = db.Sql("UPDATE certificate SET revocation_state = 'failed' WHERE id = $1 AND revoked_at IS NOT NULL")


async def revoke(job: Claimed, run: Run, instances: Instances) -> None:
    """Do one Revocation job.

    Raises:
        ConnectorError: the CA was not told.
        LeaseLost: another worker has the job.
    """
    issuer = await instances.issuer(job.issuer_id)
    if not isinstance(issuer, Revoker):
        raise RejectedError(f"an issuer of kind {issuer.kind} cannot revoke")
    revoker = issuer
    # One that was signed for an order that had been called off is no version of anything: the job carries it.
    told = job.request if "cert_pem" in job.request else (await db.fetch(VERSION, job.request["version_id"]))[0]
    asked = RevokeRequest(
        cert_pem=told.get("cert_pem") or told["pem_chain"],
        reference=told["reference"],
        reason=int(job.request["reason"]),
    )
    await instances.call(issuer, "revoke", lambda: revoker.revoke(asked, run))
    async with db.transaction():
        await end(job, JobState.COMPLETED, last_error="")
        await db.fetch(CONFIRMED, job.issuer_id, job.request["serial_number"])
        await db.fetch(ALL_CONFIRMED, job.certificate_id)


async def untold(job_id: str, certificate_id: str, issuer_id: str, serial_number: str, message: str) -> None:
    """Note that the CA could not be told and is not told again, and let people know."""
    await db.fetch(UNTOLD, issuer_id, serial_number)
    await db.fetch(ANY_UNTOLD, certificate_id)
    text = f"the CA was not told of the revocation: {message}"
    await tell(Notice("Revocation", certificate_id, "Revocation failed", text, "critical", f"{job_id}|failed"))
