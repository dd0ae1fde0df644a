"""Groups of commands to which other distributions add theirs, by entry points."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "certctl.commands"
"""Entry points that bring commands; those of a group of commands follow after a dot."""


class OpenGroup(click.Group):
    """Has its own commands, and those of the entry points in ``brought_by``."""

    brought_by: ClassVar[str]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all."""
        return sorted({*self.commands, *brought(self.brought_by)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name; None if there is none."""
        return super().get_command(ctx, cmd_name) or brought_command(self.brought_by, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and what they do."""
        rows = [(name, self.words(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def words(self, ctx: click.Context, name: str) -> str:
        """Return what a command does."""
        try:
            command = self.get_command(ctx, name)
        except click.ClickException as exc:
            return exc.message
        return command.get_short_help_str(limit=80) if command else ""


def brought_command(group: str, name: str) -> click.Command | None:
    """Return the command that another distribution brings under this name; None if none does.

    Raises:
        click.ClickException: that distribution is broken.
    """
    entry = brought(group).get(name)
    if entry is None:
        return None
    try:
        found: click.Command = entry.load()
    except ImportError as exc:
        raise click.ClickException(f"{name} comes with {entry.value}, which is broken: {exc}") from exc
    return found


@cache
def brought(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name."""
    from importlib.metadata import entry_points  # noqa: PLC0415  # looks at every installed distribution

    return {entry.name: entry for entry in entry_points(group=group)}
