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
        health = client.get("health")
        summary = client.get("stats", "summary")
    figures = summary.get("data")
    session.show({"status": health.get("status"), **(figures if isinstance(figures, dict) else summary)})


@click.command()
def version() -> None:
    """Version of this program."""
    click.echo(f"certctl {installed('certctl-sdk')}")
