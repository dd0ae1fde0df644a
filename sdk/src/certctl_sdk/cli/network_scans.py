"""Networks in which certificates are looked for."""

from __future__ import annotations

from typing import Any

import click

from certctl_sdk.cli.build import get_command, list_command
from certctl_sdk.cli.session import Session, with_session

PATH = "network-scan-targets"
COLUMNS = ("id", "name", "cidrs", "ports", "enabled", "last_scan_at", "last_scan_certs_found")
OPTIONS = (
    click.option("--name", help="A name for people."),
    click.option("--cidr", "cidrs", multiple=True, help="A network or an address; several times if need be."),
    click.option("--port", "ports", multiple=True, type=int, help="Several times if need be."),
    click.option("--every", "scan_interval_hours", type=int, metavar="HOURS", help="How often it is scanned."),
    click.option("--timeout-ms", type=int, help="How long one address may take."),
    click.option("--enabled/--disabled", default=None, help="Whether it is scanned by itself."),
)


def _options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _body(given: dict[str, Any]) -> dict[str, Any]:
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: value for name, value in found.items() if value not in (None, [])}


@click.group()
def network_scans() -> None:
    """Networks in which certificates are looked for."""


network_scans.add_command(list_command(PATH, COLUMNS, {}, "List networks, and what the last scan found."))
network_scans.add_command(get_command(PATH, "Show one of them."))


@network_scans.command()
@click.argument("id")
@_options
@with_session
def create(session: Session, id: str, **given: Any) -> None:
    """Have a network scanned, called ID."""
    with session.client() as client:
        session.show(client.post(PATH, body={"id": id, "name": id, **_body(given)}))


@network_scans.command()
@click.argument("id")
@_options
@with_session
def update(session: Session, id: str, **given: Any) -> None:
    """Change what is given of it; networks and ports are replaced whole."""
    with session.client() as client:
        session.show(client.put(PATH, id, body=_body(given)))


@network_scans.command()
@click.argument("id")
@with_session
def delete(session: Session, id: str) -> None:
    """Have it scanned no more."""
    with session.client() as client:
        client.delete(PATH, id)
        session.say({"status": "deleted"}, f"{id} is deleted")


@network_scans.command()
@click.argument("id")
@with_session
def scan(session: Session, id: str) -> None:
    """Scan now."""
    with session.client() as client:
        found = client.post(PATH, id, "scan")
        session.say(found, str(found.get("message") or f"scan {found.get('id')} of {id} begun"))
