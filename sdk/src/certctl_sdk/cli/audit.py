"""The audit trail."""

from __future__ import annotations

import click

from certctl_sdk.cli.build import list_command

FILTERS = {
    **{name: name for name in ("actor", "actor_type", "action", "resource_type", "resource_id")},
    "since": "after",
    "until": "before",
}


@click.group()
def audit() -> None:
    """Who did what, and when."""


audit.add_command(
    list_command(
        "audit", ("timestamp", "actor", "action", "resource_type", "resource_id"), FILTERS, "List events, newest first."
    )
)
