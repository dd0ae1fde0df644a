"""The commands: ``run``, which is also what happens without any, ``enroll`` and ``check``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from certctl_core.errors import ConnectorError, MisconfiguredError
from certctl_sdk import tracing
from certctl_sdk.commands import ENVIRONMENT
from certctl_sdk.egress import parse_allow

from certctl_agent import allowed, enrol, identity, logs, main, private, proposal, settings, tls
from certctl_agent.api import AgentApi, Refused, Server
from certctl_agent.connectors import Connectors

F = TypeVar("F", bound=Callable[..., Any])

# The original's flags have one dash; each is the variable it stands before.
FLAGS = {
    "server": ("CERTCTL_SERVER_URL", "Address of the server"),
    "api-key": ("CERTCTL_API_KEY", "This agent's key; better in the environment, where `ps` does not show it"),
    "agent-id": ("CERTCTL_AGENT_ID", "This agent's id"),
    "name": ("CERTCTL_AGENT_NAME", "A name for people"),
    "key-dir": ("CERTCTL_KEY_DIR", "Where private keys are kept"),
    "discovery-dirs": ("CERTCTL_DISCOVERY_DIRS", "Directories to look for certificates in, separated by commas"),
    "ca-file": ("CERTCTL_SERVER_CA_FILE", "Roots for the server's certificate"),
    "state-dir": ("state_dir", "Where enrolment left agent.json"),
    "config": ("config", "The agent.toml to obey"),
}


def _flags(command: F) -> F:
    for flag, (variable, words) in reversed(FLAGS.items()):
        command = click.option(f"-{flag}", f"--{flag}", variable.lower(), help=words)(command)
    return command


def _given(options: Mapping[str, str | None]) -> dict[str, str | None]:
    return {variable: options.get(variable.lower()) for variable, _ in FLAGS.values()}


@click.group(invoke_without_command=True)
@_flags
@click.version_option(package_name="certctl-agent")
@click.pass_context
def cli(context: click.Context, /, **options: str | None) -> None:
    """Make keys, deploy certificates and prove that they are served. Without a command: run."""
    if context.invoked_subcommand is None:
        _run(options)


@cli.command()
@_flags
def run(**options: str | None) -> None:
    """Do the server's work until told to stop."""
    _run(options)


def _run(options: Mapping[str, str | None]) -> None:
    try:
        found = settings.read(os.environ, _given(options))
        logs.configure(found.log_level, found.log_format)
        private.make_directory(found.state_dir)
        with private.alone(found.state_dir / "agent.lock"):
            tracing.configure("certctl-agent", "certctl-agent", os.environ)
            try:
                asyncio.run(main.serve(main.assemble(found, _egress_allow())))
            finally:
                tracing.close()
    except MisconfiguredError as exc:
        raise click.ClickException(str(exc)) from exc


def _egress_allow() -> tuple[Any, ...]:
    try:
        return parse_allow(os.environ.get("CERTCTL_EGRESS_ALLOW", ""))
    except ValueError as exc:
        raise MisconfiguredError(f"CERTCTL_EGRESS_ALLOW: {exc}") from exc


@cli.command()
@_flags
def check(**options: str | None) -> None:
    """Say what this agent may touch and whether its server knows it."""
    try:
        found = settings.read(os.environ, _given(options))
        toml = allowed.read(found.config)
        context = tls.trusting(found.ca_file) if found.server_url.startswith("https:") else None
    except MisconfiguredError as exc:
        raise click.ClickException(str(exc)) from exc
    _show(found, toml)
    try:
        with contextlib.closing(Server(found.server_url, key=found.api_key, tls=context)) as server:
            known = asyncio.run(AgentApi(server, found.agent_id).who())
    except (ConnectorError, Refused) as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"server       {found.server_url} knows this agent (role {known.get('role', 'unknown')})")


def _show(found: settings.Settings, toml: allowed.AgentToml) -> None:
    plugins = Connectors().all()
    click.echo(f"agent        {found.agent_id}")
    click.echo(f"keys         {found.key_dir}")
    click.echo(f"agent.toml   {found.config}{'' if found.config.exists() else ' (not there: nothing is allowed)'}")
    for directory in toml.allowed.directories:
        click.echo(f"may write    {directory}{'' if directory.is_dir() else ' (not there)'}")
    for name, arguments in toml.allowed.commands.items():
        here = shutil.which(arguments[0], path=ENVIRONMENT["PATH"])
        click.echo(f"may run      {name} = {' '.join(arguments)}{'' if here else ' (no such program)'}")
    for directory in dict.fromkeys([*found.discovery_directories, *toml.discovery_directories]):
        click.echo(f"looks into   {directory}")
    click.echo(f"targets      {', '.join(sorted(plugins.targets)) or 'none'}")
    for failed in plugins.failed:
        click.echo(f"left out     {failed.dist}: {failed.error}")


