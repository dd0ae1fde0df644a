"""What is being done."""

from __future__ import annotations

import click

from certctl_sdk.cli.build import action, get_command, list_command

COLUMNS = ("id", "type", "certificate_id", "target_id", "status", "attempts", "last_error")
FILTERS = {"status": "status", "type": "type", "cert": "certificate_id", "target": "target_id", "agent": "agent_id"}


@click.group()
def jobs() -> None:
    """What is being done, and what failed."""


jobs.add_command(list_command("jobs", COLUMNS, FILTERS, "List jobs, newest first."))
jobs.add_command(get_command("jobs", "Show one job."))
jobs.add_command(action("jobs", "cancel", "Cancel a job that has not ended.", "{id} is cancelled"))
jobs.add_command(action("jobs", "retry", "Try a failed job again, now.", "{id} is tried again"))
