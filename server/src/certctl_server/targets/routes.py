"""Targets over HTTP, and the test button."""

from http import HTTPStatus

from litestar import post
from litestar.params import FromPath

from certctl_server.audit.record import audited
from certctl_server.auth.principal import Req, actor_of
from certctl_server.auth.roles import WRITE
from certctl_server.connectors.rows import configured_routes
from certctl_server.connectors.service import stored
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.filters import equal
from certctl_server.targets import service
from certctl_server.targets.service import TARGETS


@post("/{id:str}/test", opt={"roles": WRITE}, status_code=HTTPStatus.OK)
async def test(request: Req, ctx: Ctx, id: FromPath[str]) -> service.Tested:
    """Say whether the target could be deployed to now."""
    await one(TARGETS.table, id, request.user, TARGETS.kind)
    found = await service.test(ctx, await stored(TARGETS, id))
    async with audited(actor_of(request), "target_tested", "target", id, {"status": found["status"]}):
        return found


routes = [configured_routes(TARGETS, test, filters={"agent_id": equal("item.agent_id")})]
