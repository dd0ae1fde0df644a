"""Agents over HTTP: registration, heartbeats, work, CSRs, reports. Agents poll; the server never calls them."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from certctl_core.job import JobState
from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery

from certctl_server import db, tls
from certctl_server.agents.csr import submit
from certctl_server.agents.health import AgentStatus
from certctl_server.agents.register import register
from certctl_server.agents.reports import SAID, Beat, Report, heartbeat, report, retrieved
from certctl_server.agents.tables import SCANNER, Agent
from certctl_server.agents.work import WorkItem, certificate_for, offers, seen
from certctl_server.audit.record import Event, audited, record
from certctl_server.auth.keys import create_token, rotate_agent_key
from certctl_server.auth.principal import Req, Where, actor_of, agent_caller
from certctl_server.auth.roles import ENROL, LISTED, OWN_AGENT, OWN_AGENT_READ, READ, WRITE, Role
from certctl_server.auth.tables import EnrolmentToken
from certctl_server.body import HARMLESS, ID, Time, new
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.errors import Refused, invalid, not_found
from certctl_server.filters import equal, word
from certctl_server.http.answer import Answer
from certctl_server.http.asked import is_head, mark_idle
from certctl_server.lists import Key, Row, list_response, listed, tallied
from certctl_server.telemetry.metrics import polled

BASE = "/api/v1/agents"
OWN = BASE + "/{id:str}"
LONGEST_WAIT = 25
Wait = Annotated[int, msgspec.Meta(ge=1, le=LONGEST_WAIT, description="Seconds; answers as soon as there is work.")]
Word = Annotated[str, msgspec.Meta(max_length=64, pattern=HARMLESS)]
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=HARMLESS)]
END_TOKEN = db.Sql("DELETE FROM enrolment_token WHERE id = $1 RETURNING id")


class NewAgent(msgspec.Struct):
    """What an agent says of itself when it registers."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=HARMLESS)]
    hostname: Host
    id: ID = ""
    os: Word = ""
    architecture: Word = ""
    ip_address: Word = ""
    version: Word = ""


class HeartbeatBody(msgspec.Struct):
    """What an agent says while it lives; empty texts keep what is known."""

    version: Word = ""
    hostname: Annotated[str, msgspec.Meta(max_length=255, pattern=HARMLESS)] = ""
    os: Word = ""
    architecture: Word = ""
    ip_address: Word = ""
    capabilities: Annotated[list[Word], msgspec.Meta(max_length=64)] | None = None
    local_time: Time | None = None
    boot_id: Annotated[str, msgspec.Meta(max_length=128, pattern=HARMLESS)] = ""


class CsrBody(msgspec.Struct):
    """A CSR and the certificate it is for."""

    csr_pem: Annotated[str, msgspec.Meta(max_length=64 * 1024)]
    certificate_id: ID = ""


class StatusBody(msgspec.Struct):
    """How far a job is."""

    status: Literal["Running", "Completed", "Failed"]
    error: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    error_kind: Literal["", "transient", "rejected", "misconfigured", "deployment"] = ""


class TokenBody(msgspec.Struct):
    """What an enrolment token is good for."""

    name: Annotated[str, msgspec.Meta(max_length=255, pattern=HARMLESS)] = ""
    max_uses: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    expires_at: Time | None = None


Once = Annotated[str, msgspec.Meta(description="In the answer that made it, and never again.")]
PLAIN = ("id", "name", "hostname", "status", "registered_at", "os", "architecture", "ip_address", "version")
OPTIONAL = ("last_heartbeat_at", "clock_offset_ms", "retired_at", "retired_reason")


def show(row: Row) -> Row:
    """Return the JSON object of an agent."""
    found = {name: row[name] for name in PLAIN} | {name: row[name] for name in OPTIONAL if row[name] not in (None, "")}
    if row["last_heartbeat_at"]:
        found["last_heartbeat"] = row["last_heartbeat_at"]
    if row["capabilities"]:
        found["capabilities"] = msgspec.Raw(row["capabilities"].encode())
    return found


