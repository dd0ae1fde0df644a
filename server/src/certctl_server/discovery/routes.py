"""Discovery over HTTP: reports of agents, and what people make of them."""

from http import HTTPStatus
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from certctl_server.agents.tables import Agent
from certctl_server.auth.principal import Req, actor_of, agent_caller
from certctl_server.auth.roles import LISTED, OWN_AGENT, READ, WRITE
from certctl_server.body import ID, new
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.discovery import service
from certctl_server.discovery.report import ALGORITHMS, PATH_BYTES, Reported, clean, read_entries
from certctl_server.discovery.service import KIND, STATUSES
from certctl_server.discovery.tables import DiscoveredCertificate, DiscoveryScan
from certctl_server.errors import invalid
from certctl_server.filters import equal, flag, word
from certctl_server.lists import Row, list_response, listed, tallied

DIRECTORIES = 1000
SHOWN = (
    *("id", "fingerprint_sha256", "common_name", "sans", "serial_number", "issuer_dn", "subject_dn", "not_before"),
    *("not_after", "key_algorithm", "key_size", "is_ca", "pem_data", "source_path", "source_format", "agent_id"),
    *("discovery_scan_id", "managed_certificate_id", "status", "first_seen_at", "last_seen_at", "dismissed_at"),
    *("created_at", "updated_at"),
)
OPTIONAL = (
    *("not_before", "not_after", "pem_data", "discovery_scan_id", "managed_certificate_id"),
    "dismissed_at",
)
SCAN = (
    *("id", "agent_id", "directories", "certificates_found", "certificates_new", "errors_count", "scan_duration_ms"),
    *("started_at", "completed_at"),
)


class Report(msgspec.Struct):
    """What one scan found. Certificates are read one by one: one that makes no sense hides no other."""

    agent_id: str = ""
    directories: list[str] = msgspec.field(default_factory=list)
    certificates: list[Any] = msgspec.field(default_factory=list)
    errors: list[Any] = msgspec.field(default_factory=list)
    scan_duration_ms: int = 0


class Claim(msgspec.Struct):
    """An existing certificate, or what a new one needs."""

    managed_certificate_id: ID = ""
    create: bool = False
    owner_id: ID = ""
    team_id: ID = ""
    issuer_id: ID = ""


class Dismissal(msgspec.Struct):
    """Why, for the audit trail."""

    reason: Annotated[str, msgspec.Meta(max_length=1024)] = ""


def show(row: Row) -> Row:
    """Return the JSON object of a certificate that was found."""
    found = {name: row[name] for name in SHOWN if name not in OPTIONAL or row[name]}
    return found | {"sans": msgspec.Raw(row["sans"].encode()), "is_ca": bool(row["is_ca"])}


def show_scan(row: Row) -> Row:
    """Return the JSON object of a scan."""
    found = {name: row[name] for name in SCAN if name != "completed_at" or row[name]}
    return found | {"directories": msgspec.Raw(row["directories"].encode())}


FOUND = listed(
    DiscoveredCertificate,
    show,
    SHOWN,
    json=("sans", "pem_data"),
    optional=OPTIONAL,
    types={"sans": list[str]},
    order="-last_seen_at",
    filters={
        "agent_id": equal("item.agent_id"),
        "status": word("item.status", STATUSES),
        "is_ca": flag("item.is_ca"),
        "key_algorithm": word("item.key_algorithm", ALGORITHMS),
    },
    tallies=[tallied("discovered_certificate", status="status")],
)
SCANS = listed(
    DiscoveryScan,
    show_scan,
    SCAN,
    json=("directories",),
    optional=("completed_at",),
    types={"directories": list[str]},
    order="-started_at",
    filters={"agent_id": equal("item.agent_id")},
)


class Claimed(TypedDict):
    """What a certificate that was found is managed as."""

    status: Literal["claimed"]
    message: str
    certificate_id: NotRequired[str]


class Dismissed(TypedDict):
    """It is of no interest."""

    status: Literal["dismissed"]
    message: str


class DiscoverySummary(TypedDict):
    """How many were found, by status."""

    Unmanaged: int
    Managed: int
    Dismissed: int


@post(
    "/api/v1/agents/{id:str}/discoveries",
    opt={"roles": OWN_AGENT, "body": Report, "answer": SCANS},
    status_code=HTTPStatus.ACCEPTED,
)
async def report(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
    """Take what an agent found."""
    await one(Agent, id, request.user, "Agent")
    await agent_caller(request.user, id, ctx.settings)
    body = await new(request, Report)
    found, unfit = read_entries(body.certificates)
    reported = Reported(
        directories=[clean(directory, PATH_BYTES) for directory in body.directories[:DIRECTORIES]],
        found=found,
        errors=len(body.errors) + unfit,
        duration_ms=body.scan_duration_ms,
    )
    scan = await service.take(id, reported, actor_of(request))
    return show_scan(scan.to_dict())


@get("/api/v1/discovered-certificates", opt={"roles": READ, "query": LISTED, "list": FOUND})
async def list_(request: Req) -> Response[bytes]:
    """List what was found, last seen first."""
    return await list_response(request, FOUND)


@get("/api/v1/discovered-certificates/{id:str}", opt={"roles": READ, "answer": FOUND})
async def get_(request: Req, id: FromPath[str]) -> Row:
    """Return one certificate that was found."""
    return show(await one(DiscoveredCertificate, id, request.user, KIND))


@post("/api/v1/discovered-certificates/{id:str}/claim", opt={"roles": WRITE, "body": Claim}, status_code=HTTPStatus.OK)
async def claim(request: Req, id: FromPath[str]) -> Claimed:
    """Say which managed certificate it is, or make one of it."""
    await one(DiscoveredCertificate, id, request.user, KIND)
    body = await new(request, Claim)
    if body.managed_certificate_id:
        await service.claim(id, body.managed_certificate_id, request.user, actor_of(request))
        return {"status": "claimed", "message": f"It is managed as {body.managed_certificate_id}"}
    if not body.create:
        raise invalid({"managed_certificate_id": "required, unless create is true"})
    owners = {"owner_id": body.owner_id, "team_id": body.team_id, "issuer_id": body.issuer_id}
    if missing := {name: "required with create" for name, value in owners.items() if not value}:
        raise invalid(missing)
    made = await service.claim_as_new(id, owners, request.user, actor_of(request))
    return {"status": "claimed", "message": f"It is managed as {made}", "certificate_id": made}


@post(
    "/api/v1/discovered-certificates/{id:str}/dismiss",
    opt={"roles": WRITE, "body": Dismissal},
    status_code=HTTPStatus.OK,
)
async def dismiss(request: Req, id: FromPath[str]) -> Dismissed:
    """Say that it is of no interest."""
    await one(DiscoveredCertificate, id, request.user, KIND)
    body = await new(request, Dismissal)
    await service.dismiss(id, clean(body.reason, 1024), request.user, actor_of(request))
    return {"status": "dismissed", "message": "It will not be shown as unmanaged again"}


@get("/api/v1/discovery-scans", opt={"roles": READ, "query": LISTED, "list": SCANS})
async def scans(request: Req) -> Response[bytes]:
    """List the reports, newest first."""
    return await list_response(request, SCANS)


@get("/api/v1/discovery-summary", opt={"roles": READ})
async def summary() -> DiscoverySummary:
    """Count what was found, by status."""
    found = await service.summary()
    return {"Unmanaged": found["Unmanaged"], "Managed": found["Managed"], "Dismissed": found["Dismissed"]}


routes: list[ControllerRouterHandler] = [report, list_, get_, claim, dismiss, scans, summary]
