"""A job that failed for good, whoever noticed: the certificate says why, and people are told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from certctl_core.job import ORDERS, JobState, JobType

from certctl_server import db
from certctl_server.certificates.status import settle
from certctl_server.jobs.revoke import untold
from certctl_server.notices import service as notices
from certctl_server.notices.tell import Notice, tell

SAY = db.Sql("UPDATE certificate SET last_error = $2 WHERE id = $1")
SAY_ALL = db.update_rows("certificate", "id", {"last_error": "text"})


async def _orders_failed(rows: Sequence[db.Row], message: str) -> None:
    """Do as ``order_failed`` for orders that are all over."""
    if not rows:
        return
    ids = {row["certificate_id"] for row in rows}
    await db.fetch(SAY_ALL, json.dumps([{"id": id, "last_error": message} for id in sorted(ids)]))
    await settle(ids)
    await tell(*(_told(row["id"], row["type"], row["certificate_id"], message) for row in rows))


def _told(job_id: str, type_: str, certificate_id: str, message: str) -> Notice:
    occurrence = f"{job_id}|{db.now().isoformat()}"
    return Notice("RenewalFailure", certificate_id, f"{type_} failed", message, "critical", occurrence)


async def order_failed(job_id: str, type_: JobType, certificate_id: str, message: str, *, over: bool) -> None:
    """Note on its certificate that an order failed; ``over``: it is not tried again."""
    await db.fetch(SAY, certificate_id, message)
    await settle([certificate_id])
    if over:
        await tell(_told(job_id, type_, certificate_id, message))


async def ended(rows: Iterable[db.Row], message: str) -> None:
    """Do what the end of jobs that failed for good asks for, among the ``rows`` that ``move`` returned."""
    over = [row for row in rows if row["status"] == JobState.FAILED and row["next_retry_at"] is None]
    await _orders_failed([row for row in over if row["type"] in ORDERS], message)
    for row in over:
        asked = json.loads(row["request"])
        if row["type"] == JobType.REVOCATION:
            await untold(row["id"], row["certificate_id"], row["issuer_id"], asked["serial_number"], message)
        elif row["type"] == JobType.NOTIFICATION:
            await notices.failed(asked["notification_id"], message, over=True, next_retry_at=None)
