"""JSON Schemas (2020-12, as in OpenAPI 3.1) of bodies, replies and listed objects, from their declarations alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec
from piccolo.columns.base import Column

from certctl_server.filters import Described
from certctl_server.list_spec import KINDS, Kind, ListSpec
from certctl_server.openapi.examples import example

Schema: TypeAlias = dict[str, Any]
PLACE = "#/components/schemas/"
TYPES: Mapping[Kind, Schema] = {
    "text": {"type": "string"},
    "number": {"type": "integer"},
    "flag": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
}
COLLECTIONS = frozenset({"array", "object"})
BEYOND = re.compile(r"\\U([0-9a-fA-F]{8})")
BOUNDS = frozenset(
    {"minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties", "maxProperties", "propertyNames"}
    | {"minimum", "maximum", "default"}
)


class Schemas:
    """The named schemas of one document, made when they are first referred to."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def done(self) -> dict[str, Schema]:
        """Return all that were referred to, objects with an example."""
        found = dict(sorted(self.components.items()))
        examples = {name: [example(each, found)] for name, each in found.items() if each.get("type") == "object"}
        return {
            name: {**each, "examples": examples[name]} if name in examples else each for name, each in found.items()
        }

    def of(self, type_: Any, *, bounded: bool = False) -> Schema:
        """Return the schema of a type; what it is bounded by is for requests alone."""
        [schema], found = msgspec.json.schema_components([type_], ref_template=PLACE + "{name}")
        self._put_all(found)
        plain: Schema = _plain(schema)
        return plain if bounded else _unbounded(plain)

    def new(self, struct: type[msgspec.Struct]) -> Schema:
        """Return the schema of the body of a POST: null counts as absent."""
        return self._body(struct, struct.__name__, _created)

    def change(self, struct: type[msgspec.Struct]) -> Schema:
        """Return the schema of the body of a PUT: a missing key keeps its value."""
        name = struct.__name__.removesuffix("Body").removesuffix("Change") + "Change"
        return self._body(struct, name, _changed)

    def object(self, spec: ListSpec) -> Schema:
        """Return the schema of one row of a list."""
        name = spec.name or spec.table.__name__
        properties = {key: self._property(spec, key) for key in sorted(spec.fields | spec.types.keys())}
        words = (spec.table.__doc__ or "").partition("\n\n")[0].strip()
        required = sorted(spec.fields - spec.optional)
        return self._put(name, {"type": "object", "description": words, "properties": properties, "required": required})

    def _property(self, spec: ListSpec, key: str) -> Schema:
        if key in spec.types:
            schema = self.of(spec.types[key])
            return present(schema) if key in spec.optional else schema
        column: Column = spec.table._meta.get_column_by_name(key)
        filter_ = spec.filters.get(key)
        values = filter_.schema.get("items", {}).get("enum") if isinstance(filter_, Described) else None
        if values:
            return {"type": "string", "enum": values}
        schema = TYPES[next((KINDS[cls] for cls in type(column).__mro__ if cls in KINDS), "text")]
        return nullable(schema) if column._meta.null and key not in spec.optional else dict(schema)

    def _body(self, struct: type[msgspec.Struct], name: str, shape: Callable[[Schema], Schema]) -> Schema:
        _, found = msgspec.json.schema_components([struct], ref_template=PLACE + "{name}")
        whole = found.pop(struct.__name__)
        self._put_all(found)
        return self._put(name, shape(_plain(whole)))

    def _put_all(self, found: Mapping[str, Schema]) -> None:
        for name, component in found.items():
            self._put(name, _plain(component))

    def _put(self, name: str, schema: Schema) -> Schema:
        schema.pop("title", None)
        if self.components.setdefault(name, schema) != schema:
            raise ValueError(f"two different objects are called {name}")
        return {"$ref": PLACE + name}


def nullable(schema: Mapping[str, Any]) -> Schema:
    """Return the schema that also takes null."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    alternatives = schema.get("anyOf", [schema])
    if {"type": "null"} in alternatives:
        return dict(schema)
    return {"anyOf": [*alternatives, {"type": "null"}]}


def present(schema: Schema) -> Schema:
    """Return the schema of a key that is left out rather than null."""
    left = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if not left:
        return schema
    return left[0] if len(left) == 1 else {**schema, "anyOf": left}


def _created(schema: Schema) -> Schema:
    required = schema.pop("required", [])
    found = {**schema, "properties": dict(_optional(schema, {*required}))}
    return {**found, "required": required} if required else found


def _changed(schema: Schema) -> Schema:
    """Lists and maps ignore null, scalars that must be there refuse it."""
    properties = schema["properties"]
    required = {name for name in schema.pop("required", []) if properties[name].get("type") not in COLLECTIONS}
    for each in properties.values():
        each.pop("default", None)
    return {**schema, "properties": dict(_optional(schema, required))}


def _optional(schema: Schema, required: set[str]) -> Iterator[tuple[str, Schema]]:
    for name, each in schema["properties"].items():
        if name in required and each.get("type") == "string":
            # What must be there must say something.
            yield name, {"minLength": 1, **each}
            continue
        # "" and null as defaults say only that there is none.
        bare = {key: value for key, value in each.items() if key != "default" or value not in ("", None)}
        yield name, bare if name in required else nullable(bare)


def _plain(schema: Any) -> Any:
    """Return the schema with patterns as ECMA-262 has them, which OpenAPI asks for."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _plain(value) for key, value in schema.items()}
    if isinstance(pattern := found.get("pattern"), str):
        found["pattern"] = BEYOND.sub(lambda code: chr(int(code[1], 16)), pattern).replace(r"\Z", "$")
    return found


def _unbounded(schema: Any) -> Any:
    """Return the schema of a reply: types and enums are promised, limits may move."""
    if isinstance(schema, list):
        return [_unbounded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _unbounded(each) for name, each in value.items()} if key == "properties" else _unbounded(value)
        for key, value in schema.items()
        if key not in BOUNDS
    }
