"""How the server is."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import click

from certctl_sdk.api import health
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.client import Client, Json

#: What is counted one by one where the server has no summary.
COUNTED = {
    "total_certificates": ("certificates", {}),
    "expired_certificates": ("certificates", {"status": "Expired"}),
    "total_agents": ("agents", {}),
    "offline_agents": ("agents", {"status": "Offline"}),
    "failed_jobs": ("jobs", {"status": "Failed"}),
}


@click.command()
@with_session
def status(session: Session) -> None:
    """Whether the server is well, and what it looks after."""
    with session.client() as client:
        found = client.send(health())
        session.show({"status": found["status"], **_figures(client)})


def _figures(client: Client) -> Json:
    from certctl_sdk.client import ApiError  # noqa: PLC0415

    try:
        summary = client.get("stats", "summary")
    except ApiError as exc:
        if exc.status != 404:  # noqa: PLR2004  # RFC 9110 section 15.5.5
            raise
        return {name: client.page(path, per_page=1, **query).total for name, (path, query) in COUNTED.items()}
    figures = summary.get("data")
    return figures if isinstance(figures, dict) else summary


@click.command()
def version() -> None:
    """Version of this program."""
    click.echo(f"certctl {installed('certctl-sdk')}")
