"""Claim jobs and run them: the only place where the errors of connectors become the fate of a job.

Bells name lanes. One task claims, each job runs in a task of its own on the main loop, its connector calls on
the connectors' loop. Another task beats the leases of all of them; a job that is lost is cancelled.

Step 3 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from certctl_core.errors import ConnectorError
from certctl_core.issued import Issued
from certctl_core.job import ORDER_PACE, ORDERS, Cause, JobState, JobType, cause_of, retry_wait
from certctl_core.plugins import Plugins
from certctl_core.run import LeaseLost
from certctl_sdk import tracing

from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.status import hold
from certctl_server.connectors.instances import LONGEST_CALL, Instances
from certctl_server.connectors.loop import ConnectorBug
from certctl_server.connectors.run import JobRun
from certctl_server.context import Context
from certctl_server.jobs import intents, issue, lanes
from certctl_server.jobs.failure import failed
from certctl_server.jobs.orphan import orphaned
from certctl_server.jobs.revoke import revoke
from certctl_server.jobs.state import Claimed, beat, claim, end, mine, ours, release, watch_cancelled
from certctl_server.jobs.tables import Job
from certctl_server.leader import TROUBLE
from certctl_server.loops import ended
from certctl_server.notices.send import send
from certctl_server.policies.judge import Forbidden
from certctl_server.telemetry.tracing import running

log = logging.getLogger(__name__)
ROOM = 4
"""How many times a lane's usual concurrency fits into one process: a slow CA does not take all of it."""
SOONEST = timedelta(milliseconds=50)
PATIENCE_SECONDS = 5
Work: TypeAlias = Callable[["Attempt"], Awaitable[None]]
LOOK_EVERY = timedelta(seconds=1)
"""How soon it is noticed that somebody else has called off a job that runs here."""
ABOUT = db.Sql(
    """
    SELECT p.retry_interval_seconds, c.common_name, c.sans
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id WHERE c.id = $1
    """
)
# The plus takes the index on type out of SQLite's choice.
_BEFORE = """
    SELECT status, result FROM job WHERE certificate_id = $1 AND type IN ('Issuance', 'Renewal') AND id <> $2
        AND coalesce(agent_id, '') = $3 AND status <> 'Cancelled' ORDER BY created_at DESC, id DESC LIMIT 1
"""
BEFORE = db.Sql(postgres=_BEFORE, sqlite=_BEFORE.replace("AND type", "AND +type"))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed job, with what running it takes."""

    job: Claimed
    run: JobRun
    instances: Instances
    plugins: Plugins


async def _issue(attempt: Attempt) -> None:
    job = attempt.job

    async def orphan(issued: Issued, reference: str) -> None:
        await orphaned(job, issued, reference, attempt.plugins)

    if await issue.issue(issue.Attempt(job, attempt.run, attempt.instances, orphan)):
        await lanes.succeeded(job.lane)


async def _send(attempt: Attempt) -> None:
    await send(attempt.job, attempt.run, attempt.instances)
    await lanes.succeeded(attempt.job.lane)


async def _revoke(attempt: Attempt) -> None:
    await revoke(attempt.job, attempt.run, attempt.instances)
    await lanes.succeeded(attempt.job.lane)


WORK: Mapping[JobType, Work] = {
    JobType.ISSUANCE: _issue,
    JobType.RENEWAL: _issue,
    JobType.REVOCATION: _revoke,
    JobType.NOTIFICATION: _send,
}


async def _repeats(job: Claimed, cause: Cause) -> bool:
    """Whether a fresh order of the scheduler's fails as the last one of this certificate did: then a day is waited."""
    if job.type not in ORDERS or job.failures or job.requested_by != SYSTEM.name:
        return False
    before = await db.fetch(BEFORE, job.certificate_id, job.id, job.agent_id)
    return any(row["status"] == JobState.FAILED and json.loads(row["result"]).get("cause") == cause for row in before)


async def _tell_lane(job: Claimed, fault: str, message: str, retry_after: timedelta | None, cause: Cause) -> None:
    # What a policy forbids says nothing about the CA, which was not asked.
    if cause is not Cause.FORBIDDEN and (job.type in ORDERS or retry_after is not None):
        refused = cause is Cause.REJECTED
        failure = lanes.Failure(fault, job.certificate_id, refused=refused, retry_after=retry_after)
        await lanes.failed(job.lane, failure, message)


