"""List, get, create, change and delete for plain reference data, one call per resource.

A resource with rules of its own (certificates, jobs) writes its routes out instead.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.params import FromPath
from piccolo.table import Table

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.principal import Principal, Req, actor_of, visible
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.body import ID, changes, new
from certctl_server.context import Context, Ctx
from certctl_server.errors import conflict, invalid, not_found
from certctl_server.filters import Bound, Filter
from certctl_server.http.answer import Answer
from certctl_server.ids import new_id
from certctl_server.lists import ListSpec, Row, list_response, listed
from certctl_server.resource import Resource

Check = Callable[[Row, Mapping[str, Any] | None], Mapping[str, str]]
Changed = Callable[[Context, str], Awaitable[None]]


@dataclass(frozen=True)
class Crud:
    """What is particular to one resource."""

    path: str
    table: type[Resource]
    body: type[msgspec.Struct]
    """A field per column that clients may set; one that references a row is a foreign key of the table."""
    prefix: str
    """Of generated ids."""
    kind: str
    """As messages call it: ``Renewal policy``."""
    audit_name: str = ""
    """As the audit trail calls it; by default the table's name."""
    actions: tuple[str, str, str] = ("", "", "")
    """What the audit trail calls creation, change and deletion; by default ``<audit_name>_created`` and so on."""
    filters: Mapping[str, Filter] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    json: frozenset[str] = frozenset()
    """Columns that hold lists and maps as JSON."""
    computed: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the object, each with the SQL over ``item`` that it is read by."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """What the object has in these keys, where the body does not say it."""
    optional: frozenset[str] = frozenset()
    """Keys that are left out when empty."""
    reserved: frozenset[str] = frozenset()
    """Ids of rows that stay."""
    check: Check | None = None
    """Gets the values to be written, which it may complete, and the row before, None for a new one; returns faults."""
    changed: Changed | None = None
    """Called in the transaction that created or changed the row."""

    @property
    def resource_type(self) -> str:
        """What the audit trail calls it."""
        return self.audit_name or self.table._meta.tablename

    def action(self, number: int) -> str:
        """Return what the audit trail calls creation (0), change (1) or deletion (2)."""
        return self.actions[number] or f"{self.resource_type}_{('created', 'updated', 'deleted')[number]}"

    def show(self, row: Row) -> Row:
        """Return the JSON object of a row."""
        found = {
            name: msgspec.json.decode(row[name]) if name in self.json and row[name] is not None else row[name]
            for name in (*self.names, *self.computed)
        }
        for name in self.optional:
            if found[name] in (None, "", [], {}):
                del found[name]
        return found

    @cached_property
    def spec(self) -> ListSpec:
        """What is listed, and what one object is."""
        names = (*self.names, *self.computed)
        said = {each.encode_name: each.type for each in msgspec.structs.fields(self.body) if each.name in names}
        return listed(
            self.table,
            self.show,
            names,
            json=self.json,
            filters=self.filters,
            select=self.select,
            optional=self.optional,
            types={**said, **self.types},
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The keys of the object that are columns."""
        return tuple(column._meta.name for column in self.table._meta.columns)

    @cached_property
    def select(self) -> str:
        """What is read of each row."""
        return ", ".join(["item.*", *(f"{sql} AS {name}" for name, sql in self.computed.items())])

    async def one(self, id: str, principal: Principal, *, lock: bool = False) -> Row:
        """Return the row with this id, as ``one`` does."""
        return await _found(_by_id(f"SELECT {self.select}", self.table, id, principal), self.kind, lock=lock)


def crud_routes(crud: Crud) -> Router:
    """Build the five routes of a resource.

    Foreign keys do the rest: one out of the table must lead to a row, one into it forbids deletion.
    """
    body_of_new, body_of_change = bodies(crud.table.__name__, crud.body)

    @get("/", opt={"roles": READ, "query": LISTED, "list": crud.spec})
    async def list_(request: Req) -> Response[bytes]:
        return await list_response(request, crud.spec)

    @get("/{id:str}", opt={"roles": READ, "answer": crud.spec})
    async def get_(request: Req, id: FromPath[str]) -> Row:
        return crud.show(await crud.one(id, request.user))

    @post("/", opt={"roles": WRITE, "body": body_of_new, "answer": crud.spec})
    async def create(request: Req, ctx: Ctx) -> Answer[Row]:
        body = await new(request, body_of_new, aliases=crud.aliases)
        row = await _create(crud, ctx, request, msgspec.structs.asdict(body))
        return Answer(crud.show(row), status_code=HTTPStatus.CREATED)

    @put("/{id:str}", opt={"roles": WRITE, "change": body_of_change, "answer": crud.spec})
    async def update(request: Req, ctx: Ctx, id: FromPath[str]) -> Row:
        values = await changes(request, body_of_change, aliases=crud.aliases)
        return crud.show(await _update(crud, ctx, request, id, values))

    @delete("/{id:str}", opt={"roles": WRITE})
    async def delete_(request: Req, id: FromPath[str]) -> None:
        await _delete(crud, request, id)

    return Router(crud.path, route_handlers=[list_, get_, create, update, delete_], tags=[crud.kind])


