"""Send one queued message through its channel."""

from __future__ import annotations

from certctl_core.errors import RejectedError
from certctl_core.job import JobState
from certctl_core.notifier import Notification
from certctl_core.run import Run

from certctl_server import db
from certctl_server.connectors.instances import Instances
from certctl_server.jobs.state import Claimed, end

MESSAGE = db.Sql(
    """
    SELECT n.id, n.type, n.subject, n.message, n.severity, n.incident, n.notifier_id, n.created_at, n.certificate_id,
        c.name, c.common_name, c.expires_at, c.status
    FROM notification n LEFT JOIN certificate c ON c.id = n.certificate_id WHERE n.id = $1
    """
)
SENT = db.Sql(
    """
    UPDATE notification SET status = CASE WHEN status = 'read' THEN status ELSE 'sent' END, sent_at = {now},
        error = '', next_retry_at = NULL
    WHERE id = $1
    """
)


async def send(job: Claimed, run: Run, instances: Instances) -> None:
    """Do one Notification job.

    Raises:
        ConnectorError: the channel did not accept the message.
        LeaseLost: another worker has the job.
    """
    rows = await db.fetch(MESSAGE, str(job.request["notification_id"]))
    if not rows:
        raise RejectedError("the message is gone")
    row = rows[0]
    notifier = await instances.notifier(row["notifier_id"])
    facts = {
        name: str(row[name]) for name in ("certificate_id", "name", "common_name", "status", "expires_at") if row[name]
    }
    message = Notification(
        subject=row["subject"],
        body=row["message"],
        severity=row["severity"],
        incident=row["incident"],
        facts={"type": row["type"], "created_at": row["created_at"].isoformat(), **facts},
    )
    await instances.call(notifier, "send", lambda: notifier.send(message, run))
    async with db.transaction():
        await end(job, JobState.COMPLETED, last_error="")
        await db.fetch(SENT, row["id"])
