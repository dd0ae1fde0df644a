"""Write what was done, in the transaction that does it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from certctl_server import db
from certctl_server.ids import new_id

INSERT = db.insert_rows(
    "audit_event",
    {
        "id": "text",
        "timestamp": "timestamptz",
        **dict.fromkeys(
            ("actor", "actor_type", "action", "resource_type", "resource_id", "details", "request_id"), "text"
        ),
    },
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: a key, an agent, or the system itself."""

    name: str
    type: str = "User"
    """User, System or Agent."""
    request_id: str = ""


SYSTEM = Actor("system", "System")
ON_HOST = Actor("certctl-server", "System")
"""Whoever gives commands where the database is."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that is done. ``details`` holds no secret and no PEM."""

    actor: Actor
    action: str
    resource_type: str
    resource_id: str
    details: Mapping[str, Any] = field(default_factory=dict)


async def record(events: Iterable[Event]) -> None:
    """Write ``events`` in the present transaction, or in one of their own."""
    now = db.text_of(db.now())
    rows = [
        {
            "id": new_id("audit"),
            "timestamp": now,
            "actor": event.actor.name,
            "actor_type": event.actor.type,
            "action": event.action,
            "resource_type": event.resource_type,
            "resource_id": event.resource_id,
            "details": msgspec.json.encode(event.details).decode(),
            "request_id": event.actor.request_id,
        }
        for event in events
    ]
    if rows:
        await db.insert_last(INSERT, rows)


@contextlib.asynccontextmanager
async def audited(
    actor: Actor, action: str, resource_type: str, resource_id: str, details: Mapping[str, Any] | None = None
) -> AsyncIterator[None]:
    """A transaction whose body and audit row are written together or not at all."""
    async with db.transaction():
        yield
        await record([Event(actor, action, resource_type, resource_id, details or {})])
