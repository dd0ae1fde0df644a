"""How the server is."""

from __future__ import annotations

from importlib.metadata import version as installed

import click

from certctl_sdk.cli.session import Session, with_session


@click.command()
@with_session
def status(session: Session) -> None:
    """Whether the server is well, and what it looks after."""
    with session.client() as client:
        health, summary = client.get("health"), client.get("stats", "summary")
    figures = {name: value for name, value in summary.items() if name != "data"}
    session.show({"status": health.get("status"), **(figures or summary.get("data") or {})})


@click.command()
def version() -> None:
    """Version of this program."""
    click.echo(f"certctl {installed('certctl-sdk')}")
