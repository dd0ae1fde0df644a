"""Claim jobs and run them: the only place where the errors of connectors become the fate of a job.

Bells name lanes. One task claims, each job runs in a task of its own on the main loop, its connector calls on
the connectors' loop. Another task beats the leases of all of them; a job that is lost is cancelled.

Step 3 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from certctl_core.errors import ConnectorError, DeploymentError, MisconfiguredError, RejectedError, TransientError
from certctl_core.issued import Issued
from certctl_core.job import ORDERS, Cause, JobState, JobType, retry_wait
from certctl_core.plugins import Plugins
from certctl_core.run import LeaseLost

from certctl_server import db
from certctl_server.certificates.status import hold
from certctl_server.connectors.instances import LONGEST_CALL, Instances
from certctl_server.connectors.loop import ConnectorBug, ConnectorLoop
from certctl_server.connectors.run import JobRun
from certctl_server.context import Context
from certctl_server.jobs import bell, intents, issue
from certctl_server.jobs.failure import order_failed
from certctl_server.jobs.orphan import orphaned
from certctl_server.jobs.revoke import revoke, untold
from certctl_server.jobs.state import Claimed, beat, claim, end, mine, release
from certctl_server.leader import TROUBLE
from certctl_server.notices import service as notices
from certctl_server.notices.send import send

log = logging.getLogger(__name__)
ROOM = 4
"""How many times a lane's usual concurrency fits into one process: a slow CA does not take all of it."""
Work: TypeAlias = Callable[["Attempt"], Awaitable[None]]
CAUSES = {
    TransientError: Cause.TRANSIENT,
    RejectedError: Cause.REJECTED,
    MisconfiguredError: Cause.MISCONFIGURED,
    DeploymentError: Cause.DEPLOYMENT,
}
PACE = db.Sql(
    """
    SELECT p.retry_interval_seconds FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id
    WHERE c.id = $1
    """
)


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

    await issue.issue(issue.Attempt(job, attempt.run, attempt.instances, orphan))


async def _send(attempt: Attempt) -> None:
    await send(attempt.job, attempt.run, attempt.instances)


async def _revoke(attempt: Attempt) -> None:
    await revoke(attempt.job, attempt.run, attempt.instances)


WORK: Mapping[JobType, Work] = {
    JobType.ISSUANCE: _issue,
    JobType.RENEWAL: _issue,
    JobType.REVOCATION: _revoke,
    JobType.NOTIFICATION: _send,
}