def bodies(name: str, body: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
    """Return what clients may send to make and to change a row, named after what they are for."""
    new_body = msgspec.defstruct(f"New{name}", [("id", ID, "")], bases=(body,))
    return new_body, msgspec.defstruct(f"{name}Change", [], bases=(body,))


async def one(table: type[Table], id: str, principal: Principal, kind: str, *, lock: bool = False) -> Row:
    """Return the row with this id that ``principal`` may see; with ``lock`` nobody else changes it meanwhile.

    Others may still write rows that refer to it, as workers do that hold what this change is about to settle.

    Raises:
        Refused: 404, there is none.
    """
    return await _found(_by_id("SELECT item.*", table, id, principal), kind, lock=lock)


async def read_one(select: str, table: type[Table], id: str, principal: Principal, kind: str) -> Row:
    """Return what ``select`` reads of the row that ``one`` returns; errors as there."""
    return await _found(_by_id(f"SELECT {select}", table, id, principal), kind, lock=False)


async def _found(by_id: tuple[str, Bound], kind: str, *, lock: bool) -> Row:
    text, bound = by_id
    rows = await db.fetch(_sql(text, lock=lock), *bound.args)
    if not rows:
        raise not_found(kind)
    return rows[0]


@cache  # there are as many texts as resources, times their readers
def _sql(text: str, *, lock: bool = False) -> db.Sql:
    return db.Sql(postgres=f"{text} FOR NO KEY UPDATE OF item" if lock else text, sqlite=text)


async def missing_references(table: type[Table], values: Mapping[str, Any], principal: Principal) -> dict[str, str]:
    """Return a fault for each foreign key in ``values`` that leads to no row that ``principal`` may see."""
    faults = {}
    for column in table._meta.foreign_key_columns:
        name = column._meta.name
        there: type[Table] = column._foreign_key_meta.resolved_references
        if values.get(name) and not await exists(there, values[name], principal):
            faults[name] = "no such id"
    return faults


async def exists(table: type[Table], id: str, principal: Principal) -> bool:
    """Whether there is a row with this id that ``principal`` may refer to."""
    text, bound = _by_id("SELECT 1 AS there", table, id, principal)
    return bool(await db.fetch(_sql(text), *bound.args))


def _by_id(select: str, table: type[Table], id: str, principal: Principal) -> tuple[str, Bound]:
    bound = Bound()
    conditions = [f"item.id = {bound.add(id)}"]
    if where := visible(principal, table):
        conditions.append(bound.where(where))
    return f"{select} FROM {table._meta.tablename} AS item WHERE {' AND '.join(conditions)}", bound


async def _create(crud: Crud, ctx: Context, request: Req, values: Row) -> Row:
    id = values.pop("id") or new_id(crud.prefix)
    await _judge(crud, request, values, None)
    now = ctx.clock()
    async with _audited(crud, actor_of(request), 0, id, {"name": values["name"]}):
        await crud.table.insert(crud.table(id=id, created_at=now, updated_at=now, **_stored(crud, values)))
        if crud.changed:
            await crud.changed(ctx, id)
    return await crud.one(id, request.user)


async def _update(crud: Crud, ctx: Context, request: Req, id: str, values: Row) -> Row:
    async with db.transaction():
        before = crud.show(await crud.one(id, request.user, lock=True))
        await _judge(crud, request, values, before)
        async with _audited(crud, actor_of(request), 1, id, {"changed": sorted(values)}):
            await crud.table.update(**_stored(crud, values), updated_at=ctx.clock()).where(crud.table.id == id)
            if crud.changed:
                await crud.changed(ctx, id)
    return await crud.one(id, request.user)


async def _delete(crud: Crud, request: Req, id: str) -> None:
    async with db.transaction():
        row = await crud.one(id, request.user, lock=True)
        if id in crud.reserved:
            raise conflict(f"{crud.kind} {id} belongs to the installation and stays")
        for column in crud.table._meta.foreign_key_references:
            user = column._meta.table
            if await user.exists().where(column == id):
                raise conflict(f"{crud.kind} is in use: {user._meta.tablename} refers to it")
        async with _audited(crud, actor_of(request), 2, id, {"name": row["name"]}):
            await crud.table.delete().where(crud.table.id == id)


async def _judge(crud: Crud, request: Req, values: Row, before: Mapping[str, Any] | None) -> None:
    faults = dict(crud.check(values, before)) if crud.check else {}
    faults |= await missing_references(crud.table, values, request.user)
    if faults:
        raise invalid(faults)


def _stored(crud: Crud, values: Mapping[str, Any]) -> Row:
    return {
        name: msgspec.json.encode(value).decode() if name in crud.json and value is not None else value
        for name, value in values.items()
    }


def _audited(crud: Crud, actor: Actor, action: int, id: str, details: Mapping[str, Any]) -> Any:
    return audited(actor, crud.action(action), crud.resource_type, id, details)
