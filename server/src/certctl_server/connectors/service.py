"""Configured rows (issuers, targets, notifiers): what clients say of one is read, stored and shown here alone.

The API is tolerant: whatever could become a working connector is stored, and what is missing only makes the row
``incomplete``. What is of the wrong type, or unsafe, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from certctl_core.config import ConnectorConfig, read
from certctl_core.connector import Connector
from certctl_core.errors import MisconfiguredError
from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.principal import Req, actor_of
from certctl_server.connectors.config import Raw, hide, kept_secrets, merged, moved, seal, sealed_keys, unseal
from certctl_server.connectors.tables import Configured
from certctl_server.context import Context, context_of
from certctl_server.crud import missing_references, one
from certctl_server.errors import conflict, invalid
from certctl_server.ids import new_id
from certctl_server.lists import Row
from certctl_server.sealing import place

MOST_VALUES = 2000
READY, INCOMPLETE, DISABLED, FAILING, OFFLINE = "ready", "incomplete", "disabled", "failing", "offline"
Model: TypeAlias = type[ConnectorConfig]
NEW: Mapping[str, Any] = {"type": "", "config": "{}", "config_version": 0, "enabled": None, "status": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row being written, inside the transaction that writes it."""

    ctx: Context
    actor: Actor
    id: str
    before: Row | None
    """The row as it was, None for a new one."""
    after: Row
    """The row as it is now; empty for one that is about to be deleted."""

    def changed(self, *names: str) -> bool:
        """Whether one of these columns has another value than before; never for a new row."""
        return self.before is not None and any(self.before[name] != self.after[name] for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The options of a row as a client sent them, for checks beyond their types."""

    ctx: Context
    model: Model | None
    """What the connector takes; None while it is not installed."""
    raw: Mapping[str, Any]
    """Everything in the clear: never to be logged or repeated."""


Hook: TypeAlias = Callable[[Change], Awaitable[None]]


async def _nothing(_: Change) -> None:
    """For families without such a rule."""


def _no_faults(_: Given) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to issuers, targets or notifiers."""

    path: str
    table: type[Configured]
    kind: str
    """As messages call it: ``Issuer``."""
    object_name: str
    """As the OpenAPI document calls it."""
    prefix: str
    """Of generated ids."""
    body: type[msgspec.Struct]
    """A field per column that clients may set."""
    types: tuple[str, ...]
    """The types that clients know, in their spelling, whether a connector for them is installed or not."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of types, in lower case."""
    classes: Callable[[Plugins], Mapping[str, type[Connector]]]
    """Picks the installed connectors of this family."""
    states: tuple[str, ...]
    """What ``status`` may say."""
    status: str
    """SQL over ``item``: the status as it is shown, which may hang on more than the row."""
    more: tuple[str, ...] = ()
    """Further columns to show."""
    json: frozenset[str] = frozenset()
    """Those of them that hold JSON."""
    optional: frozenset[str] = frozenset()
    """Those of them that are left out when empty."""
    reserved: frozenset[str] = frozenset()
    """Ids of rows that stay."""
    unsafe: Callable[[Given], Mapping[str, str]] = _no_faults
    """Returns faults, by key of the options, beyond those of the connector's types."""
    written: Hook = _nothing
    """Called when a row was made or changed."""
    removing: Hook = _nothing
    """Called before a row is deleted."""

    @property
    def name(self) -> str:
        """The table's name, which the audit trail and seals use as well."""
        return str(self.table._meta.tablename)

    def spellings(self, plugins: Plugins) -> dict[str, str]:
        """Return the types that there are, installed ones of strangers included, by lower-case name."""
        known = {kind.casefold(): kind for kind in self.classes(plugins)}
        return known | {name.casefold(): name for name in self.types} | dict(self.aliases)

    def model(self, plugins: Plugins, type_: str) -> Model | None:
        """Return what options the connector of a type takes; None if it is not installed."""
        found = [cls for kind, cls in self.classes(plugins).items() if kind.casefold() == type_.casefold()]
        return found[0].Config if found else None

    def where(self, row_id: str) -> str:
        """Return the place for which the secrets of a row are sealed."""
        return place(self.name, row_id, "config")

    def show(self, row: Row, plugins: Plugins) -> Row:
        """Return the JSON object of a row, its secrets hidden."""
        found = {
            "id": row["id"],
            "name": row["name"],
            "type": row["type"],
            "config": hide(self.model(plugins, row["type"]), json.loads(row["config"])),
            "enabled": bool(row["enabled"]),
            "status": row["shown_status"],
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
        }
        if warnings := json.loads(row["config_warnings"]):
            found["config_warnings"] = warnings
        for name in self.more:
            value = json.loads(row[name]) if name in self.json and row[name] else row[name]
            if name not in self.optional or value not in (None, "", [], {}):
                found[name] = value
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the connector would say of stored options."""

    complete: bool
    """Whether an instance can be made of them."""
    warnings: tuple[str, ...] = ()
    """Keys that the connector does not know."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """What is not there, or does not go together: by field path, ``config.url``."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """What is there and wrong, by field path; no value is ever in the words."""


def assess(family: Family, ctx: Context, type_: str, stored: Mapping[str, Any], where: str) -> Verdict:
    """Return what is to be said of the stored options of a row."""
    model = family.model(ctx.plugins, type_)
    try:
        raw = unseal(stored, ctx.cipher, where)
    except MisconfiguredError as exc:
        return Verdict(complete=False, missing={"config": str(exc)})
    unsafe = {f"config.{key}": words for key, words in family.unsafe(Given(ctx=ctx, model=model, raw=raw)).items()}
    if model is None:
        return Verdict(complete=False, missing={"type": f"no connector of kind {type_} is installed"}, faults=unsafe)
    reading = read(model, raw)
    missing = {f"config.{name}": "required" for name in _required(model) if raw.get(name) == ""}
    faults = dict(unsafe)
    for path, message in reading.faults:
        # "" is how forms send what was not filled in; without a path the options do not go together.
        absent = not path or _at(raw, path) in (None, "")
        (missing if absent else faults)[f"config.{path}".removesuffix(".")] = message
    return Verdict(complete=not missing and not faults, warnings=reading.warnings, missing=missing, faults=faults)


def _required(model: Model) -> Iterable[str]:
    return [name for name, field_ in model.model_fields.items() if field_.is_required()]


def _at(raw: Any, path: str) -> Any:
    """What lies at ``path``, None where nothing does; steps that name a model's variant are no keys and passed by."""
    for step in path.split("."):
        if isinstance(raw, Mapping):
            raw = raw.get(step, raw if step in raw.values() else None)
        elif isinstance(raw, list) and step.isdigit():
            raw = raw[int(step)] if int(step) < len(raw) else None
        else:
            return raw
    return raw


async def create(family: Family, ctx: Context, request: Req, values: Row) -> Row:
    """Store a new row and return its object.

    Raises:
        Refused: 400, naming the fields at fault.
    """
    row_id = values.pop("id") or new_id(family.prefix)
    columns = await _columns(family, request, row_id, values, None)
    now = ctx.clock()
    actor = actor_of(request)
    told = {"name": values["name"], "type": columns["type"]}
    async with audited(actor, f"{family.name}_created", family.name, row_id, told):
        await family.table.insert(family.table(id=row_id, created_at=now, updated_at=now, **columns))
        after = await stored(family, row_id)
        await family.written(Change(ctx=ctx, actor=actor, id=row_id, before=None, after=after))
    return family.show(after, ctx.plugins)


async def update(family: Family, ctx: Context, request: Req, row_id: str, values: Row) -> Row:
    """Change a row and return its object; the options merge at their first level.

    Raises:
        Refused: 400, naming the fields at fault; 404.
    """
    actor = actor_of(request)
    async with db.transaction():
        before = await one(family.table, row_id, request.user, family.kind, lock=True)
        columns = await _columns(family, request, row_id, values, before)
        told = {"changed": sorted(values), "options": [key[:64] for key in sorted(values.get("config") or ())[:64]]}
        async with audited(actor, f"{family.name}_updated", family.name, row_id, told):
            await family.table.update(**columns, updated_at=ctx.clock()).where(family.table.id == row_id)
            after = await stored(family, row_id)
            await family.written(Change(ctx=ctx, actor=actor, id=row_id, before=before, after=after))
    return family.show(after, ctx.plugins)


async def remove(family: Family, ctx: Context, request: Req, row_id: str) -> None:
    """Delete a row and what hangs on it alone.

    Raises:
        Refused: 404; 409, it is in use or belongs to the installation.
    """
    actor = actor_of(request)
    async with db.transaction():
        row = await one(family.table, row_id, request.user, family.kind, lock=True)
        if row_id in family.reserved:
            raise conflict(f"{family.kind} {row_id} belongs to the installation and stays")
        async with audited(actor, f"{family.name}_deleted", family.name, row_id, {"name": row["name"]}):
            await family.removing(Change(ctx=ctx, actor=actor, id=row_id, before=row, after={}))
            await family.table.delete().where(family.table.id == row_id)


async def stored(family: Family, row_id: str) -> Row:
    """Return a row that is there, with ``shown_status``."""
    [row] = await db.fetch(db.Sql(f"SELECT {selected(family)} FROM {family.name} AS item WHERE item.id = $1"), row_id)  # noqa: S608  # ours
    return row


def selected(family: Family) -> str:
    """Return what is read of each row."""
    return f"item.*, {family.status} AS shown_status"


async def tested(family: Family, ctx: Context, request: Req, row: Row, *, ok: bool) -> None:
    """Note that the connection of a row was tested, and how that went."""
    status = READY if ok else FAILING
    sql = db.Sql(
        f"UPDATE {family.name} SET last_tested_at = $3, status = $4"  # noqa: S608  # ours
        " WHERE id = $1 AND config_version = $2 AND status IN ('ready', 'failing')"
    )
    async with audited(actor_of(request), f"{family.name}_tested", family.name, row["id"], {"ok": ok}):
        await db.fetch(sql, row["id"], row["config_version"], ctx.clock(), status)


async def refresh(family: Family, ctx: Context) -> int:
    """Bring status and warnings of every row up to the connectors that are installed now; return how many changed."""
    read_all = db.Sql(f"SELECT * FROM {family.name} WHERE id > $1 ORDER BY id LIMIT 1000")  # noqa: S608  # ours
    write = db.update_rows(family.name, "id", {"status": "text", "config_warnings": "text"})
    last, changed = "", 0
    while rows := await db.fetch(read_all, last):
        last = rows[-1]["id"]
        fresh = [{"id": row["id"], **_judged(family, ctx, row)} for row in rows]
        stale = [new for old, new in zip(rows, fresh, strict=True) if any(old[name] != new[name] for name in new)]
        if stale:
            await db.fetch(write, json.dumps(stale))
        changed += len(stale)
    return changed


def _judged(family: Family, ctx: Context, row: Row) -> dict[str, str]:
    verdict = assess(family, ctx, row["type"], json.loads(row["config"]), family.where(row["id"]))
    return {
        "status": _status(verdict, row["enabled"], row["status"]),
        "config_warnings": json.dumps(verdict.warnings),
    }


async def _columns(family: Family, request: Req, row_id: str, values: Row, before: Row | None) -> Row:
    """Return the columns to write: what the client gave, its options merged, sealed and judged."""
    ctx, old = context_of(request), before or NEW
    given = values.get("config")
    faults = await missing_references(family.table, values, request.user)
    type_ = _type(family, ctx, values, old, faults)
    if given and _count(given) > MOST_VALUES:
        faults["config"] = f"holds more than {MOST_VALUES} values"
    elif given:
        faults |= {f"config.{key}": "is not possible" for key in sealed_keys(given)}
    if faults:
        raise invalid(faults)
    model, where, had = family.model(ctx.plugins, type_), family.where(row_id), json.loads(old["config"])
    mixed = merged(model, had, given or {})
    kept = kept_secrets(mixed)
    if before and kept and (why := _elsewhere(ctx, where, (before, had), (values | {"type": type_}, mixed))):
        # Whoever may change where a connector calls does not thereby get what it says there.
        raise invalid({f"config.{key}": f"must be sent again: {why} has changed" for key in kept})
    config = seal(model, mixed, ctx.cipher, where)
    verdict = assess(family, ctx, type_, config, where)
    # A connector that became stricter must not keep a client from changing the name.
    if verdict.faults and (given is not None or type_ != old["type"]):
        raise invalid(verdict.faults)
    enabled = values.get("enabled", old["enabled"])
    changed = config != had or type_ != old["type"] or enabled != old["enabled"]
    return _encoded(family, values) | {
        "type": type_,
        "config": json.dumps(config, ensure_ascii=False),
        "config_version": old["config_version"] + changed,
        "config_warnings": json.dumps(verdict.warnings),
        "status": _status(verdict, enabled, "" if changed else old["status"]),
    }


def _elsewhere(ctx: Context, where: str, old: tuple[Row, Raw], new: tuple[Row, Raw]) -> str:
    """What makes the row, so far ``old``, speak to somebody else; empty if nothing does."""

    def same(one: Any, other: Any) -> bool:
        return bool(one == other or _opened(one) == other)

    def _opened(value: Any) -> Any:
        try:
            return unseal({"": value}, ctx.cipher, where)[""]
        except MisconfiguredError:
            return None

    columns = [name for name in ("type", "agent_id") if name in new[0] and old[0][name] != new[0][name]]
    return columns[0] if columns else moved(old[1], new[1], same)


def _count(value: Any) -> int:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, inner))


def _type(family: Family, ctx: Context, values: Row, old: Mapping[str, Any], faults: dict[str, str]) -> str:
    if "type" not in values:
        return str(old["type"])
    known = family.spellings(ctx.plugins)
    if (found := known.get(values["type"].casefold())) is None:
        faults["type"] = f"is none of {', '.join(dict.fromkeys(known.values()))}"
    return found or ""


def _status(verdict: Verdict, enabled: bool | None, was: str) -> str:  # noqa: FBT001  # a column's value
    if not enabled:
        return DISABLED
    if not verdict.complete:
        return INCOMPLETE
    return FAILING if was == FAILING else READY


def _encoded(family: Family, values: Row) -> Row:
    return {
        name: msgspec.json.encode(value).decode() if name in family.json and value is not None else value
        for name, value in values.items()
        if name != "config"
    }
