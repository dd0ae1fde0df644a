"""Bulk actions on certificates: those that are named, or all that match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from certctl_sdk.cli.build import counted
from certctl_sdk.cli.session import Session, with_session

PATIENCE_SECONDS = 3600.0
"""The server answers when it has done all of them."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """What is particular about one action."""

    verb: str
    """As the path has it after ``bulk-``."""
    total: str
    """What the answer calls the number of those that were done, after ``total_``."""
    done: str
    """What people call them."""
    words: str
    options: Sequence[click.Parameter] = ()


ACTIONS = (
    Bulk("renew", "enqueued", "renewals ordered", "Renew certificates now: those with these IDS, or all that match."),
    Bulk(
        "revoke",
        "revoked",
        "revoked",
        "Revoke certificates: those with these IDS, or all that match. Needs an admin's key.",
        [click.Option(["--reason"], required=True, help="As RFC 5280 spells it: keyCompromise ...")],
    ),
    Bulk(
        "reassign",
        "reassigned",
        "given away",
        "Give certificates to another owner: those with these IDS, or all that match.",
        [
            click.Option(["--to-owner", "owner_id"], required=True, help="Whose they become."),
            click.Option(["--to-team", "team_id"], help="Which team they come to.  [default: each stays with its own]"),
        ],
    ),
)


def commands(path: str, filters: Mapping[str, str]) -> list[click.Command]:
    """Return the commands; ``filters`` are the options by which certificates are picked, with what each filters by."""
    return [_command(path, filters, each) for each in ACTIONS]


def _command(path: str, filters: Mapping[str, str], bulk: Bulk) -> click.Command:
    @with_session
    def run(session: Session, ids: Sequence[str], *, dry_run: bool, **given: Any) -> None:
        picked = {parameter: given.pop(name) for name, parameter in filters.items()}
        body = {
            "certificate_ids": list(ids),
            "filter": {name: value for name, value in picked.items() if value},
            "dry_run": dry_run,
        }
        if not ids and not body["filter"]:
            raise click.UsageError("name certificates, or say which: --issuer, --team ...")
        body = {name: value for name, value in {**given, **body}.items() if value}
        with session.client(timeout=PATIENCE_SECONDS) as client:
            found = client.post(path, f"bulk-{bulk.verb}", body=body)
        reasons = [f"{why}: {number}" for why, number in (found.get("reasons") or {}).items()]
        session.say(found, "; ".join([counted(found, bulk.total, bulk.done), *reasons]))

    params = [
        click.Argument(["ids"], nargs=-1),
        *(
            click.Option([f"--{name.replace('_', '-')}", name], help=f"All with this {parameter.replace('_', ' ')}.")
            for name, parameter in filters.items()
        ),
        *bulk.options,
        click.Option(["--dry-run"], is_flag=True, help="Only say how many it would be."),
    ]
    return click.Command(f"bulk-{bulk.verb}", callback=run, params=params, help=bulk.words)
