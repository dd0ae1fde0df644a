"""What a server would have to change to be as files want it: computed from its lists, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from certctl_core.policy import TermsError, read_terms, renamed

from certctl_sdk.api import Json
from certctl_sdk.declared.file import Declared
from certctl_sdk.declared.kinds import KINDS
from certctl_sdk.declared.known import Known, references
from certctl_sdk.declared.masking import HIDDEN
from certctl_sdk.declared.shape import Schema, Wrong
from certctl_sdk.declared.text import Fault, Value

EMPTY: tuple[Any, ...] = (None, "", [], {})
HOUR_SECONDS = 3600
ARCHIVED = "Archived"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, fit to be shown: secrets are hidden."""

    field: str
    old: Any
    """None for what is new."""
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object that is to be made or changed."""

    declared: Declared
    id: str
    """Of the one that is there; of a new one what the file calls it, which may be nothing."""
    is_new: bool
    fields: tuple[FieldChange, ...]
    body: Mapping[str, Any] = field(repr=False)
    """What is sent, in the clear."""
    along: tuple[str, ...] = ()
    """Secrets that may be what is there already and are sent because something else changes."""

    @property
    def label(self) -> str:
        """Its id, else its name."""
        return self.id or self.declared.name


@dataclass(slots=True)
class Plan:
    """All that is to be done, in the order in which it can be; nothing, if there are faults."""

    changes: list[Change] = field(default_factory=list)
    same: int = 0
    """How many objects are as the files want them."""
    faults: list[Fault] = field(default_factory=list)


def plan(declared: Iterable[Declared], known: Known, *, secrets: bool = False) -> Plan:
    """Return what is to be done; ``secrets``: those that the API hides count as changed."""
    found = Plan()
    order = sorted(declared, key=lambda each: KINDS.index(each.kind))
    for each in order:
        rows = known.rows[each.kind.path]
        there = [rows.by_id[each.id]] if each.id in rows.by_id else [] if each.id else rows.named(each.name)
        if len(there) > 1:
            found.faults.append(each.fault("name", f"there are {len(there)} of this name: give an id"))
            continue
        before = there[0] if there else None
        wanted, wrong = read(each, known, before)
        found.faults += [each.fault(bad.path, bad.message, bad.line) for bad in wrong]
        if not wrong:
            change = difference(each, known, before, wanted, secrets=secrets)
            found.changes += [change] if change else []
            found.same += change is None
    found.faults += _lost(order, known)
    found.faults += _clashing(found.changes, known)
    found.faults.sort()
    return found


def read(declared: Declared, known: Known, before: Json | None) -> tuple[dict[str, Any], list[Wrong]]:
    """Return what the file says, as the server would take it, and what is wrong with that; ``before`` is there now."""
    kind, wrong = declared.kind, list[Wrong]()
    schema = dict(known.shapes.body("post", f"/api/v1/{kind.path}"))
    schema["required"] = [] if before else [*schema.get("required", ()), *kind.required]
    called = {"name": Value(declared.id, declared.line)} if kind.needs_name and before is None else {}
    value = Value({**called, **declared.body}, declared.line)
    wanted = known.shapes.read_map(value, schema, "", wrong)
    bad = {each.path.partition("[")[0].partition(".")[0] for each in wrong}
    for name, normal in kind.normal.items():
        if name in wanted and wanted[name] is not None and name not in bad:
            try:
                normal(wanted[name])
            except ValueError as exc:
                wrong.append(Wrong(name, declared.line_of(name), str(exc)))
    if hours := wanted.pop("max_ttl_hours", None):
        wanted["max_ttl_seconds"] = wanted.get("max_ttl_seconds") or hours * HOUR_SECONDS
    if kind.path == "policies" and not bad & {"type", "config"}:
        wrong += _read_rule(declared, wanted, before)
    if kind.path == "certificates":
        wrong += _outside(declared, wanted, before)
    return wanted, wrong


def _outside(declared: Declared, wanted: Mapping[str, Any], before: Json | None) -> Iterator[Wrong]:
    if before is None and not (wanted.get("common_name") or wanted.get("sans")):
        yield Wrong("common_name", declared.line, "is required unless sans has a name")
    if before and before.get("status") == ARCHIVED:
        yield Wrong("", declared.line, "is archived and stays as it is: give a new certificate another id")


def _read_rule(declared: Declared, wanted: dict[str, Any], before: Json | None) -> Iterator[Wrong]:
    """Bring the options of a rule to the form in which the server keeps them."""
    if "config" not in wanted and before:
        return
    type_ = wanted.get("type") or (before or {}).get("type", "")
    kept = before["config"] if before and before["type"] == type_ else {}
    merged = {**kept, **renamed(type_, wanted.get("config") or {})}
    try:
        terms = read_terms(type_, {key: each for key, each in merged.items() if each is not None})
    except TermsError as exc:
        for path, words in exc.faults.items():
            name = f"config.{path}" if path else "config"
            yield Wrong(name, declared.line_of(name), words)
        return
    config = terms.model_dump(mode="json", exclude_unset=True)
    wanted["config"] = {**dict.fromkeys(kept.keys() - config.keys()), **config}


def difference(
    declared: Declared, known: Known, before: Json | None, wanted: Mapping[str, Any], *, secrets: bool = False
) -> Change | None:
    """Return how an object is to change so that it is as the file wants it; None if it is so."""
    if before is None:
        body = {name: value for name, value in wanted.items() if value is not None}
        shown = _flat(_shown(declared, known, body, body.get("type", "")))
        body |= {"id": declared.id} if declared.id else {}
        fields_ = tuple(FieldChange(name, None, new) for name, new in shown)
        return Change(declared=declared, id=declared.id, is_new=True, fields=fields_, body=body)
    fields: Mapping[str, Schema] = known.shapes.body("put", f"/api/v1/{declared.kind.path}/{{id}}")["properties"]
    body = {
        name: value
        for name, value in wanted.items()
        if name in fields and name != "config" and not _equal(declared, name, value, before.get(name), fields[name])
    }
    config, along = _options(wanted.get("config") or {}, before.get("config") or {}, secrets=secrets)
    if not body and not config:
        return None
    new = _shown(declared, known, body | {"config": config}, wanted.get("type") or before.get("type", ""))
    old = {**before, **{f"config.{name}": value for name, value in before.get("config", {}).items()}}
    changes = tuple(FieldChange(name, old.get(name), each) for name, each in _flat(new))
    sent = {**config, **along}
    body |= {"config": sent} if sent else {}
    return Change(declared=declared, id=before["id"], is_new=False, fields=changes, body=body, along=tuple(along))


def _equal(declared: Declared, name: str, new: Any, old: Any, schema: Schema) -> bool:
    if new is None and {"array", "object"} & set(schema.get("type", ())):
        return True  # as the API has it: lists and maps are emptied by empty ones
    if new in EMPTY or old in EMPTY:
        return (new in EMPTY and old in EMPTY) or (new in (None, "") and old == schema.get("default"))
    normal = declared.kind.normal.get(name)
    return bool(normal(new) == normal(old) if normal else new == old)


def _options(new: Mapping[str, Any], old: Mapping[str, Any], *, secrets: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that change, and those of which that cannot be seen."""
    changed, along = {}, {}
    for name, value in new.items():
        there = old.get(name)
        if value == there or (value is None and name not in old):
            continue
        if _may_be(value, there) and not (secrets and value != HIDDEN):
            along[name] = value
        else:
            changed[name] = value
    return changed, along


