"""The ``certctl`` command. Importing this costs little: commands are imported when they are called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from certctl_sdk.cli.brought import GROUP, OpenGroup
from certctl_sdk.cli.session import Session, wrongly_called

#: Name: module, attribute and what help says, so that help imports none of them.
COMMANDS = {
    "agent-groups": ("certctl_sdk.cli.agent_groups", "agent_groups", "Machines taken together."),
    "agents": ("certctl_sdk.cli.agents", "agents", "Machines that serve certificates, and tokens to enrol more."),
    "apply": ("certctl_sdk.cli.declared", "apply", "Change the server to be as files want it."),
    "audit": ("certctl_sdk.cli.audit", "audit", "Who did what, and when."),
    "certs": ("certctl_sdk.cli.certs", "certs", "Certificates: order, renew, deploy, revoke."),
    "completion": ("certctl_sdk.cli.completion", "completion", "Write what makes a shell complete these commands."),
    "connectors": ("certctl_sdk.cli.connectors", "connectors", "Installed connectors, and those that failed to load."),
    "discovered": ("certctl_sdk.cli.discovered", "discovered", "Certificates that agents found."),
    "explain": ("certctl_sdk.cli.explain", "explain", "Say why a certificate is as it is, and what comes next."),
    "import": ("certctl_sdk.cli.imports", "import_", "Record certificates that were made elsewhere."),
    "issuers": ("certctl_sdk.cli.resources", "issuers", "CAs that sign."),
    "jobs": ("certctl_sdk.cli.jobs", "jobs", "What is being done, and what failed."),
    "keys": ("certctl_sdk.cli.keys", "keys", "API keys of people and programs."),
    "network-scans": (
        "certctl_sdk.cli.network_scans",
        "network_scans",
        "Networks in which certificates are looked for.",
    ),
    "notifiers": ("certctl_sdk.cli.resources", "notifiers", "Channels to people."),
    "owners": ("certctl_sdk.cli.resources", "owners", "Who is told about a certificate."),
    "plan": ("certctl_sdk.cli.declared", "plan", "Show what certctl apply would change."),
    "policies": ("certctl_sdk.cli.policies", "policies", "Rules that certificates have to keep to."),
    "profiles": ("certctl_sdk.cli.resources", "profiles", "What certificates may be."),
    "renewal-policies": ("certctl_sdk.cli.resources", "renewal_policies", "When certificates are renewed."),
    "stats": (
        "certctl_sdk.cli.stats",
        "stats",
        "Certificates by status, and what ends and is issued by day.",
    ),
    "status": ("certctl_sdk.cli.status", "status", "Whether the server is well, and what it looks after."),
    "targets": ("certctl_sdk.cli.resources", "targets", "Where certificates are deployed to."),
    "teams": ("certctl_sdk.cli.resources", "teams", "Who certificates belong to."),
    "version": ("certctl_sdk.cli.status", "version", "Version of this program."),
}


JUDGING = frozenset({"apply", "plan"})
"""Commands that end with 2 for another reason than that they were called wrongly."""


class LazyGroup(OpenGroup):
    """Knows its commands by name, and imports the one that is called."""

    brought_by = GROUP

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does; what is wrong before a command that judges ends as it does behind it."""
        called = set(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            if called & JUDGING:
                wrongly_called(exc)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return ours and those that other distributions bring."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, imported now; None if there is none of that name."""
        if cmd_name in COMMANDS:
            module, attribute, _ = COMMANDS[cmd_name]
            found: click.Command = getattr(import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)

    def words(self, ctx: click.Context, name: str) -> str:
        """Return what a command does, without importing one of ours."""
        return COMMANDS[name][2] if name in COMMANDS else super().words(ctx, name)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", default="", help="The server's address.  [CERTCTL_SERVER_URL]")
@click.option("--api-key", default="", help="Your key.  [CERTCTL_API_KEY]")
@click.option("--ca-file", default="", help="Roots for the server's certificate, PEM.  [CERTCTL_SERVER_CA_FILE]")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to answer.")
@click.pass_context
def main(context: click.Context, server: str, api_key: str, ca_file: str, form: str) -> None:
    """Certificates, from order to renewal.

    On the machine of an embedded server no option is needed: it leaves its address and a key in client.toml.
    """
    context.obj = Session(server=server, api_key=api_key, ca_file=ca_file, form=form)
