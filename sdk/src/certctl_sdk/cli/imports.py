"""Certificates that were made elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.imported.files import Entry

COLUMNS = ("file", "certificate", "outcome", "id", "detail")


@click.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, path_type=Path))
@click.option("--issuer", "issuer_id", default="iss-local", show_default=True, help="The CA that is to renew them.")
@click.option("--owner", "owner_id", help="Who is told about them.")
@click.option("--team", "team_id", help="Who they belong to.")
@click.option("--policy", "renewal_policy_id", help="When to renew them.")
@click.option("--env", "environment", default="imported", show_default=True, help="Where they are used.")
@click.option("--expired", is_flag=True, help="Also those that have ended.")
@click.option("--dry-run", is_flag=True, help="Only say what is in the files.")
@with_session
def import_(session: Session, paths: tuple[Path, ...], *, expired: bool, dry_run: bool, **given: str | None) -> None:
    """Record certificates that were made elsewhere.

    FILE is PEM with any number of certificates, DER, or a directory of such files, those below it included. CA
    certificates without names, expired ones and keys are left out. Each certificate has its line in the report,
    and what the server has already is known, so a call that was cut off is made again.

    Ends with 0 if every certificate is imported, known or left out as said, and with 1 if one is not, or if a
    FILE that is named holds none.
    """
    from certctl_sdk.imported.files import look  # noqa: PLC0415  # brings cryptography

    entries = list(look(paths, datetime.now(UTC), expired=expired))
    if not dry_run:
        try:
            _send(session, entries, {name: value for name, value in given.items() if value})
        except KeyboardInterrupt:
            click.echo("cut off: what is not tried is left", err=True)
    _report(session, entries, dry_run=dry_run)


def _send(session: Session, entries: Sequence[Entry], more: dict[str, Any]) -> None:
    from certctl_sdk.declared.patience import PatientClient  # noqa: PLC0415  # brings HTTP
    from certctl_sdk.imported.files import Outcome  # noqa: PLC0415
    from certctl_sdk.imported.send import record  # noqa: PLC0415

    count = sum(each.outcome is Outcome.FOUND for each in entries)
    if not count:
        return
    with session.access() as access, session.progress("importing", count) as step:

        async def run() -> None:
            async with PatientClient(access) as client:
                await record(client, entries, more, step)

        asyncio.run(run())


def _report(session: Session, entries: Sequence[Entry], *, dry_run: bool) -> None:
    from certctl_sdk.cli import output  # noqa: PLC0415
    from certctl_sdk.imported.files import Outcome  # noqa: PLC0415

    rows = [
        {"file": e.file, "certificate": e.name, "outcome": str(e.outcome), "id": e.id, "detail": e.detail}
        for e in entries
    ]
    counts = Counter(str(each.outcome) for each in entries)
    if session.form == "json":
        output.write_json({"certificates": rows, "counts": counts})
    else:
        output.write_table(rows, COLUMNS)
        click.echo(", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "no file")
    if any(each.failed for each in entries if not (dry_run and each.outcome is Outcome.FOUND)):
        sys.exit(1)
