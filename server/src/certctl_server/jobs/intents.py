"""What is about to be signed is committed first; what a crash left of it is settled before anything is signed again."""

from __future__ import annotations

from typing import Any

from certctl_core.csr import CheckedCsr
from certctl_core.run import LeaseLost

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.jobs.state import Claimed

LAST = db.Sql(
    """
    SELECT number, status, csr_sha256, reference, created_at FROM intent WHERE job_id = $1 ORDER BY number DESC LIMIT 1
    """
)
OPEN = db.Sql(
    """
    INSERT INTO intent (
        job_id, number, issuer_id, certificate_id, csr_sha256, public_key_sha256, status, reason, created_at)
    SELECT job.id, (SELECT coalesce(max(number), 0) + 1 FROM intent WHERE job_id = $1),
        $3, $4, $5, $6, 'open', $7, {now}
    FROM job WHERE job.id = $1 AND job.fence = $2 AND job.status = 'Running' RETURNING number
    """
)
CLOSE = db.Sql(
    """
    UPDATE intent SET status = $2, settled_at = {now}, reason = CASE WHEN $3 = '' THEN reason ELSE $3 END
    WHERE job_id = $1 AND status = 'open'
    """
)


async def last(job: Claimed) -> db.Row | None:
    """Return the newest intent of a job; None if nothing was ever about to be signed for it."""
    return next(iter(await db.fetch(LAST, job.id)), None)


async def begin(job: Claimed, csr: CheckedCsr, reason: str = "") -> None:
    """Commit that ``csr`` is about to go to the CA, under the job's fence; a second time takes a reason.

    Raises:
        LeaseLost: another owner has the job.
    """
    told: dict[str, Any] = {"issuer_id": job.issuer_id, "csr_sha256": csr.sha256}
    async with db.transaction():
        args = (job.issuer_id, job.certificate_id, csr.sha256, csr.public_key_sha256, reason)
        if not await db.fetch(OPEN, job.id, job.fence, *args):
            raise LeaseLost(f"job {job.id} is not ours any more")
        if reason:
            await record([Event(SYSTEM, "order_repeated", "job", job.id, {**told, "reason": reason})])


async def close(job: Claimed, status: str, reason: str = "") -> None:
    """Say what became of the open intent of a job: ``failed`` (the CA refused) or ``unresolved`` (nobody knows)."""
    await db.fetch(CLOSE, job.id, status, reason)
