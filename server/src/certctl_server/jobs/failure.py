"""An order that failed: the certificate says why, and people are told once nothing more is tried."""

from __future__ import annotations

from certctl_core.job import JobType

from certctl_server import db
from certctl_server.certificates.status import settle
from certctl_server.notices.tell import Notice, tell

SAY = db.Sql("UPDATE certificate SET last_error = $2 WHERE id = $1")


async def order_failed(job_id: str, type_: JobType, certificate_id: str, message: str, *, over: bool) -> None:
    """Note on its certificate that an order failed; ``over``: it is not tried again."""
    await db.fetch(SAY, certificate_id, message)
    await settle([certificate_id])
    if over:
        occurrence = f"{job_id}|{db.now().isoformat()}"
        await tell(Notice("RenewalFailure", certificate_id, f"{type_} failed", message, "critical", occurrence))
