"""Certificates, from the order to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from certctl_sdk.api import certificates
from certctl_sdk.cli import certs_bulk
from certctl_sdk.cli.build import delete_command, get_command, list_command, part_command
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import NewCertificate, RenewBody, RevokeBody
    from certctl_sdk.api.replies import DeploymentTriggered, RenewalTriggered

PATH = "certificates"
COLUMNS = ("id", "common_name", "status", "expires_at", "issuer_id")
FILTERS = {
    "status": "status",
    "env": "environment",
    "issuer": "issuer_id",
    "profile": "profile_id",
    "team": "team_id",
    "owner": "owner_id",
    "agent": "agent_id",
    "name": "name",
    "expires_before": "expires_before",
    "expires_after": "expires_after",
    "q": "q",
}
VERSION_COLUMNS = ("id", "version", "serial_number", "not_before", "not_after", "fingerprint_sha256")
DEPLOYMENT_COLUMNS = ("id", "deployment_state", "last_status", "served_fingerprint", "last_deployed_at", "rollout")
# What is filled in where an order does not say it, so that the first one needs only a name.
LOCAL_CA, NO_OWNER, NO_TEAM = "iss-local", "o-unassigned", "t-unassigned"


@click.group()
def certs() -> None:
    """Certificates: order, renew, deploy, revoke."""


certs.add_command(list_command(PATH, COLUMNS, FILTERS, "List certificates."))
certs.add_command(get_command(PATH, "Show one certificate."))
for command in certs_bulk.commands(PATH, FILTERS):
    certs.add_command(command)


@certs.command("create")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--id", help="What to call it in later commands.")
@click.option("--target", "target_ids", multiple=True, help="Where to put it; several times if need be.")
@click.option("--issuer", "issuer_id", default=LOCAL_CA, show_default=True, help="The CA to sign it.")
@click.option("--owner", "owner_id", default=NO_OWNER, show_default=True, help="Who is told about it.")
@click.option("--team", "team_id", default=NO_TEAM, show_default=True, help="Who it belongs to.")
@click.option("--policy", "renewal_policy_id", help="When to renew it.")
@click.option("--profile", "certificate_profile_id", help="What it may be.")
@click.option("--env", "environment", help="Where it is used.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Several times if need be.")
@with_session
def create(session: Session, names: tuple[str, ...], tags: tuple[str, ...], **given: Any) -> None:
    """Order a certificate for NAME, and for the further names."""
    body = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value}
    body |= {"common_name": names[0], "sans": list(names[1:])}
    if tags:
        body["tags"] = dict(_tag(tag) for tag in tags)
    with session.client() as client:
        made = client.send(certificates.create(cast("NewCertificate", body)))
        session.show(dict(made), ("id", "common_name", "sans", "status", "target_ids", "job_id"))


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--tag takes key=value, not {text!r}")
    return key, value


certs.add_command(delete_command(PATH, "Archive a certificate: nothing is done for it any more, and it stays listed."))


@certs.command()
@click.argument("id")
@click.option("--force", is_flag=True, help="Also if it is revoked; with a new key.")
@click.option("--csr", type=click.File(), help="A CSR in PEM, for a key of your own; - for the input.")
@with_session
def renew(session: Session, id: str, *, force: bool, csr: TextIO | None) -> None:
    """Renew now, or bring the CSR for an order that waits for one."""
    body: RenewBody = {"force": force}
    if csr:
        body["csr_pem"] = csr.read()
    with session.client() as client:
        found = client.send(certificates.renew(id, body))
        session.say(found, f"renewal of {id} begun: {_jobs(found)}")


@certs.command()
@click.argument("id")
@click.option("--target", "target_id", help="Only there.")
@with_session
def deploy(session: Session, id: str, target_id: str | None) -> None:
    """Put the newest version in place again."""
    with session.client() as client:
        found = client.send(certificates.deploy(id, {"target_id": target_id} if target_id else {}))
        session.say(found, f"deployment of {id} begun: {_jobs(found)}")


def _jobs(found: RenewalTriggered | DeploymentTriggered) -> str:
    return ", ".join(found.get("job_ids") or [found.get("job_id") or "no job named"])


@certs.command()
@click.argument("id")
@click.option("--reason", default="unspecified", show_default=True, help="As RFC 5280 spells it: keyCompromise ...")
@with_session
def revoke(session: Session, id: str, reason: str) -> None:
    """Revoke every version that is not expired."""
    with session.client() as client:
        body = cast("RevokeBody", {"reason": reason})  # the server knows the reasons, in any case of letters
        session.say(client.send(certificates.revoke(id, body)), f"{id} is revoked ({reason})")


certs.add_command(
    part_command(PATH, "versions", VERSION_COLUMNS, "List what was issued for a certificate, newest first.")
)
certs.add_command(
    part_command(
        PATH,
        "deployments",
        DEPLOYMENT_COLUMNS,
        "List the targets of a certificate, what is there, and how far its rollout is.",
    )
)
