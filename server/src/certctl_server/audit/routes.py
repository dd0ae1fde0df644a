"""The audit trail over HTTP: read only, as the database has it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
from certctl_core.audit import is_signed
from litestar import Response, get
from litestar.params import FromPath
from litestar.response import Stream

from certctl_server import db
from certctl_server.audit import chain, entries, witness
from certctl_server.audit.export import FORMS, verifiable
from certctl_server.audit.record import Event, record
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.principal import Req, Where, actor_of, visible
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.context import Context, Ctx
from certctl_server.errors import not_found
from certctl_server.filters import Bound, Described, after, before, equal, since, word
from certctl_server.http.asked import is_head
from certctl_server.list_query import query
from certctl_server.lists import Given, Key, Row, Tallied, every, list_response, listed

SHOWN = ("id", "actor", "actor_type", "action", "resource_type", "resource_id", "timestamp")
OPTIONAL = ("request_id", "hash", "previous_hash")
BY_ID = db.Sql("SELECT * FROM audit_event WHERE id = $1")
NEWEST_OF = db.Sql("SELECT * FROM audit_event WHERE resource_id = $1 ORDER BY timestamp DESC, id DESC LIMIT 1")


def show(row: Row) -> Row:
    """Return the JSON object of an event; the hashes are there once it is sealed."""
    found = {name: row[name] for name in SHOWN}
    found["details"] = msgspec.Raw(row["details"].encode())
    return found | {name: row[name] for name in OPTIONAL if row[name]}


# What is sealed is numbered without a gap, and only the oldest ever leaves.
COUNTED = """
    SELECT coalesce((SELECT max(sequence) FROM audit_event) - (SELECT min(sequence) FROM audit_event) + 1, 0)
        + (SELECT count(*) FROM audit_event WHERE sequence IS NULL) AS n
    """
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
    tallies=[Tallied(COUNTED)],
)


def _is_form(text: str, _: Bound) -> str:
    if text.lower() not in FORMS:
        raise ValueError(f"is none of {', '.join(FORMS)}")
    return "1 = 1"


#: ``format`` is checked among the filters, so that every fault is told at once.
EXPORTED = replace(
    EVENTS,
    filters={
        **EVENTS.filters,
        "from": since("item.timestamp"),
        "to": before("item.timestamp"),
        "format": Described(_is_form, {"type": "string", "enum": [*FORMS]}),
    },
)


@get("/api/v1/audit", opt={"roles": READ, "query": LISTED, "list": EVENTS})
async def list_(request: Req) -> Response[bytes]:
    """List what was done, newest first."""
    return await list_response(request, EVENTS)


@get(
    "/api/v1/audit/export",
    opt={"roles": WRITE, "query": LISTED, "filters": EXPORTED, "media": [media for _, media in FORMS.values()]},
)
async def export(request: Req, ctx: Ctx) -> Response[bytes] | Stream:
    """Send what was done as a file, oldest first, in bounded memory.

    As ndjson and without filters, it is in the order of the chain and can be verified without the server.
    """
    asked = {name: text for name, text in query(request.scope).items() if text and name != "_"}
    form = asked.get("format", "ndjson").lower()
    headers = {"Content-Disposition": f'attachment; filename="audit.{form}"'}
    parts = await _parts(ctx, request, asked, form)
    if is_head(request):
        return Response(b"", media_type=FORMS[form][1], headers=headers)
    filters = {name: text for name, text in asked.items() if name != "format"}
    await record([Event(actor_of(request), "audit_exported", "audit", "", {"format": form, "filters": filters})])
    return Stream(parts, media_type=FORMS[form][1], headers=headers)


async def _parts(ctx: Context, request: Req, asked: Given, form: str) -> AsyncIterator[bytes]:
    # Read first: what is sealed meanwhile only makes the trail longer.
    seen = await witness.current(ctx.settings.data_dir)
    extent = await entries.extent()
    known = Where("item.number <= {}", (extent.newest,))
    pages = every(EXPORTED, asked, visible(request.user, AuditEvent), known, sort="timestamp")
    if form != "ndjson" or asked.keys() - {"format"}:
        return FORMS[form][0](pages, show)
    key = await chain.signing_key(ctx.cipher)
    return verifiable(key, extent, seen if seen and is_signed(key.public_key(), seen.link, seen.signature) else None)


@get("/api/v1/audit/{id:str}", opt={"roles": READ, "answer": EVENTS})
async def get_(id: FromPath[str]) -> Row:
    """Return the event of this id, else the newest event about the resource of this id."""
    rows = await db.fetch(BY_ID, id) or await db.fetch(NEWEST_OF, id)
    if not rows:
        raise not_found("Audit event")
    return show(rows[0])


routes = [list_, export, get_]
