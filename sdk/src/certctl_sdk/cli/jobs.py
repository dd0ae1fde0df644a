"""What is being done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from certctl_sdk.api import jobs as api
from certctl_sdk.cli.build import action, counted, get_command, list_command
from certctl_sdk.cli.session import Session, with_session

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import BulkRetryBody

COLUMNS = ("id", "type", "certificate_id", "target_id", "status", "attempts", "last_error")
FILTERS = {"status": "status", "type": "type", "cert": "certificate_id", "target": "target_id", "agent": "agent_id"}


@click.group()
def jobs() -> None:
    """What is being done, and what failed."""


jobs.add_command(list_command("jobs", COLUMNS, FILTERS, "List jobs, newest first."))
jobs.add_command(get_command("jobs", "Show one job."))
jobs.add_command(action("jobs", "cancel", "Cancel a job that has not ended.", "{id} is cancelled"))


def _decision(verb: str, words: str, sentence: str) -> click.Command:
    @with_session
    def run(session: Session, id: str, reason: str | None) -> None:
        with session.client() as client:
            body = {"reason": reason} if reason else {}
            session.say(client.post("jobs", id, verb, body=body), sentence.format(id=id))

    reason = click.Option(["--reason"], help="Why, for the audit trail.")
    return click.Command(verb, callback=run, params=[click.Argument(["id"]), reason], help=words)


jobs.add_command(_decision("approve", "Let a job go on that waits for approval.", "{id} goes on"))
jobs.add_command(_decision("reject", "Refuse a job that waits for approval.", "{id} is refused"))


@jobs.command()
@click.argument("ids", nargs=-1)
@click.option("--status", help="All with this status: Failed, Cancelled.")
@click.option("--type", help="All of this type.")
@click.option("--cert", "certificate_id", help="All of this certificate.")
@click.option("--target", "target_id", help="All for this target.")
@click.option("--agent", "agent_id", help="All of this agent.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@with_session
def retry(session: Session, ids: tuple[str, ...], *, dry_run: bool, **filters: Any) -> None:
    """Try failed jobs again, now: those with these IDS, or all that match."""
    given = {name: value for name, value in filters.items() if value}
    if not ids and not given:
        raise click.UsageError("name jobs, or say which: --status Failed")
    with session.client() as client:
        if len(ids) == 1 and not given and not dry_run:
            session.say(client.send(api.retry(ids[0])), f"{ids[0]} is tried again")
            return
        body = {"job_ids": list(ids), "filter": given, "dry_run": dry_run}
        found = client.send(
            api.bulk_retry(cast("BulkRetryBody", {name: value for name, value in body.items() if value}))
        )
    faults = [f"{each['job_id']}: {each['error']}" for each in found["errors"][:10]]
    session.say(found, "; ".join([counted(found, "retried", "tried again"), *faults]))