class Runner:
    """The workers of this process."""

    def __init__(self, ctx: Context, instances: Instances, owner: str) -> None:
        self._ctx = ctx
        self.owner = owner
        self.instances = instances
        self.room = threading.Event()
        """Set while one more job could be taken."""
        self._running: dict[str, tuple[Claimed, asyncio.Task[None]]] = {}
        self._wanted: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._left_over = asyncio.Event()
        """Set when a lane has given all it has: what comes next in it comes at some moment that is to be found out."""
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._unwatch: Callable[[], None] = lambda: None

    @property
    def running(self) -> int:
        """How many jobs this process runs right now."""
        return len(self._running)

    def runs(self, job_id: str) -> bool:
        """Whether this process is running the job: it never takes one over from itself."""
        return job_id in self._running

    def start(self) -> None:
        """Begin to answer bells, and to look for what nobody rang for."""
        self.room.set()
        self._tasks = [
            asyncio.create_task(self._claiming(), name="claims"),
            asyncio.create_task(self._looking(), name="looks"),
            asyncio.create_task(self._beating(), name="lease beats"),
        ]
        self._unwatch = watch_cancelled(self._called_off)

    def look(self, lane: str) -> None:
        """A bell rang: look into ``lane``."""
        self._wanted[lane] = None
        self._wake.set()

    async def stop(self, patience: float = 30.0) -> None:
        """Take no more jobs, let those at hand finish, give back what does not finish in time."""
        self._draining = True
        self._unwatch()
        self.room.set()
        self._wake.set()
        if self._tasks:
            # A claim that is being written ends first, so that its jobs are among those at hand.
            await asyncio.wait(self._tasks[:1], timeout=PATIENCE_SECONDS)
        if tasks := [task for _, task in self._running.values()]:
            await asyncio.wait(tasks, timeout=patience)
        if tasks := [task for _, task in self._running.values()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        await ended(self._tasks)
        with suppress(*TROUBLE):
            await release(Job.owner == self.owner, reason="the process stopped", crashed=False)

    async def _claiming(self) -> None:
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._claim_all()
            except Exception as exc:
                # A worker that claims no more is a fleet that expires: it goes on whatever happened.
                log.warning("jobs cannot be claimed", exc_info=exc)
                await asyncio.sleep(1)
                self._wake.set()

    async def _looking(self) -> None:
        """Look without a bell: one may be lost, and what becomes due later never had one."""
        most = self._ctx.settings.scheduler.job_processor_interval.total_seconds()
        while True:
            until = time.monotonic() + most * random.uniform(1, 1.1)  # not all workers at once
            known: set[str] = set()
            while (left := until - time.monotonic()) > 0:
                left = min(left, await self._look_around(known))
                await asyncio.sleep(SOONEST.total_seconds())
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._left_over.wait()
                self._left_over.clear()

    async def _look_around(self, known: set[str]) -> float:
        """Look into lanes that have become due and are not ``known``; return the seconds until there are more."""
        try:
            around = await lanes.outlook()
        except Exception as exc:
            log.warning("due jobs cannot be looked for", exc_info=exc)
            return LONGEST_CALL.total_seconds()
        for lane in set(around.due) - known:
            self.look(lane)
        # One that has no room although there is something due is looked into when a job of it ends.
        known.clear()
        known.update(around.due)
        return max(around.wait, SOONEST).total_seconds() if around.wait else LONGEST_CALL.total_seconds()

    async def _claim_all(self) -> None:
        lease, usual = self._ctx.settings.job.lease, self._ctx.settings.renewal_concurrency
        for lane in list(self._wanted):
            free = self._free()
            if free <= 0 or self._draining:
                return
            # Nobody takes more than half of what is free while others wait, and who was served goes last.
            limit = free if len(self._wanted) == 1 else max(1, free // 2)
            self._wanted.pop(lane, None)
            try:
                claimed = await claim(self.owner, lane, limit=limit, lease=lease, usual=usual)
            except Exception:
                self._wanted[lane] = None
                raise
            if len(claimed) == limit:
                self.look(lane)
            else:
                self._left_over.set()
            for job in claimed:
                task = asyncio.create_task(self._run(job), name=f"{job.type} {job.id}")
                self._running[job.id] = job, task
                task.add_done_callback(lambda _, job=job: self._over(job))  # type: ignore[misc]
            if self._free() <= 0:
                self.room.clear()

    def _free(self) -> int:
        return ROOM * self._ctx.settings.renewal_concurrency - len(self._running)

    def _over(self, job: Claimed) -> None:
        if self._running.get(job.id, (None,))[0] is job:
            del self._running[job.id]
        self.room.set()
        self.look(job.lane)

    async def _beating(self) -> None:
        lease = self._ctx.settings.job.lease
        every = lease.total_seconds() / 3
        beaten = time.monotonic()
        while True:
            await asyncio.sleep(min(every, LOOK_EVERY.total_seconds()))
            if not (held := list(self._running.values())):
                continue
            now, ids = time.monotonic(), [job.id for job, _ in held]
            try:
                async with asyncio.timeout(lease.total_seconds()):
                    if now - beaten < every:
                        alive = await ours(self.owner, ids)
                    else:
                        beaten, alive = now, await beat(self.owner, ids, lease=lease)
            except Exception as exc:
                log.warning("leases cannot be extended", extra={"jobs": len(held)}, exc_info=exc)
                continue
            if gone := {task: job for job, task in held if alive.get(job.id) != job.fence}:
                await self._let_go(gone)

    def _called_off(self, ids: set[str]) -> None:
        for id in ids & self._running.keys():
            log.info("job called off", extra={"job": id})
            self._running[id][1].cancel()

    async def _let_go(self, gone: Mapping[asyncio.Task[None], Claimed]) -> None:
        # One that has just written its end runs no more either, and is about to return.
        _, lost = await asyncio.wait(gone, timeout=self._ctx.settings.job.lease.total_seconds() / 10)
        for task in lost:
            log.warning("job called off, or lost to another owner", extra={"job": gone[task].id})
            task.cancel()

    async def _run(self, job: Claimed) -> None:
        try:
            with running(job):
                await self._attempt(job)
        except Exception as exc:
            # Not even its end could be written: its lease runs out, and it is taken up again.
            log.warning("job left to its lease", extra={"job": job.id}, exc_info=exc)

    async def _attempt(self, job: Claimed) -> None:
        deadline = db.now() + LONGEST_CALL
        run = JobRun(job, deadline, self.instances.loop)
        limit = asyncio.timeout(LONGEST_CALL.total_seconds())
        try:
            async with limit:
                await WORK[job.type](Attempt(job, run, self.instances, self._ctx.plugins))
        except LeaseLost as exc:
            log.warning("job lost", extra={"job": job.id, "reason": str(exc)})
        except ConnectorError as exc:
            cause = Cause.FORBIDDEN if isinstance(exc, Forbidden) else cause_of(exc)
            await self._failed(job, cause, str(exc), getattr(exc, "retry_after", None))
        except TimeoutError as exc:
            ours = f"no result within {LONGEST_CALL.total_seconds():g} s"
            said = ours if limit.expired() else f"gave up waiting: {exc or 'nothing more was said'}"
            await self._failed(job, Cause.TRANSIENT, said, None)
        except asyncio.CancelledError:
            if self._draining:
                await release(mine(job), reason="the process stopped", crashed=False)
            raise
        except TROUBLE as exc:
            log.warning("job left to its lease: the database has trouble", extra={"job": job.id}, exc_info=exc)
        except Exception as exc:
            log.exception("bug", extra={"job": job.id, "type": job.type})
            who = await self._culprit(job) if isinstance(exc, ConnectorBug) else "certctl-server"
            said = str(exc) if isinstance(exc, ConnectorBug) else f"{type(exc).__name__}: {exc}"
            await self._failed(job, Cause.BUG, f"bug in {who}: {said}", None)

    async def _culprit(self, job: Claimed) -> str:
        with suppress(ConnectorError):
            return self._ctx.plugins.origin(await self.instances.issuer(job.issuer_id)) if job.issuer_id else job.type
        return job.lane

    async def _failed(self, job: Claimed, cause: Cause, message: str, retry_after: timedelta | None) -> None:
        failures = job.failures + 1
        about = next(iter(await db.fetch(ABOUT, job.certificate_id)), None)
        cap = timedelta(seconds=about["retry_interval_seconds"]) if about else ORDER_PACE
        wait = None
        hopeless = (job.type, cause) == (JobType.REVOCATION, Cause.REJECTED) or await _repeats(job, cause)
        if failures < job.max_attempts and not hopeless:
            wait = retry_wait(job.type, cause, failures, cap=cap, retry_after=retry_after, jitter=random.random())
        facts: dict[str, Any] = {"last_error": message, "failures": failures, "crashes": 0}
        if wait is not None:
            facts["next_retry_at"] = db.now() + wait
        tracing.fail(cause.value, message)
        log.warning("job failed", extra={"job": job.id, "type": job.type, "cause": cause, "error": message})
        with suppress(LeaseLost):
            async with db.transaction():
                await hold([job.certificate_id] if job.certificate_id else [])
                rows = await end(job, JobState.FAILED, **facts, result=json.dumps({"cause": cause}))
                await _tell_lane(job, lanes.fault_of(cause, message, about), message, retry_after, cause)
                if wait is None:
                    await intents.close(job, "unresolved", message)
                await failed(rows, message)
