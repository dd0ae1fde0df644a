"""The commands of the server: ``certctl-server`` and ``certctl up``. What they need is imported when they run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from certctl_server.settings import Settings
    from certctl_server.start import Running

log = logging.getLogger(__name__)
T = TypeVar("T")
ROLES = ("admin", "operator", "viewer")


def _settings(more: Mapping[str, str | None] | None = None) -> Settings:
    from certctl_core.errors import MisconfiguredError  # noqa: PLC0415

    from certctl_server import logs, settings  # noqa: PLC0415

    given = {name: value for name, value in (more or {}).items() if value}
    try:
        found = settings.read({**os.environ, **given})
    except MisconfiguredError as exc:
        raise click.ClickException(str(exc)) from exc
    logs.configure(found.log)
    return found


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``; what an operator has to mend is one line, not a traceback."""
    import uvloop  # noqa: PLC0415
    from certctl_core.errors import ConnectorError  # noqa: PLC0415

    try:
        uvloop.run(work)
    except ConnectorError as exc:
        raise click.ClickException(str(exc)) from exc


@click.group(invoke_without_command=True)
@click.version_option(version("certctl-server"), prog_name="certctl-server")
@click.pass_context
def main(context: click.Context) -> None:
    """The control plane. Without a command: serve. Settings come from CERTCTL_* variables."""
    if context.invoked_subcommand is None:
        _serve(_settings())


@main.command()
def serve() -> None:
    """Answer the API, run jobs and loops, until told to stop."""
    _serve(_settings())


def _serve(settings: Settings) -> None:
    from certctl_server import up as process  # noqa: PLC0415
    from certctl_server.welcome import welcome  # noqa: PLC0415

    terminal = sys.stdout.isatty()

    def announce(running: Running) -> None:
        log.info("ready", extra={"url": running.url})
        if terminal:
            welcome(running, terminal=True)

    _run(process.run(settings, announce, terminal=terminal))


