"""Installed connectors."""

from __future__ import annotations

import click

from certctl_sdk.api import connectors as api
from certctl_sdk.cli.session import Session, with_session


@click.command()
@with_session
def connectors(session: Session) -> None:
    """Installed connectors, and those that failed to load."""
    from certctl_sdk.cli import output  # noqa: PLC0415

    with session.client() as client:
        found = client.send(api())
    if session.form == "json":
        output.write_json(found)
        return
    output.write_table(found["loaded"], ("kind_of", "kind", "distribution", "version", "abilities"))
    if failed := found["failed"]:
        click.echo("\nleft out:")
        output.write_table(failed, ("entry_point", "distribution", "version", "error"))
