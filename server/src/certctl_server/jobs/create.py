"""Make jobs: one statement for any number, none where an open one has the same place.

Step 1 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from certctl_core.job import ORDERS, JobState, JobType
from certctl_sdk import tracing

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.ids import new_id
from certctl_server.jobs.priorities import NORMAL

COLUMNS = {
    "id": "text", "type": "text", "certificate_id": "text", "target_id": "text", "agent_id": "text",
    "issuer_id": "text", "version_id": "text", "lane": "text", "status": "text", "place": "text",
    "priority": "bigint", "urgency": "bigint", "urgent_at": "timestamptz", "due_at": "timestamptz",
    "offer_at": "timestamptz", "opens_at": "timestamptz", "window_at": "timestamptz", "max_attempts": "bigint",
    "requested_by": "text", "request": "text", "traceparent": "text", "scheduled_at": "timestamptz",
    "created_at": "timestamptz", "last_error": "text",
}  # fmt: skip
INSERT = db.insert_rows("job", COLUMNS, "ON CONFLICT (place) DO NOTHING RETURNING id")
LANES = db.insert_rows("lane", {"name": "text"}, "ON CONFLICT DO NOTHING")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be. Work of agents (Deployment) has no lane; all other work waits in one."""

    type: JobType
    place: str
    """Taken while the job is open: a second job for the same place is not made."""
    status: JobState = JobState.PENDING
    certificate_id: str | None = None
    target_id: str | None = None
    agent_id: str | None = None
    issuer_id: str | None = None
    version_id: str | None = None
    lane: str = ""
    priority: int = NORMAL
    urgent_at: datetime | None = None
    """From when on it is urgent, whatever its priority is now."""
    due: bool = False
    """A worker may claim it at once."""
    offered: bool = False
    """Its agent may have it, at once or ``offered_after`` some time."""
    offered_after: timedelta = timedelta()
    opens_at: datetime | None = None
    """When the maintenance window begins that it waits for, or that is open; None: no window holds it."""
    window_at: datetime | None = None
    """When its windows are to be looked at again."""
    max_attempts: int = 3
    request: Mapping[str, Any] = field(default_factory=dict)
    last_error: str = ""
    """Why it cannot begin yet."""
    traceparent: str = ""
    """What it belongs to; empty: what is being done now."""
    id: str = field(default_factory=lambda: new_id("job"))


async def create(jobs: Sequence[NewJob], actor: Actor) -> list[NewJob]:
    """Store ``jobs`` with their audit rows; return those whose place was free."""
    if not jobs:
        return []
    now = db.now()
    rows = [{**{name: getattr(job, name, None) for name in COLUMNS}, **_derived(job, actor, now)} for job in jobs]
    async with db.transaction():
        if lanes := sorted({job.lane for job in jobs if job.lane}):
            await db.fetch(LANES, json.dumps([{"name": lane} for lane in lanes]))
        made = {row["id"] for row in await db.fetch(INSERT, json.dumps(rows))}
        new = [job for job in jobs if job.id in made]
        await record(event for job in new for event in _events(job, actor))
    return new


def _derived(job: NewJob, actor: Actor, at: datetime) -> dict[str, Any]:
    now, opens_at = db.text_of(at), max(job.opens_at or at, at)
    return {
        "urgency": job.priority,
        "urgent_at": db.text_of(job.urgent_at) if job.urgent_at else None,
        "due_at": now if job.due else None,
        "offer_at": db.text_of(max(at + job.offered_after, opens_at)) if job.offered else None,
        "opens_at": db.text_of(job.opens_at) if job.opens_at else None,
        "window_at": db.text_of(job.window_at) if job.window_at else None,
        "requested_by": actor.name,
        "request": json.dumps(job.request),
        "traceparent": job.traceparent
        or tracing.origin(f"create {job.type}", {"certctl.job.id": job.id, "certctl.job.type": job.type.value}),
        # What waits for a person is counted from now on.
        "scheduled_at": db.text_of(opens_at) if job.status is JobState.PENDING else now,
        "created_at": now,
    }


def _events(job: NewJob, actor: Actor) -> Iterator[Event]:
    action = {JobType.DEPLOYMENT: "deployment_jobs_created"} | dict.fromkeys(ORDERS, "renewal_job_created")
    told = {"type": job.type, "certificate_id": job.certificate_id or ""}
    if job.target_id:
        told["target_id"] = job.target_id
    yield Event(actor, action.get(job.type, "job_created"), "job", job.id, told)
    if job.status is JobState.AWAITING_CSR:
        moved = {**told, "from": JobState.PENDING, "to": job.status}
        moved |= {"error": job.last_error} if job.last_error else {}
        yield Event(actor, "renewal_awaiting_csr", "job", job.id, moved)


def lane_of_issuer(issuer_id: str) -> str:
    """Return the lane in which the orders of an issuer wait."""
    return f"issuer:{issuer_id}"


def order_place(certificate_id: str, agent_id: str | None) -> str:
    """One open Issuance or Renewal per certificate and agent."""
    return f"order|{certificate_id}|{agent_id or ''}"


def deployment_place(version_id: str, target_id: str) -> str:
    """One open Deployment per version and target."""
    return f"deploy|{version_id}|{target_id}"


def revocation_place(issuer_id: str, serial_number: str) -> str:
    """One open Revocation per certificate that an issuer signed."""
    return f"revoke|{issuer_id}|{serial_number}"


def notification_place(notification_id: str) -> str:
    """One open Notification per message."""
    return f"notification|{notification_id}"


def place_in_sql(place: Callable[..., str], *columns: str) -> str:
    """Return a ``place``, one of the above, as an expression over columns."""
    parts = (f"' || {column} || '" for column in columns)
    return f"'{place(*parts)}'"
