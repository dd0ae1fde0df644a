"""A job that failed for good, whoever noticed: the certificate says why, and people are told."""

from __future__ import annotations

import json
from collections.abc import Iterable

from certctl_core.job import ORDERS, JobState, JobType

from certctl_server import db
from certctl_server.certificates.status import settle
from certctl_server.jobs.revoke import untold
from certctl_server.notices import service as notices
from certctl_server.notices.tell import Notice, tell

SAY = db.Sql("UPDATE certificate SET last_error = $2 WHERE id = $1")


async def order_failed(job_id: str, type_: JobType, certificate_id: str, message: str, *, over: bool) -> None:
    """Note on its certificate that an order failed; ``over``: it is not tried again."""
    await db.fetch(SAY, certificate_id, message)
    await settle([certificate_id])
    if over:
        occurrence = f"{job_id}|{db.now().isoformat()}"
        await tell(Notice("RenewalFailure", certificate_id, f"{type_} failed", message, "critical", occurrence))


async def ended(rows: Iterable[db.Row], message: str) -> None:
    """Do what the end of jobs that failed for good asks for, among the ``rows`` that ``move`` returned."""
    for row in rows:
        if row["status"] != JobState.FAILED or row["next_retry_at"] is not None:
            continue
        asked = json.loads(row["request"])
        if row["type"] in ORDERS:
            await order_failed(row["id"], JobType(row["type"]), row["certificate_id"], message, over=True)
        elif row["type"] == JobType.REVOCATION:
            await untold(row["id"], row["certificate_id"], row["issuer_id"], asked["serial_number"], message)
        elif row["type"] == JobType.NOTIFICATION:
            await notices.failed(asked["notification_id"], message, over=True, next_retry_at=None)