def _may_be(new: Any, shown: Any) -> bool:
    """Whether ``new`` may be what is there, of which the API hides secrets."""
    if shown == HIDDEN:
        return isinstance(new, str) and new != ""
    if isinstance(new, dict) and isinstance(shown, dict):
        return new.keys() == shown.keys() and all(_may_be(new[key], shown[key]) for key in new)
    if isinstance(new, list) and isinstance(shown, list):
        return len(new) == len(shown) and all(map(_may_be, new, shown))
    return bool(new == shown)


def _shown(declared: Declared, known: Known, body: Mapping[str, Any], type_: str) -> dict[str, Any]:
    kind, config = declared.kind, body.get("config") or {}
    if kind.has_options:
        config = known.options.shown(kind.path, kind.normal["type"](type_), config)
    return {**body, "config": config} if "config" in body else dict(body)


def _flat(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in body.items():
        if name == "config":
            yield from ((f"config.{key}", each) for key, each in value.items())
        else:
            yield name, value


def _lost(declared: Iterable[Declared], known: Known) -> Iterator[Fault]:
    """Every reference that leads nowhere."""
    declared = list(declared)
    coming = {(each.kind.path, each.id) for each in declared}
    for each in declared:
        for name, path, id in references(each):
            if (path, id) not in coming and id not in known.rows[path].by_id:
                yield each.fault(name, f"there is no {id} among the {path}, neither here nor at the server")


def _clashing(changes: Iterable[Change], known: Known) -> Iterator[Fault]:
    """Every name that another object has, and keeps."""
    changes = list(changes)
    renamed_ = {(each.declared.kind.path, each.id) for each in changes if "name" in each.body}
    for each in changes:
        kind = each.declared.kind
        if "name" in each.body and kind.own_names:
            for row in known.rows[kind.path].named(each.body["name"]):
                if row["id"] != each.id and (kind.path, row["id"]) not in renamed_:
                    yield each.declared.fault("name", f"{row['id']} has this name")
