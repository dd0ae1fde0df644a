"""Issuers over HTTP, and the test button."""

from http import HTTPStatus
from typing import Literal, TypedDict

from litestar import post
from litestar.params import FromPath

from certctl_server.auth.principal import Req
from certctl_server.auth.roles import WRITE
from certctl_server.connectors.probe import Check, check_connection
from certctl_server.connectors.rows import configured_routes
from certctl_server.context import Ctx
from certctl_server.issuers.service import ISSUERS


class Connected(TypedDict):
    """The CA answered."""

    status: Literal["connection_successful"]
    checks: list[Check]


@post("/{id:str}/test", opt={"roles": WRITE}, status_code=HTTPStatus.OK)
async def test(request: Req, ctx: Ctx, id: FromPath[str]) -> Connected:
    """Ask the CA, changing nothing there."""
    return {"status": "connection_successful", "checks": await check_connection(ISSUERS, ctx, request, id)}


routes = [configured_routes(ISSUERS, test)]