class Runner:
    """The workers of this process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.loop = ConnectorLoop()
        self.instances = Instances(ctx, self.loop)
        self._running: dict[str, tuple[Claimed, asyncio.Task[None]]] = {}
        self._wanted: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    @property
    def running(self) -> int:
        """How many jobs this process runs right now."""
        return len(self._running)

    def runs(self, job_id: str) -> bool:
        """Whether this process is running the job: it never takes one over from itself."""
        return job_id in self._running

    def start(self) -> None:
        """Begin to answer bells."""
        self.loop.start()
        self._tasks = [
            asyncio.create_task(self._claiming(), name="claims"),
            asyncio.create_task(self._beating(), name="lease beats"),
        ]

    def look(self, lane: str) -> None:
        """A bell rang: look into ``lane``."""
        self._wanted[lane] = None
        self._wake.set()

    async def stop(self, patience: float = 30.0) -> None:
        """Take no more jobs, let those at hand finish, give back what does not finish in time."""
        self._draining = True
        if tasks := [task for _, task in self._running.values()]:
            await asyncio.wait(tasks, timeout=patience)
        for _, task in list(self._running.values()):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.instances.aclose()
        await self.loop.stop()

    async def _claiming(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._claim_all()
            except Exception as exc:
                # A worker that claims no more is a fleet that expires: it goes on whatever happened.
                log.warning("jobs cannot be claimed", exc_info=exc)
                await asyncio.sleep(1)
                self._wake.set()

    async def _claim_all(self) -> None:
        lease, room = self._ctx.settings.job.lease, ROOM * self._ctx.settings.renewal_concurrency
        for lane in list(self._wanted):
            free = room - len(self._running)
            if free <= 0 or self._draining:
                return
            # Nobody takes more than half of what is free while others wait, and who was served goes last.
            limit = free if len(self._wanted) == 1 else max(1, free // 2)
            self._wanted.pop(lane, None)
            try:
                claimed = await claim(self.owner, lane, limit=limit, lease=lease)
            except Exception:
                self._wanted[lane] = None
                raise
            if len(claimed) == limit:
                self.look(lane)
            for job in claimed:
                task = asyncio.create_task(self._run(job), name=f"{job.type} {job.id}")
                self._running[job.id] = job, task
                task.add_done_callback(lambda _, job=job: self._over(job))  # type: ignore[misc]

    def _over(self, job: Claimed) -> None:
        if self._running.get(job.id, (None,))[0] is job:
            del self._running[job.id]
        self.look(job.lane)

    async def _beating(self) -> None:
        lease = self._ctx.settings.job.lease
        while True:
            await asyncio.sleep(lease.total_seconds() / 3)
            if not (ours := list(self._running.values())):
                continue
            try:
                alive = await beat(self.owner, [job.id for job, _ in ours], lease=lease)
            except Exception as exc:
                log.warning("leases cannot be extended", extra={"jobs": len(ours)}, exc_info=exc)
                continue
            if gone := {task: job for job, task in ours if alive.get(job.id) != job.fence}:
                await self._let_go(gone)

    async def _let_go(self, gone: Mapping[asyncio.Task[None], Claimed]) -> None:
        # One that has just written its end runs no more either, and is about to return.
        _, lost = await asyncio.wait(gone, timeout=self._ctx.settings.job.lease.total_seconds() / 10)
        for task in lost:
            log.warning("job lost to another owner", extra={"job": gone[task].id})
            task.cancel()

    async def _run(self, job: Claimed) -> None:
        try:
            await self._attempt(job)
        except Exception as exc:
            # Not even its end could be written: its lease runs out, and it is taken up again.
            log.warning("job left to its lease", extra={"job": job.id}, exc_info=exc)

    async def _attempt(self, job: Claimed) -> None:
        deadline = db.now() + LONGEST_CALL
        run = JobRun(job, deadline, self.loop)
        try:
            async with asyncio.timeout(LONGEST_CALL.total_seconds()):
                await WORK[job.type](Attempt(job, run, self.instances, self._ctx.plugins))
        except LeaseLost as exc:
            log.warning("job lost", extra={"job": job.id, "reason": str(exc)})
        except ConnectorError as exc:
            await self._failed(job, CAUSES.get(type(exc), Cause.TRANSIENT), str(exc), getattr(exc, "retry_after", None))
        except TimeoutError:
            await self._failed(job, Cause.TRANSIENT, f"no result within {LONGEST_CALL.total_seconds():g} s", None)
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
        cap = timedelta(
            seconds=next((row["retry_interval_seconds"] for row in await db.fetch(PACE, job.certificate_id)), 3600)
        )
        wait = None
        if failures < job.max_attempts and (job.type, cause) != (JobType.REVOCATION, Cause.REJECTED):
            wait = retry_wait(job.type, cause, failures, cap=cap, retry_after=retry_after, jitter=random.random())
        facts: dict[str, Any] = {"last_error": message, "failures": failures, "crashes": 0}
        if wait is not None:
            facts["next_retry_at"] = db.now() + wait
        log.warning("job failed", extra={"job": job.id, "type": job.type, "cause": cause, "error": message})
        with suppress(LeaseLost):
            async with db.transaction():
                await hold([job.certificate_id] if job.certificate_id else [])
                await end(job, JobState.FAILED, **facts, result=json.dumps({"cause": cause}))
                bell.poke("job retry")
                if job.type in ORDERS:
                    await self._order_failed(job, cause, message, over=wait is None)
                if job.type is JobType.REVOCATION and wait is None:
                    await untold(job.id, job.certificate_id, job.issuer_id, job.request["serial_number"], message)
                if job.type is JobType.NOTIFICATION:
                    again = facts.get("next_retry_at")
                    await notices.failed(
                        job.request["notification_id"], message, over=wait is None, next_retry_at=again
                    )

    async def _order_failed(self, job: Claimed, cause: Cause, message: str, *, over: bool) -> None:
        if cause in {Cause.REJECTED, Cause.MISCONFIGURED}:
            await intents.close(job, "failed", message)
        await order_failed(job.id, job.type, job.certificate_id, message, over=over)
