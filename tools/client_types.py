"""Write the types of the sdk's calls (sdk/src/certctl_sdk/api) from the server's OpenAPI document.

usage: .venv/bin/python tools/client_types.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certctl_server.app import ROUTES
from certctl_server.openapi.document import document
from litestar import Litestar
from litestar.di import Provide

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "sdk/src/certctl_sdk/api"
FEW = 4
"""So few fields may be the same by chance."""
SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
HEAD = """{} Written by tools/client_types.py from the server's OpenAPI document."""
WORDS = {
    "objects": "What there is at a server.",
    "replies": "What calls return beside objects.",
    "bodies": "What calls send.",
    "queries": "What lists and a few others may be asked.",
}
TYPING = ("Any", "Literal", "NotRequired", "TypeAlias", "TypedDict")
Schema = Mapping[str, Any]


async def nothing() -> None:
    """No route is called."""


def described() -> dict[str, Any]:
    """Return the OpenAPI document of this checkout."""
    return document(Litestar(ROUTES, openapi_config=None, dependencies={"ctx": Provide(nothing)}))


def written(found: Schema) -> dict[str, str]:
    """Return the text of each module by its name."""
    schemas: dict[str, Schema] = found["components"]["schemas"]
    asked = _closure({ref for _, each in _operations(found) for ref in _refs(each.get("requestBody", {}))}, schemas)
    told = _closure({ref for _, each in _operations(found) for ref in _refs(each["responses"])} | {"Error"}, schemas)
    queries = {
        _camel(path): {each["name"]: each["schema"] for each in one["parameters"] if each["in"] == "query"}
        for path, one in _operations(found)
        if _in_json(one["responses"].get("200")) and any(each["in"] == "query" for each in one.get("parameters", ()))
    }
    things = _closure({name for name in told if "id" in schemas[name].get("properties", ())}, schemas)
    parts = {"things": things, "replies": told - things, "bodies": asked - things}
    modules = {
        "objects": _classes({name: schemas[name] for name in things}),
        "replies": _classes({name: schemas[name] for name in parts["replies"]}),
        "bodies": _classes(_with_shared({name: schemas[name] for name in parts["bodies"]})),
        "queries": _questions(queries),
    }
    borrowed = {
        name: sorted({ref for each in names for ref in _refs(schemas[each])} & things) for name, names in parts.items()
    }
    return {name: _module(name, "\n\n".join(texts), borrowed.get(name, [])) for name, texts in modules.items()}


def _in_json(response: Schema | None) -> bool:
    """Whether it is answered in JSON, always: files are saved, not read."""
    return response is not None and [*response.get("content", ())] == ["application/json"]


def _questions(queries: Mapping[str, Mapping[str, Schema]]) -> list[str]:
    """What all lists may be asked, what most may, and what each may."""
    lists = [each for each in queries.values() if "cursor" in each]
    bases = {
        "Listed": set.intersection(*map(set, lists)),
        "Dated": set.intersection(*(set(each) for each in lists if "updated_after" in each)),
    }
    every = {name: each for one in lists for name, each in one.items()}
    own = sorted(bases["Dated"] - bases["Listed"])
    return [
        _class(
            "Listed", "What every list may be asked.", _query({name: every[name] for name in sorted(bases["Listed"])})
        ),
        _class(
            "Dated",
            "What lists of things that change may be asked.",
            _query({name: every[name] for name in own}),
            "Listed",
        ),
        *(_asking(name, each, bases) for name, each in sorted(queries.items())),
    ]


def _asking(name: str, parameters: Mapping[str, Schema], bases: Mapping[str, set[str]]) -> str:
    base = max(
        (each for each in bases if bases[each] <= parameters.keys()), key=lambda each: len(bases[each]), default=""
    )
    own = {key: each for key, each in parameters.items() if key not in bases.get(base, ())}
    return _class(name, "", _query(own), base)


