"""Notifiers, and what became of the messages sent through them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.principal import Principal
from certctl_server.body import Name
from certctl_server.connectors.service import Change, Family
from certctl_server.crud import one
from certctl_server.jobs.lanes import status_in_sql
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.notices.tables import Notification, Notifier
from certctl_server.notices.tell import lane_of_notifier

Event: TypeAlias = Literal[
    "ExpirationWarning",
    "RenewalSuccess",
    "RenewalFailure",
    "DeploymentSuccess",
    "DeploymentFailure",
    "PolicyViolation",
    "Revocation",
]
EVENTS: tuple[Event, ...] = get_args(Event)
CHANNELS = ("Email", "Webhook", "Slack", "Teams", "PagerDuty", "OpsGenie", "JiraServiceManagement")
STATES = ("pending", "sent", "failed", "read", "dead")
FAILED = db.Sql(
    """
    UPDATE notification SET next_retry_at = $3, error = $2,
        status = CASE WHEN CAST($3 AS timestamptz) IS NULL THEN 'dead' ELSE 'failed' END,
        retry_count = retry_count + 1
    WHERE id = $1 AND status NOT IN ('sent', 'read')
    """
)
READ = db.Sql("UPDATE notification SET status = 'read' WHERE id = $1")
ORPHANED = db.Sql(
    """
    UPDATE notification SET status = 'dead', error = 'the notifier was deleted', next_retry_at = NULL
    WHERE notifier_id = $1 AND status IN ('pending', 'failed')
    """
)
DROP_LANE = db.Sql("DELETE FROM lane WHERE name = $1")
FORGET = db.Sql("DELETE FROM connector_memory WHERE connector_id = $1")


class NotifierBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    type: Annotated[str, msgspec.Meta(max_length=64)]
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    enabled: bool = True
    events: Annotated[list[Event], msgspec.Meta(min_length=1, max_length=64)] = msgspec.field(
        default_factory=lambda: list(EVENTS)
    )


async def failed(notification_id: str, message: str, next_retry_at: datetime | None) -> None:
    """Note that a message could not be sent, and when it is tried again; None: it is not."""
    await db.fetch(FAILED, notification_id, message, next_retry_at)


async def mark_read(row_id: str, principal: Principal, actor: Actor) -> None:
    """Note that somebody has read a message; when it was sent stays.

    Raises:
        Refused: 404.
    """
    async with db.transaction():
        await one(Notification, row_id, principal, "Notification", lock=True)
        async with audited(actor, "notification_read", "notification", row_id):
            await db.fetch(READ, row_id)


async def _removing(change: Change) -> None:
    lane = lane_of_notifier(change.id)
    await cancel(Job.lane == lane, actor=change.actor, reason="the notifier was deleted")
    await db.fetch(ORPHANED, change.id)
    await db.fetch(FORGET, f"notifier:{change.id}")
    await db.fetch(DROP_LANE, lane)


def show_notification(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object of a message."""
    found = {
        "id": row["id"],
        "type": row["type"],
        "channel": row["channel"],
        "recipient": row["recipient"],
        "subject": row["subject"],
        "message": row["message"],
        "status": row["status"],
        "retry_count": row["retry_count"],
        "created_at": row["created_at"],
    }
    more = {
        "certificate_id": row["certificate_id"],
        "sent_at": row["sent_at"],
        "error": row["error"],
        "last_error": row["error"],
        "next_retry_at": row["next_retry_at"],
    }
    return found | {name: value for name, value in more.items() if value}


NOTIFIERS = Family(
    path="/api/v1/notifiers",
    table=Notifier,
    kind="Notifier",
    object_name="Notifier",
    prefix="nt",
    body=NotifierBody,
    types=CHANNELS,
    classes=lambda plugins: plugins.notifiers,
    states=("ready", "incomplete", "failing", "disabled"),
    status=status_in_sql("notifier"),
    more=("events",),
    json=frozenset({"events"}),
    removing=_removing,
)
