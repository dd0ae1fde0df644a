"""Decide who is told: one message per channel that subscribed, once per occurrence.

What nobody subscribed to is kept as one message without a channel that failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certctl_core.job import JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, notification_place

SUBSCRIBED = db.Sql("SELECT id, type, events FROM notifier WHERE enabled AND status <> 'incomplete'")
INSERT = db.insert_rows(
    "notification",
    {
        **dict.fromkeys(
            ("id", "type", "certificate_id", "notifier_id", "channel", "subject", "message", "severity", "incident"),
            "text",
        ),
        "occurrence": "text",
        "error": "text",
        "status": "text",
        "created_at": "timestamptz",
    },
    "ON CONFLICT (occurrence) DO NOTHING RETURNING id, notifier_id, occurrence",
)
NOBODY: Mapping[str, None] = {"id": None, "type": None}
"""In the place of a channel."""


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


async def tell(*notices: Notice) -> list[Notice]:
    """Queue ``notices`` for every channel that subscribed to them, in the present transaction; return the new ones."""
    if not notices:
        return []
    async with db.transaction():
        wanted = _channels(await db.fetch(SUBSCRIBED))
        rows = {
            row["occurrence"]: (row, notice)
            for notice in notices
            for row in (_row(notice, channel) for channel in wanted(notice.type))
        }
        made = await db.fetch(INSERT, json.dumps([row for row, _ in rows.values()]))
        to_send = [row for row in made if row["notifier_id"]]
        await create(_jobs(to_send), SYSTEM)
        for lane in {lane_of_notifier(row["notifier_id"]) for row in to_send}:
            bell.ring(lane)
    return list(dict.fromkeys(rows[row["occurrence"]][1] for row in made))


def _channels(rows: Sequence[db.Row]) -> Callable[[str], Sequence[Mapping[str, Any]]]:
    """Return what says which channels want a type of notice; nobody's, if none does."""
    events = {row["id"]: frozenset(json.loads(row["events"])) for row in rows}

    def wanted(type_: str) -> Sequence[Mapping[str, Any]]:
        return [row for row in rows if not events[row["id"]] or type_ in events[row["id"]]] or [NOBODY]

    return wanted


def _row(notice: Notice, channel: Mapping[str, Any]) -> dict[str, str | None]:
    told = {"status": "pending", "error": ""}
    if channel is NOBODY:
        told = {"status": "failed", "error": f"no notifier that can send is subscribed to {notice.type}"}
    return {
        **told,
        "id": new_id("notif"),
        "type": notice.type,
        "certificate_id": notice.certificate_id,
        "notifier_id": channel["id"],
        "channel": channel["type"] or "",
        "subject": notice.subject,
        "message": notice.message,
        "severity": notice.severity,
        "incident": f"{notice.certificate_id}|{notice.type}",
        "occurrence": f"{notice.type}|{notice.occurrence}|{channel['id'] or ''}",
        "created_at": db.text_of(db.now()),
    }


def _jobs(made: Sequence[db.Row]) -> list[NewJob]:
    return [
        NewJob(
            type=JobType.NOTIFICATION,
            place=notification_place(row["id"]),
            lane=lane_of_notifier(row["notifier_id"]),
            due=True,
            max_attempts=10,
            request={"notification_id": row["id"], "notifier_id": row["notifier_id"]},
        )
        for row in made
    ]
