"""Show what a server said. All of it is hostile text: it never reaches the terminal as a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def inert(text: str) -> str:
    """Return ``text`` without what a terminal, or the reading direction of a line, would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def cell(value: Any) -> str:
    """Return one value as one line."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(each, dict | list) for each in value):
        return inert(", ".join(map(str, value))) or "-"
    if isinstance(value, dict | list):
        return json.dumps(value) if value else "-"
    return inert(str(value))


def write_json(found: Any) -> None:
    """Write JSON; ASCII, so that nothing in it is a control character."""
    click.echo(json.dumps(found, indent=2))


def write_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a line for each row: with colours on a terminal, aligned text elsewhere."""
    heads = [name.upper().replace("_", " ") for name in columns]
    lines = [[cell(row.get(name)) for name in columns] for row in rows]
    if sys.stdout.isatty():
        _write_rich_table(heads, lines)
        return
    widths = [max(len(line[at]) for line in (heads, *lines)) for at in range(len(heads))]
    for line in (heads, *lines):
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def write_object(found: Mapping[str, Any]) -> None:
    """Write a line for each key."""
    width = max(map(len, found), default=0)
    for name, value in found.items():
        click.echo(f"{inert(name).ljust(width)}  {cell(value)}")


def _write_rich_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  # a third of the time a command takes
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for line in lines:
        # Text, since square brackets in a name would be read as markup.
        table.add_row(*map(Text, line))
    Console(highlight=False).print(table)