AGENTS = listed(
    Agent,
    show,
    (*PLAIN, *OPTIONAL, "last_heartbeat", "capabilities"),
    json=("capabilities",),
    optional=(*OPTIONAL, "last_heartbeat", "capabilities"),
    types={"last_heartbeat": Time, "capabilities": list[str], "api_key": Once},
    filters={
        "status": word("item.status", AgentStatus),
        **{name: equal(f"item.{name}") for name in ("os", "architecture", "version", "name")},
    },
    keys={"created_at": Key("item.created_at", "time", may_be_empty=False)},
    shown=Where("item.id <> {}", (SCANNER,)),
    tallies=[tallied("agent", status="status")],
)
TOKEN_FIELDS = ("id", "name", "max_uses", "uses", "expires_at", "created_at", "created_by", "last_used_at")


def show_token(row: Row) -> Row:
    """Return the JSON object of an enrolment token, without the token."""
    return {name: row[name] for name in TOKEN_FIELDS if name != "last_used_at" or row[name]}


TOKENS = listed(EnrolmentToken, show_token, TOKEN_FIELDS, optional=("last_used_at",), types={"token": Once})


class HeartbeatRecorded(TypedDict):
    """The agent lives; the server's time tells it whether its clock is right."""

    status: Literal["heartbeat_recorded"]
    server_time: Time


class Work(TypedDict):
    """What an agent is to do, oldest first."""

    count: int
    jobs: list[WorkItem]


class CsrTaken(TypedDict):
    """What became of a CSR."""

    status: Literal["csr_signed", "csr_accepted"]


class CertificatePem(TypedDict):
    """A chain, leaf first."""

    certificate_pem: str


class Updated(TypedDict):
    """The report is taken."""

    status: Literal["updated"]


@get(BASE, opt={"roles": READ, "query": LISTED, "list": AGENTS})
async def list_(request: Req) -> Response[bytes]:
    """List agents."""
    return await list_response(request, AGENTS)


@post(BASE, opt={"roles": ENROL, "body": NewAgent, "answer": AGENTS, "codes": (200,)})
async def register_(request: Req, ctx: Ctx) -> Answer[Row]:
    """Register an agent; its key is in this answer only."""
    body = await new(request, NewAgent)
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    people = {named.name for named in ctx.settings.auth.named_keys}
    id, key = await register(values, request.user, actor_of(request), people)
    [row] = await db.fetch(db.Sql("SELECT * FROM agent WHERE id = $1"), id)
    return Answer(show(row) | ({"api_key": key} if key else {}), status_code=201 if key else 200)


@get(BASE + "/tokens", opt={"roles": WRITE, "query": LISTED, "list": TOKENS})
async def tokens(request: Req) -> Response[bytes]:
    """List enrolment tokens."""
    return await list_response(request, TOKENS)


@post(BASE + "/tokens", opt={"roles": WRITE, "body": TokenBody, "answer": TOKENS})
async def new_token(request: Req, ctx: Ctx) -> Answer[Row]:
    """Make an enrolment token; it is in this answer only."""
    body = await new(request, TokenBody)
    if body.expires_at is not None and body.expires_at <= ctx.clock():
        raise invalid({"expires_at": "is in the past"})
    actor = actor_of(request)
    async with db.transaction():
        row, secret = await create_token(
            name=body.name, max_uses=body.max_uses, expires_at=body.expires_at, created_by=actor.name
        )
        told = {"name": body.name, "max_uses": body.max_uses}
        await record([Event(actor, "enrolment_token_created", "enrolment_token", row.id, told)])
    pin = tls.pin(ctx.settings)
    token = f"{secret}.{pin}" if pin else secret
    return Answer(show_token(row.to_dict()) | {"token": token}, status_code=201)


@delete(BASE + "/tokens/{id:str}", opt={"roles": WRITE})
async def end_token(id: FromPath[str], request: Req) -> None:
    """End an enrolment token."""
    async with audited(actor_of(request), "enrolment_token_deleted", "enrolment_token", id):
        if not await db.fetch(END_TOKEN, id):
            raise not_found("Enrolment token")


@get(OWN, opt={"roles": OWN_AGENT_READ, "answer": AGENTS})
async def get_(id: FromPath[str], request: Req) -> Row:
    """Return an agent."""
    return show(await one(Agent, id, request.user, "Agent"))


