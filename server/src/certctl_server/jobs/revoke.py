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
CONFIRMED = db.Sql("UPDATE revocation SET state = 'confirmed', confirmed_at = {now} WHERE version_id = $1")
ALL_CONFIRMED = db.Sql(
    """
    UPDATE certificate SET revocation_state = 'confirmed' WHERE id = $1 AND revocation_state <> ''
        AND NOT EXISTS (SELECT 1 FROM revocation WHERE certificate_id = $1 AND state <> 'confirmed')
    """
)
UNTOLD = db.Sql("UPDATE revocation SET state = 'failed' WHERE version_id = $1")
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
    version_id = str(job.request["version_id"])
    [version] = await db.fetch(VERSION, version_id)
    revoker = issuer
    asked = RevokeRequest(
        cert_pem=version["pem_chain"], reference=version["reference"], reason=int(job.request["reason"])
    )
    await instances.loop.call(lambda: revoker.revoke(asked, run))
    async with db.transaction():
        await end(job, JobState.COMPLETED, last_error="")
        await db.fetch(CONFIRMED, version_id)
        await db.fetch(ALL_CONFIRMED, job.certificate_id)


async def untold(job: Claimed, message: str) -> None:
    """Note that the CA could not be told and is not told again, and let people know."""
    await db.fetch(UNTOLD, str(job.request["version_id"]))
    await db.fetch(ANY_UNTOLD, job.certificate_id)
    text = f"the CA was not told of the revocation: {message}"
    await tell(Notice("Revocation", job.certificate_id, "Revocation failed", text, "critical", f"{job.id}|failed"))
