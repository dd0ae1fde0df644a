"""API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from certctl_sdk.api import keys as api
from certctl_sdk.cli.build import list_command
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import NewKey


@click.group()
def keys() -> None:
    """API keys of people and programs."""


keys.add_command(
    list_command(
        "auth/keys",
        ("id", "name", "role", "prefix", "created_at", "expires_at", "last_used_at"),
        {"role": "role"},
        "List keys that are stored; those of the server's environment are not among them.",
    )
)


@keys.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(["admin", "operator", "viewer"]), required=True, help="What it may do.")
@click.option("--expires-at", help="Until when, like 2030-01-31T12:00:00Z.  [default: for ever]")
@with_session
def create(session: Session, name: str, role: Literal["admin", "operator", "viewer"], expires_at: str | None) -> None:
    """Make a key for NAME and show it, once."""
    body: NewKey = {"name": name, "role": role}
    if expires_at:
        body["expires_at"] = expires_at
    with session.client() as client:
        found = client.send(api.create(body))
        session.say(found, found.get("key", ""))


@keys.command()
@click.argument("id")
@with_session
def rotate(session: Session, id: str) -> None:
    """Make the successor of a key and show it, once; the older one lasts until that is used, and a day at most."""
    with session.client() as client:
        found = client.post("auth", "keys", id, "rotate")
        session.say(found, str(found.get("key", "")))


@keys.command()
@click.argument("id")
@with_session
def revoke(session: Session, id: str) -> None:
    """End a key at once, and the logins made with it."""
    with session.client() as client:
        client.send(api.delete(id))
        session.say({"status": "deleted"}, f"{id} is ended")


# As the other resources have it, and the API.
keys.add_command(revoke, "delete")
