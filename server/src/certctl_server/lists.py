"""Lists: paging, cursors, sort, filters and sparse fields, once for all.

A resource says what its list is in a ``ListSpec``, most of it derived by ``listed`` from the table's columns;
its handler returns ``await list_response(request, SPEC)`` and its route says ``"query": LISTED``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import msgspec
from litestar import Response

from certctl_server import db
from certctl_server.auth.principal import Req, Where, visible
from certctl_server.context import context_of
from certctl_server.cursor import Position, pack, signing_key, unpack
from certctl_server.filters import Bound
from certctl_server.list_query import Asked, asked, query, unfit
from certctl_server.list_spec import Given as Given
from certctl_server.list_spec import Key as Key
from certctl_server.list_spec import ListSpec as ListSpec
from certctl_server.list_spec import Row as Row
from certctl_server.list_spec import Show as Show
from certctl_server.list_spec import Tallied as Tallied
from certctl_server.list_spec import listed as listed
from certctl_server.list_spec import tallied as tallied

EVERY_PAGE = 1000
"""Rows that ``every`` holds at once."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which rows are meant: a condition, and its arguments so far."""

    condition: str
    bound: Bound
    narrowed: bool = False
    """By more than the filters."""


async def list_response(request: Req, spec: ListSpec, *, where: Where | None = None) -> Response[bytes]:
    """Answer a list request.

    ``where`` narrows the list beyond its filters, as a path does. The rows that the caller may not see are left out.

    Raises:
        Refused: 400, naming the parameters at fault.
    """
    wanted = asked(spec, query(request.scope))
    bound = Bound()
    seen = visible(request.user, spec.table)
    condition = conditions(spec, wanted.filters, bound, spec.shown, seen, where)
    rows = _Rows(condition, bound, narrowed=bool(seen or where))
    if wanted.cursor is None:
        answer = await _paged(wanted, rows)
    else:
        walk = f"{request.scope['path']}|{wanted.sort}|{wanted.way}|{sorted(wanted.filters.items())}"
        answer = await _walked(wanted, rows, walk, await signing_key(context_of(request)))
    return Response(msgspec.json.encode(answer) + b"\n", media_type="application/json")


def conditions(spec: ListSpec, given: Given, bound: Bound, *wheres: Where | None) -> str:
    """Return the condition on ``item`` that the filters ``given`` and all of ``wheres`` make, arguments in ``bound``.

    Raises:
        Refused: 400, naming the filters that are unknown or whose value is not possible.
    """
    found = [bound.where(each) for each in wheres if each]
    found += [bound.where(each) for name, each in spec.unless.items() if name not in given]
    faults: dict[str, str] = {}
    for name, text in given.items():
        make = spec.every_filter.get(name)
        try:
            if make:
                found.append(make(text, bound))
        except ValueError as exc:
            faults[name] = str(exc)
        if not make:
            faults[name] = "is unknown"
    if faults:
        raise unfit(faults)
    return " AND ".join(found) or "1 = 1"


def every(spec: ListSpec, given: Given, *wheres: Where | None, sort: str) -> AsyncIterator[list[Row]]:
    """Return all rows that match, pages of them in keyset order: upwards by ``sort``, a key that is never empty.

    A row that exists from the first page to the last is in one of them.

    Raises:
        Refused: 400, naming the filters that are unknown or whose value is not possible.
    """
    bound = Bound()
    rows = _Rows(conditions(spec, given, bound, *wheres), bound)
    return _every(
        Asked(spec, given, sort, descending=False, cursor="", page=1, size=EVERY_PAGE, fields=frozenset()), rows
    )


async def _every(asked: Asked, rows: _Rows) -> AsyncIterator[list[Row]]:
    at: Position | None = None
    while found := await _after(asked, rows, at, asked.size):
        yield found
        at = _position(asked, found[-1])


async def _paged(asked: Asked, rows: _Rows) -> Row:
    found = await _select(asked, rows, _order(asked), asked.size, (asked.page - 1) * asked.size)
    # A first page that is not full has been counted by reading it.
    whole = asked.page == 1 and len(found) < asked.size
    total = len(found) if whole else await _total(asked, rows)
    return {"data": _shown(asked, found), "total": total, "page": asked.page, "per_page": asked.size}


async def _walked(asked: Asked, rows: _Rows, walk: str, key: bytes) -> Row:
    """One page of a walk in keyset order. Rows with an empty sort key come last, by a statement of their own."""
    try:
        at = unpack(key, walk, asked.cursor) if asked.cursor else None
    except ValueError as exc:
        raise unfit({"cursor": str(exc)}) from exc
    total = await _total(asked, rows)
    found: list[Row] = []
    want = asked.size + 1
    if at is None or not at.empty:
        found = await _after(asked, rows, at, want)
    if asked.key.may_be_empty and len(found) < want:
        found += await _after_empty(asked, rows, at if at and at.empty else None, want - len(found))
    answer: Row = {"data": _shown(asked, found[: asked.size]), "total": total, "page_size": asked.size}
    if len(found) == want:
        answer["next_cursor"] = pack(key, walk, _position(asked, found[asked.size - 1]))
    return answer


