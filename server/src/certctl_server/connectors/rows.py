"""The five routes that issuers, targets and notifiers share."""

from dataclasses import replace
from functools import partial
from http import HTTPStatus

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from certctl_server.auth.principal import Req
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.body import ID, changes, new
from certctl_server.connectors.service import Family, create, remove, selected, stored, update
from certctl_server.context import Ctx
from certctl_server.crud import one
from certctl_server.filters import Filter, flag, word
from certctl_server.http.answer import Answer
from certctl_server.lists import Key, ListSpec, Row, list_response, listed

SHOWN = ("id", "name", "type", "config", "enabled", "status", "config_warnings", "created_at", "updated_at")
NO_SCALARS = ("config", "config_warnings")


def configured_routes(
    family: Family, *more: ControllerRouterHandler, filters: dict[str, Filter] | None = None
) -> Router:
    """Build the routes of a family; ``more`` are handlers with paths below the same one."""
    fields = [("id", ID, "")]
    body_of_new: type[msgspec.Struct] = msgspec.defstruct(f"New{family.body.__name__}", fields, bases=(family.body,))
    spec = listing(family, filters or {})

    @get("/", opt={"roles": READ, "query": LISTED})
    async def list_(request: Req, ctx: Ctx) -> Response[bytes]:
        types = family.spellings(ctx.plugins)
        here = {**spec.filters, "type": word("item.type", dict.fromkeys(types.values()), dict(family.aliases))}
        show = partial(family.show, plugins=ctx.plugins)
        return await list_response(request, replace(spec, show=show, filters=here))

    @get("/{id:str}", opt={"roles": READ})
    async def get_(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
        await one(family.table, id, request.user, family.kind)
        return family.show(await stored(family, id), ctx.plugins)

    @post("/", opt={"roles": WRITE})
    async def create_(request: Req, ctx: Ctx) -> Answer[Row]:
        body = await new(request, body_of_new)
        return Answer(await create(family, ctx, request, msgspec.structs.asdict(body)), status_code=HTTPStatus.CREATED)

    @put("/{id:str}", opt={"roles": WRITE})
    async def update_(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
        return await update(family, ctx, request, id, await changes(request, family.body))

    @delete("/{id:str}", opt={"roles": WRITE})
    async def delete_(request: Req, ctx: Ctx, id: FromPath[str]) -> None:
        await remove(family, ctx, request, id)

    handlers = [list_, get_, create_, update_, delete_, *more]
    return Router(family.path, route_handlers=handlers, tags=[family.kind])


def listing(family: Family, filters: dict[str, Filter]) -> ListSpec:
    """Return what the list of a family is, but for what hangs on the installed connectors."""
    return listed(
        family.table,
        lambda row: row,
        (*SHOWN, *family.more),
        json=(*NO_SCALARS, *family.json),
        keys={"status": Key(family.status, may_be_empty=False)},
        select=selected(family),
        filters={"enabled": flag("item.enabled"), "status": word(family.status, family.states), **filters},
    )
