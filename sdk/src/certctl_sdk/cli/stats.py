"""How many there are, and how many on each day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from certctl_sdk.cli.session import Session, with_session

BUCKETS = click.Choice(["day", "week"], case_sensitive=False)


@click.group()
def stats() -> None:
    """Certificates by status, and what ends and is issued by day."""


def _series(name: str, path: str, columns: Sequence[str], words: str, *, timed: bool = True) -> None:
    @with_session
    def run(session: Session, **given: Any) -> None:
        with session.client() as client:
            session.show_rows(client.series("stats", path, **given), columns)

    options: list[click.Parameter] = [
        click.Option(["--days"], type=click.IntRange(1, 365), help="How many days.  [default: 30]"),
        click.Option(["--bucket"], type=BUCKETS, help="One line for each day or week.  [default: day]"),
    ]
    stats.add_command(click.Command(name, callback=run, params=options if timed else [], help=words))


_series("by-status", "certificates-by-status", ("status", "count"), "Certificates by status.", timed=False)
_series("expirations", "expiration-timeline", ("date", "count"), "Certificates that end, from today on.")
_series(
    "jobs",
    "job-trends",
    ("date", "completed_count", "failed_count", "success_rate"),
    "Jobs that ended well or not, up to today.",
)
_series("issued", "issuance-rate", ("date", "issued_count"), "Certificates that were issued, up to today.")
