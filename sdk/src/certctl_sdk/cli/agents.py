"""Machines that serve certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from certctl_sdk.api import tokens as api
from certctl_sdk.cli.build import get_command, list_command
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import TokenBody


@click.group()
def agents() -> None:
    """Machines that serve certificates, and tokens to enrol more."""


agents.add_command(
    list_command(
        "agents",
        ("id", "name", "hostname", "status", "os", "architecture", "ip_address", "last_heartbeat_at"),
        {name: name for name in ("status", "os", "architecture", "version", "name")},
        "List agents.",
    )
)
agents.add_command(get_command("agents", "Show one agent."))


@agents.group()
def tokens() -> None:
    """Tokens that let machines enrol."""


tokens.add_command(
    list_command("agents/tokens", ("id", "name", "uses", "max_uses", "expires_at", "created_by"), {}, "List tokens.")
)


@tokens.command("create")
@click.option("--name", help="What it is for.")
@click.option("--max-uses", type=click.IntRange(min=1), help="How many machines may use it.  [default: 1]")
@click.option("--expires-at", help="Until when, like 2030-01-31T12:00:00Z.  [default: in 24 hours]")
@with_session
def create(session: Session, **given: Any) -> None:
    """Make a token and show it, once. On the machine: certctl-agent enroll."""
    with session.client() as client:
        body = cast("TokenBody", {name: value for name, value in given.items() if value})
        found = client.send(api.create(body))
        session.say(found, found.get("token", ""))


@tokens.command("delete")
@click.argument("id")
@with_session
def delete(session: Session, id: str) -> None:
    """End a token at once."""
    with session.client() as client:
        client.send(api.delete(id))
        session.say({"status": "deleted"}, f"{id} is ended")