def _with_shared(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """Add what the bodies that make and that change a thing have in common, for both to stand on."""
    found = dict(schemas)
    for change in [name for name in schemas if name.endswith("Change")]:
        thing = change.removesuffix("Change")
        if made := schemas.get(f"New{thing}"):
            fields, others = _fields(made), _fields(schemas[change])
            same = {name: each for name, each in made["properties"].items() if fields[name] == others.get(name)}
            if len(same) > FEW:
                found[f"{thing}Fields"] = {"description": "What may be left out.", "properties": same}
    return found


def _classes(schemas: Mapping[str, Schema]) -> list[str]:
    """What has all that another one has says only what it has more; the other one comes first."""
    by_size = sorted(schemas, key=lambda name: (len(_fields(schemas[name])), name))
    return [_named(name, schemas[name], _base(name, schemas), schemas) for name in by_size]


def _base(name: str, schemas: Mapping[str, Schema]) -> str:
    own = _fields(schemas[name])
    smaller = [other for other in schemas if FEW < len(_fields(schemas[other])) < len(own)]
    fitting = [other for other in smaller if _fields(schemas[other]).items() <= own.items()]
    return max(fitting, key=lambda other: (len(_fields(schemas[other])), other), default="")


def _operations(found: Schema) -> Iterator[tuple[str, Schema]]:
    for path, methods in found["paths"].items():
        yield from ((path, each) for each in methods.values())


def _refs(value: Any) -> Iterator[str]:
    yield from re.findall(r"#/components/schemas/(\w+)", json.dumps(value))


def _closure(names: set[str], schemas: Mapping[str, Schema]) -> set[str]:
    more = {ref for name in names for ref in _refs(schemas[name])} - names
    return _closure(names | more, schemas) if more else names


def _camel(path: str) -> str:
    parts = [part for part in path.removeprefix("/api/v1/").split("/") if not part.startswith("{")]
    return "".join(word.capitalize() for part in parts for word in part.split("-"))


def _module(name: str, body: str, borrowed: list[str]) -> str:
    typing = [
        each for each in ("Any", "Literal", "NotRequired", "TypeAlias", "TypedDict") if re.search(rf"\b{each}\b", body)
    ]
    more = ["from collections.abc import Sequence\n"] if "Sequence[" in body else []
    lines = "".join([*more, f"from typing import {', '.join(typing)}\n"])
    if borrowed:
        lines += f"\nfrom certctl_sdk.api.objects import {', '.join(borrowed)}\n"
    return f'"""{HEAD.format(WORDS[name])}"""\n\nfrom __future__ import annotations\n\n{lines}\n\n{body}'


def _named(name: str, schema: Schema, base: str, schemas: Mapping[str, Schema]) -> str:
    words = schema.get("description", "")
    if "properties" not in schema:
        return f'{name}: TypeAlias = {_type(schema)}\n"""{words or name}"""\n'
    below = _fields(schemas[base]) if base else {}
    own = {key: text for key, text in _fields(schema).items() if key not in below}
    return _class(name, words, own, base)


def _fields(schema: Schema) -> dict[str, str]:
    required = schema.get("required", ())
    fields = {key: _type(each) for key, each in schema.get("properties", {}).items()}
    return {key: text if key in required else f"NotRequired[{text}]" for key, text in fields.items()}


def _class(name: str, words: str, fields: Mapping[str, str], base: str = "") -> str:
    lines = [f"class {name}({base or 'TypedDict'}):", f'    """{words or "What may be said."}"""', ""]
    return "\n".join([*lines, *(f"    {key}: {text}" for key, text in fields.items()), ""])


def _query(parameters: Mapping[str, Schema]) -> dict[str, str]:
    return {name: f"NotRequired[{_asked(each)}]" for name, each in parameters.items()}


def _asked(schema: Schema) -> str:
    """Of enums only the kind: their values are taken in any case of letters."""
    if schema.get("type") == "array":
        return "str | Sequence[str]"
    return "bool | str" if "true" in schema.get("enum", ()) else SCALARS[schema.get("type", "string")]


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return f"Literal[{', '.join(json.dumps(each) for each in schema['enum'])}]"
    if "anyOf" in schema:
        return " | ".join(_type(each) for each in schema["anyOf"])
    kinds = schema.get("type", "any")
    return " | ".join(_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _kind(kind: str, schema: Schema) -> str:
    if kind == "array":
        return f"list[{_type(schema.get('items', {}))}]"
    if kind == "object":
        values = schema.get("additionalProperties", True)
        return f"dict[str, {_type(values) if isinstance(values, Mapping) else 'Any'}]"
    return SCALARS.get(kind, "Any")


def formatted(text: str) -> str:
    """Return the text as ruff has it."""
    for words in (["check", "--quiet", "--fix", "--select", "I"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(API / "objects.py"), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout  # noqa: S603
    return text


if __name__ == "__main__":
    for name, text in written(described()).items():
        (API / f"{name}.py").write_text(formatted(text))
        print(f"{name}.py")
