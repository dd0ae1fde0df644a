"""The renewal scan: due certificates become jobs, by one indexed column and in sets."""

from __future__ import annotations

from datetime import datetime

from certctl_core.job import JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.orders import Order, order
from certctl_server.certificates.status import flip, postpone, settle
from certctl_server.leader import Leadership

BATCH = 10_000
"""In one transaction."""
DUE = db.Sql(
    """
    SELECT id, (version_id IS NOT NULL OR was_active) AS issued FROM certificate
    WHERE renew_due_at <= $1 ORDER BY renew_due_at LIMIT $2
    """
)
NEXT = db.Sql("SELECT min(renew_due_at) AS due_at FROM certificate WHERE renew_due_at IS NOT NULL")
NEXT_FLIP = db.Sql("SELECT min(flip_at) AS due_at FROM certificate WHERE flip_at IS NOT NULL")


async def scan(leadership: Leadership) -> datetime | None:
    """Order a renewal of every certificate that is due; return when the next one will be."""
    while True:
        async with leadership.leading():
            now = db.now()
            rows = await db.fetch(DUE, now, BATCH)
            left = {row["id"] for row in rows}
            for type_, issued in ((JobType.RENEWAL, True), (JobType.ISSUANCE, False)):
                if some := [row["id"] for row in rows if bool(row["issued"]) == issued]:
                    made = await order(some, Order(type=type_, due_at=now, automatic=True), SYSTEM)
                    left -= {job.certificate_id for job in made}
            if left:
                # What got no job, because one is open, is due no more: status.settle says so.
                await settle(left)
                await postpone(left, now)
        due = await db.moment(NEXT)
        if len(rows) < BATCH or due is None or due > now:
            return due


async def flips(leadership: Leadership) -> datetime | None:
    """Flip the statuses that the clock has changed; return when the next one does."""
    async with leadership.leading():
        await flip(db.now())
    return await db.moment(NEXT_FLIP)