def _position(asked: Asked, row: Row) -> Position:
    value = row["list_key"]
    empty = asked.key.may_be_empty and value in (None, "")
    value = value.isoformat() if isinstance(value, datetime) else value
    return Position(row["id"], None if empty else value, empty)


async def _after(asked: Asked, rows: _Rows, at: Position | None, limit: int) -> list[Row]:
    bound = Bound(list(rows.bound.args))
    condition = rows.condition
    if asked.key.may_be_empty:
        condition += f" AND {asked.key.present}"
    if at is not None:
        value = at.value
        if asked.key.kind == "time" and db.dialect() == "postgres":
            value = datetime.fromisoformat(value)
        than = "<" if asked.descending else ">"
        condition += f" AND ({asked.key.sort}, item.id{{C}}) {than} ({bound.add(value)}, {bound.add(at.id)})"
    order = f"{asked.key.sort} {asked.way}, item.id{{C}} {asked.way}"
    return await _select(asked, _Rows(condition, bound), order, limit)


async def _after_empty(asked: Asked, rows: _Rows, at: Position | None, limit: int) -> list[Row]:
    bound = Bound(list(rows.bound.args))
    condition = f"{rows.condition} AND {asked.key.absent}"
    if at is not None:
        condition += f" AND item.id{{C}} {'<' if asked.descending else '>'} {bound.add(at.id)}"
    return await _select(asked, _Rows(condition, bound), f"item.id{{C}} {asked.way}", limit)


def _order(asked: Asked) -> str:
    key = asked.key
    first = f"{key.sort} {asked.way}"
    if key.may_be_empty and key.kind == "text":
        first = f"nullif({key.sql}, ''){{C}} {asked.way} NULLS LAST"
    elif key.may_be_empty:
        first += " NULLS LAST"
    return first if key.sql == "item.id" else f"{first}, item.id{{C}} {asked.way}"


async def _select(asked: Asked, rows: _Rows, order: str, limit: int, offset: int = 0) -> list[Row]:
    spec = asked.spec
    bound = Bound(list(rows.bound.args))
    table = f"{spec.table._meta.tablename} AS item"
    # As text on SQLite: equal moments may be written differently there, and a walk compares what is written.
    key = f"{asked.key.sql}{{T}}" if asked.key.kind == "time" else asked.key.sql
    # With filters PostgreSQL plans each time, by their values: it will not keep a plan for any number of rows. Without,
    # it plans once.
    most = bound.add(limit) if asked.filters or rows.narrowed else str(limit)
    page = f"FROM {table} WHERE {rows.condition} ORDER BY {order} LIMIT {most}"
    picked = f"(SELECT item.* {page}) AS item"
    if offset:  # what is passed over is ids, not whole rows
        picked = f"(SELECT item.id {page} OFFSET {bound.add(offset)}) AS picked JOIN {table} ON item.id = picked.id"
    text = ["SELECT", spec.select, ",", key, "AS list_key FROM", picked, spec.joins, "ORDER BY", order]
    return await db.fetch(_sql(" ".join(text)), *bound.args)


async def _total(asked: Asked, rows: _Rows) -> int:
    kept = [each for each in asked.spec.tallies if asked.filters.keys() <= each.filters]
    if kept and not rows.narrowed:
        bound = Bound()
        text = ["SELECT coalesce(sum(item.n), 0) AS total FROM (", kept[0].rows, ") AS item WHERE"]
        text.append(conditions(asked.spec, asked.filters, bound))
    else:
        bound = rows.bound
        text = ["SELECT count(*) AS total FROM", asked.spec.table._meta.tablename, "AS item WHERE", rows.condition]
    [row] = await db.fetch(_sql(" ".join(text)), *bound.args)
    return int(row["total"])


@lru_cache(maxsize=1024)
def _sql(text: str) -> db.Sql:
    return db.Sql(
        postgres=text.replace("{C}", ' COLLATE "C"').replace("{T}", ""),
        sqlite=text.replace("{C}", "").replace("{T}", " || ''"),
    )


def _shown(asked: Asked, rows: list[Row]) -> list[Row | msgspec.Raw]:
    objects = [asked.spec.show(row) for row in rows]
    if not asked.fields:
        return objects
    read: list[Row] = [msgspec.json.decode(each) if isinstance(each, msgspec.Raw) else each for each in objects]
    return [{key: value for key, value in each.items() if key in asked.fields} for each in read]
