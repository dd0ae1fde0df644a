"""The five routes that issuers, targets and notifiers share."""

from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from certctl_server.auth.principal import Req
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.body import changes, new
from certctl_server.connectors.service import Family, create, remove, selected, stored, update
from certctl_server.context import Ctx
from certctl_server.crud import bodies, one
from certctl_server.filters import Described, Filter, equal, flag, word
from certctl_server.http.answer import Answer
from certctl_server.lists import Key, ListSpec, Row, list_response, listed

SHOWN = ("id", "name", "type", "config", "enabled", "status", "config_warnings", "created_at", "updated_at")
NO_SCALARS = ("config", "config_warnings")


def configured_routes(
    family: Family, *more: ControllerRouterHandler, filters: dict[str, Filter] | None = None
) -> Router:
    """Build the routes of a family; ``more`` are handlers with paths below the same one."""
    body_of_new, body_of_change = bodies(family.table.__name__, family.body)
    spec = listing(family, filters or {})

    @get("/", opt={"roles": READ, "query": LISTED, "list": spec})
    async def list_(request: Req, ctx: Ctx) -> Response[bytes]:
        types = family.spellings(ctx.plugins)
        here = {**spec.filters, "type": word("item.type", dict.fromkeys(types.values()), dict(family.aliases))}
        show = partial(family.show, plugins=ctx.plugins)
        return await list_response(request, replace(spec, show=show, filters=here))

    @get("/{id:str}", opt={"roles": READ, "answer": spec})
    async def get_(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
        await one(family.table, id, request.user, family.kind)
        return family.show(await stored(family, id), ctx.plugins)

    @post("/", opt={"roles": WRITE, "body": body_of_new, "answer": spec})
    async def create_(request: Req, ctx: Ctx) -> Answer[Row]:
        body = await new(request, body_of_new)
        return Answer(await create(family, ctx, request, msgspec.structs.asdict(body)), status_code=HTTPStatus.CREATED)

    @put("/{id:str}", opt={"roles": WRITE, "change": body_of_change, "answer": spec})
    async def update_(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
        return await update(family, ctx, request, id, await changes(request, body_of_change))

    @delete("/{id:str}", opt={"roles": WRITE})
    async def delete_(request: Req, ctx: Ctx, id: FromPath[str]) -> None:
        await remove(family, ctx, request, id)

    handlers = [list_, get_, create_, update_, delete_, *more]
    return Router(family.path, route_handlers=handlers, tags=[family.kind])


def listing(family: Family, filters: dict[str, Filter]) -> ListSpec:
    """Return what the list of a family is, but for what hangs on the installed connectors."""
    # Which there are hangs on what is installed.
    texts = {"type": "array", "items": {"type": "string", "examples": list(family.types)}}
    kinds = Described(equal("item.type"), texts)
    said = {each.encode_name: each.type for each in msgspec.structs.fields(family.body) if each.name in family.more}
    return listed(
        family.table,
        lambda row: row,
        (*SHOWN, *family.more),
        json=(*NO_SCALARS, *family.json),
        keys={"status": Key(family.status, may_be_empty=False)},
        select=selected(family),
        name=family.object_name,
        optional=("config_warnings", *family.optional),
        types={"config": dict[str, Any], "config_warnings": list[str], **said},
        filters={
            "type": kinds,
            "enabled": flag("item.enabled"),
            "status": word(family.status, family.states),
            **filters,
        },
    )
