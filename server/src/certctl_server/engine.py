"""The engine of one process: connector instances, workers that answer bells, and the loops.

Alone, a process has all of it. Where a broker joins several, servers turn the loops and workers do the jobs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Flag, auto
from functools import partial

from certctl_server import restored, tally
from certctl_server.agents.health import watch
from certctl_server.agents.proof import presume
from certctl_server.audit.sealer import seal
from certctl_server.certificates import follow, renewal, rollout, windows
from certctl_server.certificates.rollout_state import LOOP as ROLLOUTS
from certctl_server.certificates.timing import LOOP as WINDOWS
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.context import Context
from certctl_server.doorbell import Answers, Doorbell, LocalDoorbell, RedisDoorbell
from certctl_server.jobs import bell
from certctl_server.jobs.retention import forget
from certctl_server.jobs.runner import Runner
from certctl_server.jobs.sweeper import Sweeper, time_out
from certctl_server.leader import Leadership
from certctl_server.loops import Loop, Loops
from certctl_server.notices import alerts
from certctl_server.policies import sweep as policies

PRESUME_EVERY = timedelta(minutes=1)
ROLLOUTS_EVERY = timedelta(seconds=5)
SEAL_EVERY = timedelta(milliseconds=250)
FOLD_EVERY = timedelta(milliseconds=500)
RESTORES_EVERY = timedelta(seconds=10)
LOOKS = timedelta(seconds=30)
"""What waits for a moment costs one look into an index when there is none."""
LEADS = timedelta(seconds=10)
"""The longest lease of the leader: a third more, and another process leads."""


class Part(Flag):
    """What a process does beside answering the API."""

    LOOPS = auto()
    WORKERS = auto()
    ALL = LOOPS | WORKERS


@dataclass(slots=True)
class Engine:
    """What runs behind the API in this process."""

    instances: Instances
    doorbell: Doorbell
    runner: Runner | None
    loops: Loops | None


_engine: Engine | None = None


def parts_of_server(ctx: Context) -> Part:
    """Return what a server does itself: with a broker, jobs are left to the workers that it joins."""
    return Part.LOOPS if ctx.settings.broker else Part.ALL


async def start(ctx: Context, parts: Part = Part.ALL) -> Engine:
    """Start workers and loops; the database must be open."""
    global _engine  # noqa: PLW0603  # one engine per process, as there is one database
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    instances = Instances(ctx, ConnectorLoop())
    runner = Runner(ctx, instances, f"worker:{owner}") if Part.WORKERS in parts else None
    loops = await _scheduler(ctx, runner, owner) if Part.LOOPS in parts else None
    doorbell = _doorbell(ctx, runner)
    _engine = ctx.engine = Engine(instances, doorbell, runner, loops)
    instances.loop.start()
    if runner:
        runner.start()
    bell.connect(doorbell.ring, loops.poke if loops else None, doorbell.tell)
    doorbell.start()
    if loops:
        loops.start()
    return _engine


async def stop() -> None:
    """Finish or give back the jobs at hand, end the loops; nothing if it never started."""
    global _engine
    engine, _engine = _engine, None
    if engine is None:
        return
    if engine.loops:
        await engine.loops.stop()
    if engine.runner:
        await engine.runner.stop()
    bell.connect(None, None)
    await asyncio.get_running_loop().run_in_executor(None, engine.doorbell.stop)
    await engine.instances.aclose()
    await engine.instances.loop.stop()


def _doorbell(ctx: Context, runner: Runner | None) -> Doorbell:
    answers = Answers(runner.look if runner else None, bell.hear, runner.room if runner else None)
    return RedisDoorbell(ctx.settings.broker, answers) if ctx.settings.broker else LocalDoorbell(answers)


async def _scheduler(ctx: Context, runner: Runner | None, owner: str) -> Loops:
    lease, alone = ctx.settings.job.lease, ctx.settings.embedded
    runs, agents = runner.runs if runner else _runs_none, ctx.settings.agent_run_lease
    sweeper = Sweeper(runs, lease, alone=alone, agents=agents)
    await sweeper.first()
    leads = min(lease, LEADS)
    return Loops(Leadership(owner, leads, alone=alone), loops_of(ctx, sweeper), leads)


def _runs_none(_: str) -> bool:
    return False


def loops_of(ctx: Context, sweeper: Sweeper) -> Sequence[Loop]:
    """Return every background loop there is (spec/api.md 9.8)."""
    intervals, job = ctx.settings.scheduler, ctx.settings.job
    timeouts = partial(time_out, awaiting_csr=job.awaiting_csr_timeout, awaiting_approval=job.awaiting_approval_timeout)
    return [
        Loop("renewal", intervals.renewal_check_interval, renewal.scan, looks=LOOKS),
        Loop(WINDOWS, intervals.renewal_check_interval, windows.look, looks=LOOKS),
        Loop("notifications", intervals.notification_process_interval, alerts.scan, looks=LOOKS),
        Loop("jobs", intervals.job_processor_interval, sweeper.sweep),
        Loop("job retry", intervals.retry_interval, sweeper.retry, looks=LOOKS),
        Loop("job timeouts", intervals.job_timeout_interval, timeouts),
        Loop("verifications", PRESUME_EVERY, presume),
        Loop(ROLLOUTS, ROLLOUTS_EVERY, rollout.advance, looks=LOOKS),
        Loop("agent health", intervals.agent_health_check_interval, watch),
        Loop("status flips", timedelta(seconds=1), renewal.flips),
        Loop(follow.LOOP, LOOKS, follow.look),
        Loop("audit sealer", SEAL_EVERY, partial(seal, ctx)),
        Loop("restores", RESTORES_EVERY, partial(restored.watch, ctx)),
        Loop("tally folder", FOLD_EVERY, tally.fold),
        Loop("retention", intervals.retention_interval, partial(forget, after=job.retention)),
        Loop(policies.LOOP, intervals.policy_sweep_interval, policies.sweep),
    ]
