"""Hold what a file says against the schemas of the server's own OpenAPI document: whatever it would refuse is told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from certctl_sdk.declared.text import Value

Schema: TypeAlias = Mapping[str, Any]
LONG = 80
"""Patterns from here on tell people nothing."""
PLACE = "#/components/schemas/"
WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "nothing",
}
_BOUNDS: Mapping[str, tuple[tuple[str, str, bool], ...]] = {
    "string": (("minLength", "has at least {} characters", True), ("maxLength", "has at most {} characters", False)),
    "array": (("minItems", "has at least {} entries", True), ("maxItems", "has at most {} entries", False)),
    "object": (("minProperties", "has at least {} keys", True), ("maxProperties", "has at most {} keys", False)),
    "integer": (("minimum", "is at least {}", True), ("maximum", "is at most {}", False)),
    "number": (("minimum", "is at least {}", True), ("maximum", "is at most {}", False)),
}


@dataclass(frozen=True, slots=True)
class Wrong:
    """What does not fit, without the object that it is part of."""

    path: str
    line: int
    message: str


@dataclass(slots=True)
class Shapes:
    """The schemas of one server."""

    document: Mapping[str, Any]
    """Its OpenAPI document."""
    _patterns: dict[str, re.Pattern[str]] = field(default_factory=dict)

    def body(self, method: str, path: str) -> Schema:
        """Return the schema of the body of a call, with ``properties``."""
        call = self.document["paths"][path][method]
        return self.followed(call["requestBody"]["content"]["application/json"]["schema"])

    def followed(self, schema: Schema) -> Schema:
        """Return what a schema refers to, if it is a mere reference."""
        if "$ref" not in schema:
            return schema
        there: Schema = self.document["components"]["schemas"][schema["$ref"].removeprefix(PLACE)]
        return self.followed(there)

    def read(self, value: Value, schema: Schema, path: str, wrong: list[Wrong]) -> Any:
        """Return a value as JSON, words in the server's spelling and objects whole; add what is ``wrong`` with it."""
        schema = self.followed(schema)
        if "anyOf" in schema:
            return self._any(value, schema["anyOf"], path, wrong)
        if "enum" in schema:
            return _word(value, schema["enum"], path, wrong)
        kind = _kind(value.it, schema)
        if kind is None:
            wrong.append(Wrong(path, value.line, f"must be {_words(schema)}"))
            return None
        wrong += [Wrong(path, value.line, words) for words in _outside(value.it, kind, schema)]
        if kind == "string":
            self._check_pattern(value, schema, path, wrong)
        if isinstance(value.it, list):
            items = schema.get("items", {})
            return [self.read(each, items, f"{path}[{number}]", wrong) for number, each in enumerate(value.it)]
        return self.read_map(value, schema, path, wrong) if isinstance(value.it, dict) else value.it

    def read_map(self, value: Value, schema: Schema, path: str, wrong: list[Wrong]) -> dict[str, Any]:
        """As ``read``, for a map; of a whole object what is not said is what the schema has for it."""
        fields: Mapping[str, Schema] | None = schema.get("properties")
        if fields is None:
            rest = schema.get("additionalProperties", {})
            rest = rest if isinstance(rest, Mapping) else {}
            return {key: self.read(each, rest, _below(path, key), wrong) for key, each in value.it.items()}
        strange, missing = value.it.keys() - fields.keys(), set(schema.get("required", ())) - value.it.keys()
        wrong += [Wrong(_below(path, key), value.it[key].line, _unknown(key, fields)) for key in strange]
        wrong += [Wrong(_below(path, key), value.line, "is required") for key in missing]
        found = {key: each["default"] for key, each in fields.items() if path and "default" in each}
        given = {key: each for key, each in value.it.items() if key in fields}
        return found | {key: self.read(each, fields[key], _below(path, key), wrong) for key, each in given.items()}

    def _any(self, value: Value, schemas: Iterable[Schema], path: str, wrong: list[Wrong]) -> Any:
        """The first that fits; where none does, what is wrong with it as the one that it is closest to."""
        best: list[Wrong] | None = None
        found: Any = None
        if value.it == "" and any(each.get("type") == "null" for each in schemas):
            return ""
        for each in schemas:
            faults: list[Wrong] = []
            found = self.read(value, each, path, faults)
            if not faults:
                return found
            if each.get("type") != "null" and (best is None or _kind(value.it, self.followed(each))):
                best = faults
        wrong += best or []
        return found

    def _check_pattern(self, value: Value, schema: Schema, path: str, wrong: list[Wrong]) -> None:
        text = schema.get("pattern")
        if not text or (value.it == "" and "null" in schema.get("type", ())):
            return
        if text not in self._patterns:
            self._patterns[text] = re.compile(re.sub(r"\$$", r"\\Z", text))
        if not self._patterns[text].search(value.it):
            form = text if len(text) < LONG else "its form"
            wrong.append(Wrong(path, value.line, f"{value.it!r} does not fit {form}"))


def _kind(value: Any, schema: Schema) -> str | None:
    """Which of the types that the schema allows a value has; None if none of them."""
    allowed = schema.get("type", list(WORDS))
    allowed = [allowed] if isinstance(allowed, str) else allowed
    match value:
        case None:
            mine = ["null"]
        case bool():
            mine = ["boolean"]
        case str():
            mine = ["string"]
        case int():
            mine = ["integer", "number"]
        case float():
            mine = ["number"]
        case list():
            mine = ["array"]
        case _:
            mine = ["object"]
    return next((each for each in mine if each in allowed), None)


def _words(schema: Schema) -> str:
    allowed = schema.get("type", ())
    kinds = [allowed] if isinstance(allowed, str) else [each for each in allowed if each != "null"]
    return " or ".join(WORDS[each] for each in kinds)


def _outside(value: Any, kind: str, schema: Schema) -> list[str]:
    size = len(value) if isinstance(value, str | list | dict) else value
    if value == "" and "null" in schema.get("type", ()):
        return []
    return [
        words.format(schema[name])
        for name, words, least in _BOUNDS.get(kind, ())
        if name in schema and (size < schema[name] if least else size > schema[name])
    ]


def _word(value: Value, words: list[Any], path: str, wrong: list[Wrong]) -> Any:
    spelt = {each.casefold() if isinstance(each, str) else each: each for each in words}
    given = value.it.casefold() if isinstance(value.it, str) else value.it
    if isinstance(given, list | dict) or given not in spelt:
        wrong.append(Wrong(path, value.line, f"must be one of {', '.join(map(str, words))}"))
        return None
    return spelt[given]


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unknown(key: str, fields: Mapping[str, Schema]) -> str:
    near = difflib.get_close_matches(key, fields, 1)
    return f"is unknown{f'; {near[0]} may be meant' if near else ''}"
