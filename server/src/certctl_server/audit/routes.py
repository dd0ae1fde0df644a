"""The audit trail over HTTP: read only, as the database has it."""

from typing import Any

import msgspec
from litestar import Response, get
from litestar.params import FromPath

from certctl_server import db
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.principal import Req
from certctl_server.auth.roles import LISTED, READ
from certctl_server.errors import not_found
from certctl_server.filters import after, before, equal, word
from certctl_server.lists import Key, Row, list_response, listed

SHOWN = ("id", "actor", "actor_type", "action", "resource_type", "resource_id", "timestamp")
OPTIONAL = ("request_id", "hash", "previous_hash")
BY_ID = db.Sql("SELECT * FROM audit_event WHERE id = $1")
NEWEST_OF = db.Sql("SELECT * FROM audit_event WHERE resource_id = $1 ORDER BY timestamp DESC, id DESC LIMIT 1")


def show(row: Row) -> Row:
    """Return the JSON object of an event; the hashes are there once it is sealed."""
    found = {name: row[name] for name in SHOWN}
    found["details"] = msgspec.Raw(row["details"].encode())
    return found | {name: row[name] for name in OPTIONAL if row[name]}


EVENTS = listed(
    AuditEvent,
    show,
    (*SHOWN, *OPTIONAL, "details"),
    json=("details",),
    optional=OPTIONAL,
    types={"details": dict[str, Any]},
    keys={"timestamp": Key("item.timestamp", "time", may_be_empty=False)},
    order="-timestamp",
    filters={
        "actor": equal("item.actor"),
        "actor_type": word("item.actor_type", ("User", "System", "Agent")),
        "action": equal("item.action"),
        "resource_type": equal("item.resource_type"),
        "resource": equal("item.resource_id"),
        "resource_id": equal("item.resource_id"),
        "before": before("item.timestamp"),
        "until": before("item.timestamp"),
        "after": after("item.timestamp"),
        "since": after("item.timestamp"),
    },
)


@get("/api/v1/audit", opt={"roles": READ, "query": LISTED, "list": EVENTS})
async def list_(request: Req) -> Response[bytes]:
    """List what was done, newest first."""
    return await list_response(request, EVENTS)


@get("/api/v1/audit/{id:str}", opt={"roles": READ, "answer": EVENTS})
async def get_(id: FromPath[str]) -> Row:
    """Return the event of this id, else the newest event about the resource of this id."""
    rows = await db.fetch(BY_ID, id) or await db.fetch(NEWEST_OF, id)
    if not rows:
        raise not_found("Audit event")
    return show(rows[0])


routes = [list_, get_]