@main.command()
def worker() -> None:
    """Run jobs for the servers of this database, until told to stop. Needs PostgreSQL and a broker."""
    from certctl_server import up as process  # noqa: PLC0415

    _run(process.work(_settings(), lambda: log.info("worker ready")))


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date and leave."""
    from certctl_server import start  # noqa: PLC0415

    settings = _settings()

    async def work() -> None:
        _have_data_directory(settings)
        async with start.connected(settings):
            names = await start.bring_up_to_date()
        click.echo(f"applied {', '.join(names)}" if names else "the schema is up to date")

    _run(work())


def _have_data_directory(settings: Settings) -> None:
    from certctl_server import files  # noqa: PLC0415

    if settings.embedded:
        os.umask(0o077)  # whoever makes the database's file makes it its owner's alone
        files.prepare(settings.data_dir)


@main.command()
def reseal() -> None:
    """Seal all secrets in the database with the first of several CERTCTL_CONFIG_ENCRYPTION_KEY."""
    from certctl_server import sealing  # noqa: PLC0415

    async def work(settings: Settings) -> int:
        return await sealing.reseal(await sealing.load(settings))

    click.echo(f"{_in_database(work)} rows sealed anew; keys after the first are no longer needed")


@main.command()
def recount() -> None:
    """Count everything that totals are shown of, and correct those that are wrong. The server may go on."""
    from certctl_server import tally  # noqa: PLC0415

    found = _in_database(lambda _: tally.recount())
    for row in found:
        click.echo(f"{row['dimension']} {row['value']} {row['detail']}: corrected by {row['n']:+}")
    click.echo(f"{len(found)} totals were wrong" if found else "every total was right")


@main.group()
def keys() -> None:
    """Make, list and end API keys, directly in the database."""


@keys.command("create")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the key may do.")
@click.option("--name", default="", help="Whose it is, for the audit trail.  [default: the role]")
def create(role: str, name: str) -> None:
    """Make a key and print it, once. Whoever may run this here gets back in this way."""
    from certctl_server import host_keys  # noqa: PLC0415

    click.echo(_in_database(lambda _: host_keys.create(name or role, role)))


@keys.command("list")
def list_() -> None:
    """Show who has a key; the keys themselves are not kept."""
    from certctl_server import host_keys  # noqa: PLC0415

    for line in _in_database(lambda _: host_keys.listed()):
        click.echo(line)


@keys.command("revoke")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """End a key at once."""
    from certctl_server import host_keys  # noqa: PLC0415

    _in_database(lambda _: host_keys.revoke(key_id))
    click.echo(f"{key_id} is ended")


@main.group()
def audit() -> None:
    """Look after the audit trail, directly in the database."""


@audit.command("verify")
def verify() -> None:
    """Check every row, every signature and the head kept in the data directory; fails if anything was changed."""
    from certctl_server import sealing  # noqa: PLC0415
    from certctl_server.audit import verify as walk  # noqa: PLC0415

    async def work(settings: Settings) -> walk.Verdict:
        return await walk.verify(settings, await sealing.load(settings))

    found = _in_database(work)
    for line in walk.lines(found):
        click.echo(line)
    if found.faults:
        raise click.ClickException("the audit trail is not as it was written")


@audit.command("archive")
@click.option("--before", required=True, metavar="TIME", help="Archive what is older: a day, or an RFC 3339 time.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def archive(before: str, directory: Path) -> None:
    """Move old rows of the audit trail into a new, signed file in DIRECTORY; the server may run.

    certctl audit verify checks such files, one after the other, and an export after them.
    """
    from certctl_server import sealing  # noqa: PLC0415
    from certctl_server.audit import archives  # noqa: PLC0415
    from certctl_server.filters import moment  # noqa: PLC0415

    try:
        until = moment(f"{before}T00:00:00Z" if "T" not in before.upper() else before)
    except ValueError as exc:
        raise click.BadParameter(f"{before} {exc}", param_hint="--before") from exc

    async def work(settings: Settings) -> archives.Archived:
        return await archives.archive(await sealing.load(settings), until, directory)

    found = _in_database(work)
    if found.archive:
        trailer = found.archive.trailer
        click.echo(f"rows {trailer.first} to {trailer.last} are in {directory / found.archive.file}")
        click.echo(f"sha256 of its rows: {trailer.digest}")
    else:
        click.echo("no checkpoint is old enough: nothing was archived")
    click.echo(f"{found.removed} rows were removed from the database")


@main.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), help="How to answer.  [default: table]")
@click.pass_context
def doctor(context: click.Context, form: str | None) -> None:
    """Look whether all is well on this machine and in the database, and say what to do; fails if anything is broken."""
    import asyncio  # noqa: PLC0415

    from certctl_sdk.cli import output  # noqa: PLC0415

    from certctl_server import doctor as practice  # noqa: PLC0415
    from certctl_server.doctor_findings import State, worst  # noqa: PLC0415

    findings = asyncio.run(practice.examine(_settings({"CERTCTL_LOG_LEVEL": "warn"})))
    rows = [finding.as_row() for finding in findings]
    if (form or getattr(context.obj, "form", "table")) == "json":
        output.write_json({"state": worst(findings), "findings": rows})
    else:
        output.write_table(rows, ("check", "state", "found", "what_to_do"))
    if worst(findings) is State.FAIL:
        context.exit(1)


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--with-key", is_flag=True, help="Put the encryption key beside it, as FILE.key.")
def backup(file: Path, with_key: bool) -> None:  # noqa: FBT001  # as click calls it
    """Copy the SQLite database to FILE while the server runs, and check the copy."""
    from certctl_core.errors import MisconfiguredError  # noqa: PLC0415

    from certctl_server import backup as copying  # noqa: PLC0415

    try:
        made = copying.backup(_settings({"CERTCTL_LOG_LEVEL": "warn"}), file, with_key=with_key)
    except MisconfiguredError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"{made.path}: {made.told}")
    if with_key:
        click.echo(f"{copying.key_beside(file)}: the key that opens its secrets; whoever has both has everything")
    else:
        click.echo("the encryption key is not in it: keep a copy of that apart, without it the secrets are lost")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def restore(file: Path) -> None:
    """Put a backup in the place of the SQLite database, which is kept aside. The server must not run."""
    from certctl_server import backup as copying  # noqa: PLC0415

    async def work() -> None:
        done = await copying.restore(_settings({"CERTCTL_LOG_LEVEL": "warn"}), file)
        click.echo(f"restored {done.backup.path}: {done.backup.told}; this is epoch {done.epoch}")
        if done.replaced:
            click.echo(f"what was there before is {done.replaced}")
        click.echo("next: certctl doctor, and docs/backup.md for what a restore cannot know")

    _run(work())


@main.command("restored")
def restored_() -> None:
    """Say that the database was restored by its own tools, where the server could not notice it."""
    from certctl_server import backup as copying  # noqa: PLC0415

    async def work() -> None:
        click.echo(f"this is epoch {await copying.declare(_settings({'CERTCTL_LOG_LEVEL': 'warn'}))}")

    _run(work())


def _in_database(work: Callable[[Settings], Awaitable[T]]) -> T:
    from certctl_server import start  # noqa: PLC0415

    settings = _settings({"CERTCTL_LOG_LEVEL": "warn"})
    found: list[T] = []

    async def around() -> None:
        _have_data_directory(settings)
        async with start.connected(settings):
            await start.bring_up_to_date()
            found.append(await work(settings))

    _run(around())
    return found[0]


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: 8080]")
@click.option("--host", help="Address to listen on; any but loopback speaks TLS.  [default: 127.0.0.1]")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept.")
def up(port: int | None, host: str | None, data_dir: Path | None) -> None:
    """Run server, workers, scheduler and a local CA in this terminal; Ctrl-C stops them."""
    from certctl_server import up as process  # noqa: PLC0415
    from certctl_server.welcome import welcome  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    more = {
        "CERTCTL_SERVER_PORT": None if port is None else str(port),
        "CERTCTL_SERVER_HOST": host,
        "CERTCTL_DATA_DIR": str(data_dir.absolute()) if data_dir else None,
        # What a person watches is for people, unless they said otherwise.
        "CERTCTL_LOG_FORMAT": "text" if terminal and "CERTCTL_LOG_FORMAT" not in os.environ else None,
    }
    settings = _settings(more)
    _run(process.run(settings, lambda running: welcome(running, terminal=terminal), terminal=terminal))
