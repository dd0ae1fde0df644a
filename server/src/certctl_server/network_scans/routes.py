"""Network scan targets over HTTP."""

from http import HTTPStatus
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from litestar import post
from litestar.params import FromPath

from certctl_server.auth.principal import Req
from certctl_server.auth.roles import WRITE
from certctl_server.body import FAULT, Name, new
from certctl_server.context import Ctx
from certctl_server.crud import Crud, crud_routes
from certctl_server.discovery.routes import SCANS as DISCOVERY_SCANS
from certctl_server.errors import Refused, conflict
from certctl_server.http.answer import Answer
from certctl_server.network_scans.ranges import check_values, fault, has_any
from certctl_server.network_scans.tables import NetworkScanTarget

BASE = "/api/v1/network-scan-targets"
Cidr = Annotated[str, msgspec.Meta(max_length=64, extra={FAULT: fault})]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class NetworkScanTargetBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    cidrs: Annotated[list[Cidr], msgspec.Meta(min_length=1, max_length=1024)]
    ports: Annotated[list[Port], msgspec.Meta(min_length=1, max_length=32)] = msgspec.field(
        default_factory=lambda: [443]
    )
    enabled: bool = True
    scan_interval_hours: Annotated[int, msgspec.Meta(ge=1, le=8784)] = 6
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 5000


class ScanBody(msgspec.Struct):
    """Nothing is asked beside the target."""


class NothingToScan(TypedDict):
    """The networks have no address that would be scanned."""

    status: Literal["completed"]
    message: str


SCANS = Crud(
    BASE,
    NetworkScanTarget,
    NetworkScanTargetBody,
    "nst",
    "Network scan target",
    json=frozenset({"cidrs", "ports"}),
    optional=frozenset({"last_scan_at", "last_scan_duration_ms", "last_scan_certs_found"}),
    check=check_values,
)


@post(
    BASE + "/{id:str}/scan",
    opt={"roles": WRITE, "body": ScanBody, "answer": DISCOVERY_SCANS, "others": {200: NothingToScan}},
    status_code=202,
)
async def scan(request: Req, ctx: Ctx, id: FromPath[str]) -> Answer[NothingToScan]:
    """Scan now."""
    found = SCANS.show(await SCANS.one(id, request.user))
    await new(request, ScanBody)
    if not ctx.settings.network_scan.enabled:
        raise conflict("Networks are not scanned: CERTCTL_NETWORK_SCAN_ENABLED is off")
    if not has_any(found["cidrs"]):
        told = "There is no address to scan: this machine, link-local and metadata addresses are left out"
        return Answer({"status": "completed", "message": told}, status_code=HTTPStatus.OK)
    raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "No connector that scans networks is installed")


routes: list[Any] = [crud_routes(SCANS), scan]
