"""How the server is."""

from __future__ import annotations

from importlib.metadata import version as installed

import click

from certctl_sdk.api import health
from certctl_sdk.cli.session import Session, with_session


@click.command()
@with_session
def status(session: Session) -> None:
    """Whether the server is well, and what it looks after."""
    with session.client() as client:
        found, summary = client.send(health()), client.get("stats", "summary")
    figures = {name: value for name, value in summary.items() if name != "data"}
    session.show({"status": found["status"], **(figures or summary.get("data") or {})})


@click.command()
@click.option("--of-server", is_flag=True, help="Ask the server which build it is as well.")
@with_session
def version(session: Session, *, of_server: bool) -> None:
    """Version of this program."""
    if not of_server:
        click.echo(f"certctl {installed('certctl-sdk')}")
        return
    with session.client() as client:
        session.show({"certctl": installed("certctl-sdk"), **client.get("version")})