@cli.command()
@click.option("--server", "certctl_server_url", help="Address of the server")
@click.option("--name", default=None, help="A name for people; this machine's, if none is given")
@click.option("--token", help="The enrolment token; better in a file, where `ps` does not show it")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token; - is standard input")
@click.option("--state-dir", "state_dir", help="Where to keep agent.json and the keys")
@click.option("--config", "config", help="The agent.toml to write, unless it is there")
@click.option("--ca-file", "certctl_server_ca_file", help="Roots for the server's certificate")
@click.option("--yes", is_flag=True, help="Accept the proposed agent.toml")
@click.pass_obj
def enroll(
    found: proposal.Proposal | None,
    /,
    name: str | None,
    token: str | None,
    token_file: Path | None,
    *,
    yes: bool,
    **options: str | None,
) -> None:
    """Make this machine an agent of a server."""
    source = settings.Source(os.environ, _given(options))
    try:
        enrolled, url = _enroll(source, _Wishes(name, token, token_file, found or proposal.propose(), yes))
    except (ConnectorError, Refused) as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"Enrolled as {enrolled.id} with {url}. `certctl-agent run` starts it, `certctl-agent check` looks.")


@dataclasses.dataclass(frozen=True, slots=True)
class _Wishes:
    name: str | None
    token: str | None = dataclasses.field(repr=False)
    token_file: Path | None
    proposal: proposal.Proposal
    yes: bool


def _enroll(source: settings.Source, wishes: _Wishes) -> tuple[identity.Identity, str]:
    state_dir, data_dir = settings.state_directory(source), settings.state_directory(settings.Source(os.environ, {}))
    client = settings.read_client(data_dir)
    url = settings.server_url(source, client)
    if identity.load(state_dir):
        raise MisconfiguredError(
            f"this machine is enrolled already: {identity.path(state_dir)} says as whom; move it away to enrol anew"
        )
    secret = enrol.read_token(wishes.token or _token(wishes.token_file, data_dir / "enrol-token"))
    config = Path(source.text("config", str(state_dir / "agent.toml"))).absolute()
    wanted = _agreed(config, wishes)
    private.make_directory(state_dir)
    local = url == client.url.rstrip("/") and not source.text("CERTCTL_SERVER_URL")
    given = source.text("CERTCTL_SERVER_CA_FILE", client.ca_file if local else "")
    ca_file = Path(given).absolute() if given else None
    pinned = enrol.pinned_ca(url, secret, ca_file, state_dir)
    context = tls.trusting(pinned) if url.startswith("https:") else None
    called = wishes.name or source.text("CERTCTL_AGENT_NAME", socket.gethostname())
    with contextlib.closing(Server(url, key=secret.secret, tls=context)) as server:
        who = asyncio.run(enrol.register(server, called, url))
    # A server on this machine may move to another port: its client.toml is asked again at each start.
    where = {} if local else {"server": url, "ca_file": str(ca_file or pinned or "")}
    enrolled = dataclasses.replace(who, config=str(config), **where)
    identity.save(state_dir, enrolled)
    if wanted:
        config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        private.write(config, wanted)
        for line in proposal.make_directories(wishes.proposal):
            click.echo(line)
    return enrolled, url


def _token(file: Path | None, default: Path) -> str:
    """From ``file``, else from where a server on this machine left one, else from whoever types or pipes it."""
    found = file or (default if os.access(default, os.R_OK) else Path("-"))
    try:
        if str(found) != "-":
            return found.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise MisconfiguredError(f"the token file {found} cannot be read: {exc}") from exc
    return str(click.prompt("Enrolment token", hide_input=True)) if sys.stdin.isatty() else sys.stdin.readline()


def _agreed(config: Path, wishes: _Wishes) -> str:
    """Return the ``agent.toml`` to write, once whoever enrols has seen it; empty to write none."""
    found = wishes.proposal
    text = allowed.write_text(found.directories, found.commands, found.discovery)
    click.echo(f"Servers found on this machine: {', '.join(found.services) or 'none'}.")
    if config.exists():
        click.echo(f"{config} is there and stays as it is.")
        return ""
    click.echo(f"\nProposed for {config}:\n\n{text}")
    if wishes.yes:
        return text
    if not sys.stdin.isatty():
        raise MisconfiguredError("nobody is there to agree to this agent.toml: say --yes, or write the file before")
    return text if click.confirm("Write it?", default=True) else ""
