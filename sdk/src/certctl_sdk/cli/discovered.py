"""Certificates that were found, and what becomes of them."""

from __future__ import annotations

import click

from certctl_sdk.cli.build import get_command, list_command
from certctl_sdk.cli.session import Session, with_session

PATH = "discovered-certificates"
COLUMNS = ("id", "common_name", "status", "not_after", "agent_id", "source_path", "managed_certificate_id")
FILTERS = {"status": "status", "agent": "agent_id", "is_ca": "is_ca", "key_algorithm": "key_algorithm"}
SCAN_COLUMNS = ("id", "agent_id", "certificates_found", "certificates_new", "errors_count", "completed_at")


@click.group()
def discovered() -> None:
    """Certificates that agents found."""


scans = list_command("discovery-scans", SCAN_COLUMNS, {"agent": "agent_id"}, "List what agents reported, newest first.")
scans.name = "scans"
discovered.add_command(list_command(PATH, COLUMNS, FILTERS, "List what was found, last seen first."))
discovered.add_command(get_command(PATH, "Show one of them."))
discovered.add_command(scans)


@discovered.command()
@with_session
def summary(session: Session) -> None:
    """Count what was found, by status."""
    with session.client() as client:
        session.show(client.get("discovery-summary"))


@discovered.command()
@click.argument("id")
@click.option("--cert", "managed_certificate_id", help="The certificate that it is.")
@click.option("--owner", "owner_id", help="Make a certificate of it, of this owner;")
@click.option("--team", "team_id", help="of this team;")
@click.option("--issuer", "issuer_id", help="to be renewed by this CA.")
@with_session
def claim(session: Session, id: str, **given: str | None) -> None:
    """Say which certificate it is, or have it renewed from now on."""
    body: dict[str, object] = {name: value for name, value in given.items() if value}
    if not body:
        raise click.UsageError("name the certificate with --cert, or give --owner, --team and --issuer")
    if "managed_certificate_id" not in body:
        body["create"] = True
    with session.client() as client:
        found = client.post(PATH, id, "claim", body=body)
        session.say(found, f"{id} is claimed: {found.get('message', '')}")


@discovered.command()
@click.argument("id")
@click.option("--reason", help="Why, for the audit trail.")
@with_session
def dismiss(session: Session, id: str, reason: str | None) -> None:
    """Say that it is of no interest."""
    with session.client() as client:
        found = client.post(PATH, id, "dismiss", body={"reason": reason} if reason else {})
        session.say(found, f"{id} is dismissed")
