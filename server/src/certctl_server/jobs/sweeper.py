"""What keeps jobs moving when a bell was lost, a retry is due, an owner died or nobody ever answered."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from certctl_core.job import JobState, JobType

from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.status import hold, hold_of, settle
from certctl_server.certificates.versions import CALLED_OFF
from certctl_server.db.clock import A_JUMP, Jumps
from certctl_server.jobs import bell, budgets, lanes
from certctl_server.jobs.failure import failed
from certctl_server.jobs.state import EXPIRED, WORN, cancel, move, release, retry_due
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership, Stillness
from certctl_server.telemetry import metrics

OUTLIVED = db.Sql(
    """
    SELECT j.id FROM job j JOIN certificate_version v ON v.id = j.version_id
    WHERE j.type = 'Deployment' AND j.status IN ('Pending', 'Running', 'Failed') AND j.place IS NOT NULL
        AND v.not_after <= {now}
    """
)
UNANSWERED = db.Sql(
    """
    SELECT id FROM job WHERE status = $1 AND scheduled_at < $2 AND (status <> 'AwaitingCSR' OR csr_pem = '')
    ORDER BY created_at, id LIMIT $3
    """
)
BATCH = 1000
# What the CA came to nobody can say any more; if it signed, and that is ever seen, it is nobody's.
UNRESOLVED = db.Sql(
    """
    UPDATE intent SET status = 'unresolved', settled_at = {now}, reason = 'the order was called off while it was placed'
    WHERE status = 'open' AND created_at < {after:-3600}
        AND EXISTS (SELECT 1 FROM job j WHERE j.id = intent.job_id AND j.status IN ('Cancelled', 'Completed'))
    """
)
NEXT_RETRY = db.Sql("SELECT min(next_retry_at) AS due_at FROM job WHERE next_retry_at IS NOT NULL")
# Given before the database's clock was set back; who lives will ask for more in time.
SHORTEN = db.Sql("UPDATE job SET lease_until = {after:$1} WHERE lease_until > {after:$2}")
#: What was put off by a clock that has been set back since would wait for as much longer. What comes too soon by this
#: is asked about once more than it had to be.
SET_BACK = (
    db.Sql("UPDATE job SET due_at = {now} WHERE due_at > {now}"),
    db.Sql("UPDATE job SET offer_at = {now} WHERE offer_at > {after:3660} AND (opens_at IS NULL OR opens_at <= {now})"),
    db.Sql("UPDATE job SET next_retry_at = {now} WHERE next_retry_at > {after:93600}"),
    db.Sql("UPDATE lane SET circuit_until = {after:3600} WHERE circuit_until > {after:3600}"),
    db.Sql("UPDATE lane SET room_at = {now} WHERE room_at > {now}"),
)
AT_ONCE = 500
"""Jobs that one transaction takes over."""
AGENT = "agent:"


class Sweeper:
    """The loops ``jobs`` and ``job retry``.

    ``runs`` says whether this process runs a job right now; ``alone``: no other process can own a lease; ``agents`` is
    how long an agent has a job without a report.
    """

    def __init__(
        self,
        runs: Callable[[str], bool],
        lease: timedelta,
        *,
        alone: bool,
        agents: timedelta = timedelta(minutes=10),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = runs
        self._lease = lease
        self._agents = agents.total_seconds()
        self._longest = max(lease, agents).total_seconds()
        self._monotonic = monotonic
        self._jumps, self._jumped = Jumps(), -math.inf
        self._set_back = False
        self._alone = alone
        self._stillness = Stillness(monotonic)

    async def sweep(self, leadership: Leadership) -> datetime | None:
        """Take over what the dead left behind, and put in front what has become urgent."""
        await self._heed_clock(leadership)
        more = await self._take_over(leadership)
        async with leadership.leading():
            for lane in await lanes.hurry():
                bell.ring(lane)
        return db.now() if more else None

    async def _heed_clock(self, leadership: Leadership) -> None:
        await db.follow_clock()
        jump = self._jumps.since()
        if abs(jump) > A_JUMP:
            self._jumped = self._monotonic()
            self._set_back = self._set_back or jump < timedelta()
        if self._set_back:
            async with leadership.leading():
                for statement in SET_BACK:
                    await db.fetch(statement)
            self._set_back = False
            bell.poke("job retry")

    async def retry(self, leadership: Leadership) -> datetime | None:
        """Put failed jobs back into their queues when their time has come."""
        async with leadership.leading():
            _ring(await retry_due(db.now()))
        return await db.moment(NEXT_RETRY)

    async def _take_over(self, leadership: Leadership) -> bool:
        """Whether there are more than were taken over."""
        rows = await db.fetch(EXPIRED)
        self._stillness.keep_only({row["id"] for row in rows})
        every = [row for row in rows if self._is_dead(row)]
        dead = every[:AT_ONCE]
        async with leadership.leading():
            await db.fetch(SHORTEN, self._longest, 2 * self._longest)
            await hold(row["certificate_id"] for row in dead if row["certificate_id"])
            # Whoever has beaten or reported since lives.
            for fence, beat in sorted({(row["fence"], row["beat"]) for row in dead}):
                ids = [row["id"] for row in dead if (row["fence"], row["beat"]) == (fence, beat)]
                still = Job.id.is_in(ids) & (Job.fence == fence) & (Job.beat == beat)
                freed = await release(still, reason="its lease ran out")
                await _given_back(freed)
                metrics.leases_expired(row["type"] == JobType.DEPLOYMENT for row in freed)
        return len(every) > len(dead)

    def _is_dead(self, row: db.Row) -> bool:
        if self._runs(row["id"]):
            return False
        # An agent's lease is renewed by reports alone, and has no beat that could stand still: after its clock was set,
        # the database's word counts for nothing until a whole lease has gone by.
        if row["owner"].startswith(AGENT):
            return self._monotonic() - self._jumped > self._agents
        return self._stillness.of(row["id"], (row["fence"], row["beat"])) >= self._lease

    async def first(self) -> None:
        """At the start of the only process there is: whatever was running is over, its process is dead."""
        if not self._alone:
            return
        workers = (Job.status == JobState.RUNNING) & Job.owner.not_like(f"{AGENT}%")
        async with db.transaction():
            await hold_of(workers)
            await _given_back(await release(workers, reason="the process ended"))


async def time_out(leadership: Leadership, awaiting_csr: timedelta, awaiting_approval: timedelta) -> datetime | None:
    """End what nobody answered: a CSR that never came, an approval that nobody gave; return when to look again."""
    now = db.now()
    async with leadership.leading():
        moved: list[db.Row] = []
        outlived = [row["id"] for row in await db.fetch(OUTLIVED)]
        waits = ((JobState.AWAITING_CSR, awaiting_csr), (JobState.AWAITING_APPROVAL, awaiting_approval))
        unanswered = [
            [row["id"] for row in await db.fetch(UNANSWERED, state, now - patience, BATCH)] for state, patience in waits
        ]
        silent, old = (Job.id.is_in(ids or [""]) for ids in unanswered)
        # Certificates before jobs, as everybody takes them.
        await hold_of(Job.id.is_in(outlived or [""]) | silent | old)
        if outlived:
            moved += await cancel(Job.id.is_in(outlived), actor=SYSTEM, reason="the version has expired")
            await db.fetch(CALLED_OFF, json.dumps(outlived))
        text = "no agent answered with a CSR in time"
        still = silent & (Job.csr_pem == "")
        await failed(await move(still, JobState.AWAITING_CSR, JobState.FAILED, last_error=text), text)
        waiting = (JobState.AWAITING_APPROVAL,)
        moved += await cancel(old, actor=SYSTEM, reason="nobody approved it in time", states=waiting)
        await settle({row["certificate_id"] for row in moved if row["certificate_id"]})
        await db.fetch(UNRESOLVED)
        await budgets.forget()
    return now if any(len(ids) == BATCH for ids in unanswered) else None


async def _given_back(rows: list[db.Row]) -> None:
    await settle({row["certificate_id"] for row in rows if row["certificate_id"]})
    await failed(rows, WORN)
    _ring(rows)


def _ring(rows: list[db.Row]) -> None:
    for row in rows:
        if row["agent_id"]:
            bell.ring_agent(row["agent_id"])
        if row["type"] != JobType.DEPLOYMENT:
            bell.ring(row["lane"])