@post(OWN + "/rotate-key", opt={"roles": OWN_AGENT, "answer": AGENTS}, status_code=200)
async def rotate(id: FromPath[str], request: Req, ctx: Ctx) -> Row:
    """Make the agent's next key; the old one lasts until it is used, and a day at most."""
    row = await one(Agent, id, request.user, "Agent")
    if request.user.role is not Role.ADMIN:
        await agent_caller(request.user, id, ctx.settings)
    async with db.transaction():
        new_key, key = await rotate_agent_key(id, request.user.key_id, ctx.clock())
        told = {"new_key": new_key.id, "agent_id": id}
        await record([Event(actor_of(request), "key_rotated", "api_key", str(new_key.replaces), told)])
    return show(row) | {"api_key": key}


@post(OWN + "/heartbeat", opt={"roles": OWN_AGENT, "body": HeartbeatBody}, status_code=200)
async def beat(id: FromPath[str], request: Req, ctx: Ctx) -> HeartbeatRecorded:
    """Note that the agent lives."""
    row = await seen(id, request.user)
    if not await agent_caller(request.user, id, ctx.settings):
        raise Refused(HTTPStatus.FORBIDDEN, "Only the agent's own key may do this")
    body = await new(request, HeartbeatBody)
    said = Beat({name: getattr(body, name) for name in SAID}, body.capabilities, body.local_time, body.boot_id)
    return {"status": "heartbeat_recorded", "server_time": await heartbeat(row, said)}


@get(OWN + "/work", opt={"roles": OWN_AGENT, "query": {"wait": Wait}})
async def work(id: FromPath[str], request: Req, ctx: Ctx, wait: FromQuery[int] = 0) -> Work:
    """Return what the agent is to do; its own key claims it, everybody else only looks."""
    row = await seen(id, request.user)
    acts = await agent_caller(request.user, id, ctx.settings, reading=True)
    if not 0 <= wait <= LONGEST_WAIT or (wait == 0 and "wait" in request.query_params):
        raise Refused(HTTPStatus.BAD_REQUEST, "The request is not valid", {"wait": "is a whole number from 1 to 25"})
    claims = acts and not is_head(request)
    jobs = await offers(ctx, row, claims=claims, wait=timedelta(seconds=wait if claims else 0))
    if claims:
        polled(found=bool(jobs))
    if not jobs:
        mark_idle(request)
    return {"count": len(jobs), "jobs": jobs}


@post(OWN + "/csr", opt={"roles": OWN_AGENT, "body": CsrBody}, status_code=202)
async def csr(id: FromPath[str], request: Req, ctx: Ctx) -> CsrTaken:
    """Take a CSR for a waiting order."""
    row = await one(Agent, id, request.user, "Agent")
    await agent_caller(request.user, id, ctx.settings)
    body = await new(request, CsrBody)
    return {"status": await submit(row, body.csr_pem, body.certificate_id, actor_of(request))}


@get(OWN + "/certificates/{certificate_id:str}", opt={"roles": OWN_AGENT})
async def certificate(id: FromPath[str], certificate_id: FromPath[str], request: Req, ctx: Ctx) -> CertificatePem:
    """Return the chain that the agent is to deploy."""
    await one(Agent, id, request.user, "Agent")
    await agent_caller(request.user, id, ctx.settings, reading=True)
    if (pem := await certificate_for(id, certificate_id)) is None:
        raise not_found("Certificate")
    await retrieved(id, certificate_id, actor_of(request))
    return {"certificate_pem": pem}


@post(OWN + "/jobs/{job_id:str}/status", opt={"roles": OWN_AGENT, "body": StatusBody}, status_code=200)
async def status(id: FromPath[str], job_id: FromPath[str], request: Req, ctx: Ctx) -> Updated:
    """Note how far the agent is with a job."""
    await one(Agent, id, request.user, "Agent")
    await agent_caller(request.user, id, ctx.settings)
    body = await new(request, StatusBody)
    # Line ends stay: a command's output has them.
    error = "".join(c for c in body.error if c.isprintable() or c in "\n\t")
    said = Report(JobState(body.status), error, body.error_kind)
    await report(id, job_id, said, ctx.settings.agent_run_lease, actor_of(request))
    return {"status": "updated"}


routes: list[Any] = [
    list_, register_, tokens, new_token, end_token, get_, rotate, beat, work, csr, certificate, status,
]  # fmt: skip
