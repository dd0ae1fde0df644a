"""Write docs/reference: every route, every command and every option of a connector, from the code that has them.

usage: .venv/bin/python tools/reference.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from certctl_core.config import ConnectorConfig
from certctl_core.connector import Connector
from certctl_core.contract import CONTRACTS
from certctl_core.plugins import load
from certctl_sdk.cli import main
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent))
from client_types import Schema, described

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
HEAD = "# {}\n\nWritten by `tools/reference.py`: change what it is made from.\n"
METHODS = ("get", "post", "put", "delete")
PLACE = "#/components/schemas/"


def routes(found: Schema) -> str:
    """Return the page of the routes of an OpenAPI document."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in found["paths"].items():
        for method, each in sorted(methods.items(), key=lambda item: METHODS.index(item[0])):
            row = [f"`{method.upper()} {path}`", each["summary"], _who(each), _takes(each, found), _answers(each)]
            by_tag.setdefault(each["tags"][0], []).append(_row(row))
    parts = [
        f"## {tag}\n\n" + _table(("call", "what it does", "who", "body, or query", "answer"), rows)
        for tag, rows in sorted(by_tag.items())
    ]
    words = (
        "`*` is required. Of lists only their own filters are named; each also takes `page` and `per_page`, or"
        " `cursor` and `page_size`, and `sort` and `fields`. Types, bounds and examples are in"
        " `/api/v1/openapi.json`, for people at `/api/v1/docs`.\n"
    )
    return "\n".join([HEAD.format("Routes"), words, *parts])


def _who(operation: Schema) -> str:
    roles = operation["x-roles"]
    return "everybody" if "anonymous" in roles else ", ".join(roles)


def _takes(operation: Schema, found: Schema) -> str:
    if body := operation.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        schema = found["components"]["schemas"][schema["$ref"].removeprefix(PLACE)]
        required = schema.get("required", ())
        return ", ".join(f"`{name}`{'*' if name in required else ''}" for name in schema.get("properties", ()))
    general = {"page", "per_page", "page_size", "cursor", "sort", "sort_desc", "fields"}
    names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
    return ", ".join(f"`{name}`" for name in names if name not in general)


def _answers(operation: Schema) -> str:
    return ", ".join(sorted(code for code in operation["responses"] if code.startswith("2")))


def commands() -> str:
    """Return the page of the commands."""
    context = click.Context(main, info_name="certctl")
    parts = [HEAD.format("Commands"), "`certctl-cli` is the same program.\n", *_command(main, context, 2)]
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    words = "\n\n".join(_paragraph(each) for each in (command.help or "").split("\n\n"))
    yield f"{'#' * min(level, 4)} {context.command_path}\n\n```\n{usage}\n```\n\n{words}\n"
    options = [param for param in command.params if isinstance(param, click.Option)]
    if options:
        yield _table(("option", "meaning"), [_row([_option(each, context), _meaning(each)]) for each in options])
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                yield from _command(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def _paragraph(text: str) -> str:
    """As it is where click leaves it so."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(["```", *lines[1:], "```"]) if text.strip(" \n").startswith("\b") else " ".join(lines)


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join((*option.opts, *option.secondary_opts))
    return f"`{names}{'' if option.is_flag else ' ' + option.make_metavar(context)}`"


def _meaning(option: click.Option) -> str:
    words = (option.help or "").replace("  [", " [")
    if option.show_default and option.default not in (None, (), "", False):
        words += f" [default: {option.default}]"
    return words + (" Required." if option.required else "")


def connectors() -> str:
    """Return the page of the options of the connectors that are part of this repository."""
    ours = {path.parent.name for path in ROOT.glob("connectors/*/pyproject.toml")}
    found, parts = load(), [HEAD.format("Options of connectors")]
    for contract in CONTRACTS:
        kinds: dict[str, type[Connector]] = getattr(found, contract.name)
        for kind, cls in sorted(kinds.items()):
            name = found.origins[cls].partition(" ")[0]
            if name.removeprefix("certctl-") in ours:
                words = f"Among the {contract.name}; package `{name}`."
                parts.append(f"## {kind}\n\n{words}\n\n{_options(cls.Config)}")
    return "\n".join(parts)


def _options(model: type[ConnectorConfig]) -> str:
    schema = model.model_json_schema(by_alias=False)
    return _table(("option", "type", "default", "meaning"), list(_fields(model, schema, schema.get("$defs", {}), "")))


def _fields(model: Any, schema: Schema, models: Mapping[str, Schema], path: str) -> Iterator[str]:
    for name, each in schema.get("properties", {}).items():
        field: FieldInfo = model.model_fields[name]
        names = " or ".join(f"`{path}{key}`" for key in dict.fromkeys((name, *_aliases(field))))
        default = "required" if field.is_required() else _default(each.get("default"))
        yield _row([names, _type(each), default, field.description or ""])
        for inner in _models(field.annotation):
            yield from _fields(inner, models[inner.__name__], models, f"{path}{name}.")


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [each for each in alias.choices if isinstance(each, str)]
    return [alias] if isinstance(alias, str) else []


def _models(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", None)
    if parts:
        return [each for part in parts for each in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, ConnectorConfig) else []


def _default(value: Any) -> str:
    return "none" if value in (None, "", [], ()) else f"`{value}`"


def _type(schema: Schema) -> str:
    parts = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    secret = any(each.get("writeOnly") or each.get("secret") for each in (schema, *parts))
    words = {"string": "text", "integer": "whole number", "array": "list", "object": "map", "boolean": "true or false"}
    told = " or ".join(dict.fromkeys(_word(each, words) for each in parts))
    return f"{told}, secret" if secret else told


def _word(schema: Schema, words: Mapping[str, str]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    return "map" if "$ref" in schema else words.get(schema.get("type", ""), schema.get("type", "any"))


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([_row(list(heads)), "|" + "---|" * len(heads), *rows, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def written() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {"routes": routes(described()), "commands": commands(), "connectors": connectors()}


if __name__ == "__main__":
    for name, text in written().items():
        (REFERENCE / f"{name}.md").write_text(text)
        print(f"docs/reference/{name}.md")
