"""The audit trail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from certctl_sdk.cli.brought import GROUP, OpenGroup, brought_command
from certctl_sdk.cli.build import filter_options, get_command, list_command
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.audit_file import Verdict

FILTERS = {
    **{name: name for name in ("actor", "actor_type", "action", "resource_type", "resource_id")},
    "since": "after",
    "until": "before",
}
FORMS = ("ndjson", "json", "csv")


class AuditGroup(OpenGroup):
    """Where a server is installed, it adds what needs the database."""

    brought_by = f"{GROUP}.audit"


@click.group(cls=AuditGroup)
def audit() -> None:
    """Who did what, and when."""


audit.add_command(
    list_command(
        "audit", ("timestamp", "actor", "action", "resource_type", "resource_id"), FILTERS, "List events, newest first."
    )
)
audit.add_command(get_command("audit", "Show one event, or the newest one about the object of this ID."))


def _export() -> click.Command:
    @with_session
    def run(session: Session, file: str, form: str, **given: str | None) -> None:
        query = {FILTERS.get(name, name.rstrip("_")): value for name, value in given.items()}
        with session.client() as client, _new(file) as out:
            client.save(out, "audit", "export", format=form, **query)

    params: list[click.Parameter] = [
        click.Argument(["file"], default="-", type=click.Path(dir_okay=False, allow_dash=True)),
        click.Option(
            ["--format", "form"], type=click.Choice(FORMS), default="ndjson", show_default=True, help="Of the file."
        ),
        *filter_options(FILTERS),
        click.Option(["--from", "from_"], help="Only from this time on."),
        click.Option(["--to"], help="Only until before this time."),
    ]
    words = """Write events to a new FILE, or to standard output, oldest first.

    As ndjson and without a filter it is the whole trail, which certctl audit verify checks anywhere.
    """
    return click.Command("export", callback=run, params=params, help=words)


audit.add_command(_export())


@contextlib.contextmanager
def _new(file: str) -> Iterator[BinaryIO]:
    """A file that was not there before, and that is not there afterwards if it did not get whole."""
    if file == "-":
        yield sys.stdout.buffer
        return
    path = Path(file)
    try:
        out = path.open("xb")
    except OSError as exc:
        raise click.ClickException(f"{file} cannot be written: {exc.strerror}") from exc
    try:
        with out:
            yield out
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@audit.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.File("rb"))
@click.option("--key", default="", help="Whose signatures are good, as certctl audit verify says it on the server.")
@click.pass_context
def verify(context: click.Context, files: Sequence[BinaryIO], key: str) -> None:
    """Check whole ndjson exports and archives, away from the server; fails if anything was changed.

    Several FILEs are checked as one trail: archives first, the oldest in front, and an export last.
    Without a FILE, the database itself is checked, on a machine where its server is installed.
    """
    if not files:
        if key:
            raise click.UsageError("--key goes with a FILE: the database has its key")
        on_server = brought_command(AuditGroup.brought_by, "verify")
        if on_server is None:
            raise click.UsageError("name the FILE of an export: the database is checked where its server is installed")
        context.invoke(on_server)
        return
    from certctl_sdk import audit_file  # noqa: PLC0415  # brings cryptography: not for those who only want help

    try:
        found = audit_file.verify(files, key)
    except ValueError as exc:
        raise click.BadParameter("it is 32 bytes in base64", param_hint="--key") from exc
    for line in _told(found, pinned=bool(key)):
        click.echo(line)
    if found.faults.count:
        raise click.ClickException("this is not what the server sealed")


def _told(found: Verdict, *, pinned: bool) -> Iterator[str]:
    from certctl_sdk.cli.output import inert  # noqa: PLC0415

    yield f"sealed rows: {found.rows}, checkpoints: {found.checkpoints}, not sealed yet: {found.unsealed}"
    if found.first > 1:
        yield f"rows 1 to {found.first - 1} are in older archives"
    yield f"head: {found.head.sequence} {found.head.hash}"
    if found.end and found.end.trailer:
        yield f"made at: {inert(found.end.trailer.made_at)}"
    if found.key:
        yield f"signed by: {found.key}"
    if found.key and not pinned:
        yield "whose key this is, the file says itself: compare it with the server's, or give that as --key"
    for words in found.faults.told:
        yield f"FAULT: {inert(words)}"
    if found.faults.count > len(found.faults.told):
        yield f"FAULT: and {found.faults.count - len(found.faults.told)} more"
