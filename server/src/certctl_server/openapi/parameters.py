"""The parameters of a path and a query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from certctl_server.filters import Described
from certctl_server.list_query import LAST_PAGE, MOST, PAGE_SIZE
from certctl_server.list_spec import SORT_ALIASES, ListSpec
from certctl_server.openapi.schemas import Schema, Schemas

SIZE = {"type": "integer", "minimum": 1, "maximum": MOST, "default": PAGE_SIZE}
PAGING: Mapping[str, tuple[str, Schema]] = {
    "page": ("Which page, from 1 on; not with cursor.", {"type": "integer", "minimum": 1, "maximum": LAST_PAGE}),
    "per_page": ("How many rows of a page; not with cursor.", SIZE),
    "cursor": (
        "Walks through all rows: empty for the first part, then next_cursor of the part before.",
        {"type": "string"},
    ),
    "page_size": ("How many rows of a part; without page and per_page it begins a walk as cursor does.", SIZE),
    "sort_desc": ("true turns the order round.", {"type": "string", "enum": ["true", "false", "1", "0"]}),
}
WORDS = {
    "q": "What is in one of the names, in any case of letters.",
    "before": "Strictly earlier than this.",
    "after": "Strictly later than this.",
}


def path_parameters(names: Iterable[str]) -> Iterator[Schema]:
    """Yield what stands in the path."""
    for name in names:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def query_parameters(known: Any, schemas: Schemas) -> Iterator[Schema]:
    """Yield the parameters of a route that is no list: a mapping to their types, or their names alone."""
    for name in sorted(known):
        schema = schemas.of(known[name], bounded=True) if isinstance(known, Mapping) else {"type": "string"}
        yield _parameter(name, "", schema)


def filter_parameters(spec: ListSpec) -> Iterator[Schema]:
    """Yield the filters of a list."""
    for name, filter_ in sorted(spec.every_filter.items()):
        schema = dict(filter_.schema) if isinstance(filter_, Described) else {"type": "string"}
        yield _parameter(name, WORDS.get(name.rpartition("_")[2], f"Only with this {name.replace('_', ' ')}."), schema)


def list_parameters(spec: ListSpec) -> Iterator[Schema]:
    """Yield what a list may be asked."""
    yield from filter_parameters(spec)
    names = sorted({*spec.keys, *(alias for alias in SORT_ALIASES if _sorts(spec, alias))})
    sorts = {"type": "string", "enum": [way + name for name in names for way in ("", "-")], "default": spec.order}
    yield _parameter("sort", "The key that is sorted by; with - in front downwards.", sorts)
    kept = {"type": "array", "items": {"type": "string", "enum": sorted(spec.fields)}}
    yield _parameter("fields", "Of each row only these keys, required ones too.", kept)
    for name, (words, schema) in PAGING.items():
        yield _parameter(name, words, schema)


def _sorts(spec: ListSpec, alias: str) -> bool:
    try:
        return bool(spec.sort_key(alias))
    except ValueError:
        return False


def _parameter(name: str, words: str, schema: Schema) -> Schema:
    found: Schema = {"name": name, "in": "query", "schema": schema}
    if words:
        found["description"] = words
    # A comma list, not the name once for each value.
    return {**found, "style": "form", "explode": False} if schema.get("type") == "array" else found
