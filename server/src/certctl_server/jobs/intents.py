"""What is about to be signed is committed first; what a crash left of it is settled before anything is signed again."""

from __future__ import annotations

import json
from typing import Any

from certctl_core.csr import CheckedCsr
from certctl_core.errors import RejectedError

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.jobs.state import Claimed, lost

RESTORED = "the database was restored: the order may have been placed after the backup was made"
"""Why an intent stands open that nobody here began (docs/decisions/013-restore-epoch.md)."""
CALLED_OFF = "the order was called off while the CA signed"
"""Why an intent came to nothing although the CA signed: that is revoked."""
LAST = db.Sql(
    """
    SELECT job_id, status, reason, csr_sha256, reference, created_at FROM intent
    WHERE job_id IN ({ids:$1}) AND number = (SELECT max(i.number) FROM intent i WHERE i.job_id = intent.job_id)
    """
)
OPEN = db.with_rows(
    {
        "job": "text",
        "fence": "bigint",
        **dict.fromkeys(("issuer_id", "certificate_id", "csr_sha256", "public_key_sha256", "reason"), "text"),
    },
    """
    INSERT INTO intent (
        job_id, number, issuer_id, certificate_id, csr_sha256, public_key_sha256, status, reason, created_at)
    SELECT job.id, (SELECT coalesce(max(number), 0) + 1 FROM intent WHERE job_id = job.id),
        row.issuer_id, row.certificate_id, row.csr_sha256, row.public_key_sha256, 'open', row.reason, {now}
    FROM {row} JOIN job ON job.id = row.job WHERE job.fence = row.fence AND job.status = 'Running' RETURNING job_id
    """,
)
# SQLite has one writer, who sees all that was written before.
ALONE_WITH_KEYS = db.Sql(
    postgres="""
    SELECT pg_advisory_xact_lock(hashtextextended(key, 7381953))
    FROM (SELECT value AS key FROM json_array_elements_text($1) ORDER BY value) keys
    """,
    sqlite="SELECT 1 AS locked WHERE $1 IS NOT NULL",
)
TAKEN = db.with_rows(
    {"job": "text", "certificate_id": "text", "public_key_sha256": "text"},
    """
    SELECT row.job FROM {row}
    WHERE EXISTS (
        SELECT 1 FROM intent i
        WHERE i.public_key_sha256 = row.public_key_sha256 AND i.certificate_id <> row.certificate_id
            AND i.status <> 'failed')
    """,
)
CLOSE = db.Sql(
    """
    UPDATE intent SET status = $2, settled_at = {now}, reason = CASE WHEN $3 = '' THEN reason ELSE $3 END
    WHERE job_id = $1 AND status = 'open' AND EXISTS (
        SELECT 1 FROM job WHERE id = $1 AND (fence = $4 OR status = 'Cancelled'))
    """
)
FORMER = db.Sql(
    """
    SELECT i.job_id, i.number, i.reference, i.created_at, j.csr_pem FROM intent i JOIN job j ON j.id = i.job_id
    WHERE i.public_key_sha256 = $1 AND i.certificate_id = $2 AND i.issuer_id = $3 AND i.job_id <> $4
        AND i.status IN ('open', 'unresolved') AND i.reason <> $5 AND NOT EXISTS (
            SELECT 1 FROM certificate_version v
            WHERE v.public_key_sha256 = $1 AND v.certificate_id = $2 AND v.created_at >= i.created_at)
    ORDER BY i.created_at DESC LIMIT 1
    """
)
SETTLE = db.Sql(
    """
    UPDATE intent SET status = $3, settled_at = {now}
    WHERE job_id = $1 AND number = $2 AND status IN ('open', 'unresolved')
    """
)


async def last(job: Claimed) -> db.Row | None:
    """Return the newest intent of a job; None if nothing was ever about to be signed for it."""
    return await _last(job.id)


async def _newest(ids: list[str]) -> list[db.Row | None]:
    found = {row["job_id"]: row for row in await db.fetch(LAST, json.dumps(ids))}
    return [found.get(id) for id in ids]


_last = db.Together(_newest)


async def former(job: Claimed, csr: CheckedCsr) -> db.Row | None:
    """Return the newest intent of an earlier job of this certificate, with the same key, of which nobody knows.

    None where a version was stored since: whatever it came to then is past.
    """
    found = await db.fetch(FORMER, csr.public_key_sha256, job.certificate_id, job.issuer_id, job.id, CALLED_OFF)
    return found[0] if found else None


async def settle(left: db.Row, status: str) -> None:
    """Note what an intent of ``former`` came to: ``settled``, or ``failed`` if the CA never made it."""
    await db.fetch(SETTLE, left["job_id"], left["number"], status)


async def begin(job: Claimed, csr: CheckedCsr, reason: str = "") -> None:
    """Commit that ``csr`` is about to go to the CA, under the job's fence; a second time takes a reason.

    Raises:
        LeaseLost: another owner has the job.
        RejectedError: another certificate's order with the same key came first.
    """
    told: dict[str, Any] = {"issuer_id": job.issuer_id, "csr_sha256": csr.sha256}
    facts = {"certificate_id": job.certificate_id, "public_key_sha256": csr.public_key_sha256, "reason": reason}
    opening = job, {"job": job.id, "fence": job.fence, **facts, **told}
    if not reason:
        await _open(opening)
        return
    async with db.transaction():
        await _open(opening)
        await record([Event(SYSTEM, "order_repeated", "job", job.id, {**told, "reason": reason})])


async def _open_all(asked: list[tuple[Claimed, dict[str, Any]]]) -> list[Exception | None]:
    first: dict[str, str] = {}
    for _, row in asked:
        first.setdefault(row["public_key_sha256"], row["certificate_id"])
    async with db.transaction():
        await db.fetch(ALONE_WITH_KEYS, json.dumps(list(first)))
        taken = {row["job"] for row in await db.fetch(TAKEN, json.dumps([row for _, row in asked]))}
        taken |= {row["job"] for _, row in asked if first[row["public_key_sha256"]] != row["certificate_id"]}
        free = [row for _, row in asked if row["job"] not in taken]
        opened = {row["job_id"] for row in await db.fetch(OPEN, json.dumps(free))}
    refused = RejectedError("the CSR was refused: the CSR carries the key of another certificate")
    return [None if job.id in opened else refused if job.id in taken else lost(job) for job, _ in asked]


_open = db.Together(_open_all, apart=True)


async def close(job: Claimed, status: str, reason: str = "") -> None:
    """Say what became of the open intent of a job: ``failed`` (the CA refused) or ``unresolved`` (nobody knows).

    Nothing if another owner has the job by now: what it began is its own.
    """
    await db.fetch(CLOSE, job.id, status, reason, job.fence)
