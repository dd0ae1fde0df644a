"""Which options of connectors are secrets, as the server judges it, so that none is ever shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

HIDDEN = "********"
"""What the API shows of a secret; sent back, it keeps what is stored."""
Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What the connectors of one server say of their options."""

    schemas: Mapping[tuple[str, str], Schema]
    """By what they are for (``issuers``) and their type in lower case."""

    @classmethod
    def of(cls, loaded: list[Any]) -> Options:
        """Return those of what ``GET /api/v1/connectors`` lists as loaded."""
        return cls({(f"{each['kind_of']}s", each["kind"].casefold()): each["schema"] for each in loaded})

    def shown(self, path: str, type_: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return options without secrets.

        Of a key that the connector does not know, and of one that is not installed, every text counts as secret.
        """
        schema = self.schemas.get((path, type_), {})
        return _map(config, schema, schema.get("$defs", {}))


def _map(config: Mapping[str, Any], schema: Schema | None, models: Mapping[str, Schema]) -> dict[str, Any]:
    fields = dict(_fields(schema or {}, models))
    return {key: _shown(each, fields.get(key), models) for key, each in config.items()}


def _fields(schema: Schema, models: Mapping[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Every option of a model, and of each that it may be."""
    yield from schema.get("properties", {}).items()
    for each in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if "$ref" in each:
            yield from _fields(models.get(each["$ref"].rpartition("/")[2], {}), models)


def _shown(value: Any, schema: Schema | None, models: Mapping[str, Schema]) -> Any:
    if isinstance(value, str):
        return HIDDEN if value and (schema is None or _is_secret(schema)) else value
    if isinstance(value, Mapping):
        return _map(value, None if schema is None or _is_secret(schema) else schema, models)
    if isinstance(value, list):
        inner = None if schema is None or _is_secret(schema) else schema
        return [_shown(each, inner, models) for each in value]
    return value


def _is_secret(schema: Schema) -> bool:
    parts = (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ()))
    return any(each.get("writeOnly") or each.get("secret") for each in parts)
