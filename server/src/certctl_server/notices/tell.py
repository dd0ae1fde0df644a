"""Decide who is told: one message per channel that subscribed, once per occurrence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from certctl_core.job import JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create

SUBSCRIBED = db.Sql("SELECT id, type, events FROM notifier WHERE enabled AND status <> 'incomplete'")
INSERT = db.insert_rows(
    "notification",
    {
        **dict.fromkeys(
            ("id", "type", "certificate_id", "notifier_id", "channel", "subject", "message", "severity", "incident"),
            "text",
        ),
        "occurrence": "text",
        "status": "text",
        "created_at": "timestamptz",
    },
    "ON CONFLICT (occurrence) DO NOTHING RETURNING id, notifier_id",
)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened and that people may want to know."""

    type: str
    """A notification type of the API: ``RenewalFailure``."""
    certificate_id: str
    subject: str
    message: str
    severity: str
    """``info``, ``warning`` or ``critical``."""
    occurrence: str
    """Names this happening: told once per channel, however often it is reported."""


def lane_of_notifier(notifier_id: str) -> str:
    """Return the lane in which the messages of a notifier wait."""
    return f"notifier:{notifier_id}"


async def tell(*notices: Notice) -> None:
    """Queue ``notices`` for every channel that subscribed to them, in the present transaction."""
    async with db.transaction():
        channels = await db.fetch(SUBSCRIBED)
        rows = [_row(notice, channel) for notice in notices for channel in channels if _wants(channel, notice)]
        made = await db.fetch(INSERT, json.dumps(rows)) if rows else []
        await create(_jobs(made), SYSTEM)
        for row in made:
            bell.ring(lane_of_notifier(row["notifier_id"]))


def _wants(channel: db.Row, notice: Notice) -> bool:
    events = json.loads(channel["events"])
    return not events or notice.type in events


def _row(notice: Notice, channel: db.Row) -> dict[str, str]:
    return {
        "id": new_id("notif"),
        "type": notice.type,
        "certificate_id": notice.certificate_id,
        "notifier_id": channel["id"],
        "channel": channel["type"],
        "subject": notice.subject,
        "message": notice.message,
        "severity": notice.severity,
        "incident": f"{notice.certificate_id}|{notice.type}",
        "occurrence": f"{notice.type}|{notice.occurrence}|{channel['id']}",
        "status": "pending",
        "created_at": str(db.now()),
    }


def _jobs(made: Sequence[db.Row]) -> list[NewJob]:
    return [
        NewJob(
            type=JobType.NOTIFICATION,
            place=f"notification|{row['id']}",
            lane=lane_of_notifier(row["notifier_id"]),
            due=True,
            max_attempts=10,
            request={"notification_id": row["id"], "notifier_id": row["notifier_id"]},
        )
        for row in made
    ]
