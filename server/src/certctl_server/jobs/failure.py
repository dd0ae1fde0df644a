"""Jobs that failed, whoever noticed: the certificate says why, and people are told when it is for good."""

from __future__ import annotations

import json
from collections.abc import Iterable

from certctl_core.job import ORDERS, JobState, JobType

from certctl_server import db
from certctl_server.certificates.status import settle
from certctl_server.jobs import bell
from certctl_server.jobs.revoke import untold
from certctl_server.notices import service as notices
from certctl_server.notices.tell import Notice, tell

SAY = db.update_rows("certificate", "id", {"last_error": "text"})
SAID = frozenset({JobType.DEPLOYMENT, *ORDERS})
"""What a certificate tells of."""


async def failed(rows: Iterable[db.Row], message: str) -> None:
    """Do what the failure of jobs asks for, among the ``rows`` that ``move`` returned; their certificates are held.

    One without ``next_retry_at`` is not tried again.
    """
    failures = [row for row in rows if row["status"] == JobState.FAILED]
    over = [row for row in failures if row["next_retry_at"] is None]
    if len(over) < len(failures):
        bell.poke("job retry")
    if ids := sorted({row["certificate_id"] for row in failures if row["type"] in SAID}):
        await db.fetch(SAY, json.dumps([{"id": id, "last_error": message} for id in ids]))
        await settle(ids)
    await tell(*(_told(row, message) for row in over if row["type"] in ORDERS))
    for row in over:
        if row["type"] == JobType.REVOCATION:
            serial_number = json.loads(row["request"])["serial_number"]
            await untold(row["id"], row["certificate_id"], row["issuer_id"], serial_number, message)
    for row in failures:
        if row["type"] == JobType.NOTIFICATION:
            await notices.failed(json.loads(row["request"])["notification_id"], message, row["next_retry_at"])


def _told(row: db.Row, message: str) -> Notice:
    occurrence = f"{row['id']}|{db.now().isoformat()}"
    subject = f"{row['type']} failed"
    return Notice("RenewalFailure", row["certificate_id"], subject, message, "critical", occurrence)
