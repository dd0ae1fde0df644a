"""The engine of one process: workers that answer bells, and the loops.

The broker carries lanes' names and nothing else. Embedded, it is Dramatiq's stub broker inside the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import dramatiq
from dramatiq.brokers.stub import StubBroker

from certctl_server.agents.health import watch
from certctl_server.agents.proof import presume
from certctl_server.audit.sealer import seal
from certctl_server.certificates import renewal
from certctl_server.context import Context
from certctl_server.jobs import bell
from certctl_server.jobs.runner import Runner
from certctl_server.jobs.sweeper import Sweeper, time_out
from certctl_server.leader import Leadership
from certctl_server.loops import Loop, Loops

log = logging.getLogger(__name__)
PRESUME_EVERY = timedelta(minutes=1)
SEAL_EVERY = timedelta(milliseconds=250)


class Doorbell:
    """Dramatiq, as far as we need it: a lane's name goes in here and comes out at a worker."""

    def __init__(self, look: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self._broker = StubBroker(middleware=[])

        def answer(lane: str) -> None:
            loop.call_soon_threadsafe(look, lane)

        self._actor = dramatiq.actor(actor_name="look", queue_name="lanes", broker=self._broker)(answer)
        self._worker = dramatiq.Worker(self._broker, worker_threads=1, worker_timeout=250)

    def start(self) -> None:
        """Begin to listen."""
        self._worker.start()

    def ring(self, lane: str) -> None:
        """Send the name of a lane."""
        try:
            self._actor.send(lane)
        except dramatiq.DramatiqError as exc:
            log.warning("bell lost", extra={"lane": lane}, exc_info=exc)

    def stop(self) -> None:
        """Stop listening; blocks until the worker's thread has ended."""
        self._worker.stop(timeout=5_000)
        self._broker.close()


@dataclass(slots=True)
class Engine:
    """What runs behind the API in this process."""

    runner: Runner
    doorbell: Doorbell
    loops: Loops

    @property
    def instances(self) -> object:
        """The connector instances of this process."""
        return self.runner.instances


_engine: Engine | None = None


async def start(ctx: Context) -> Engine:
    """Start workers and loops; the database must be open."""
    global _engine  # noqa: PLW0603  # one engine per process, as there is one database
    runner = Runner(ctx)
    lease, alone = ctx.settings.job.lease, ctx.settings.embedded
    sweeper = Sweeper(runner, lease, alone=alone)
    doorbell = Doorbell(runner.look)
    loops = Loops(Leadership(runner.owner, lease, alone=alone), _loops(ctx, sweeper), lease)
    _engine = Engine(runner, doorbell, loops)
    ctx.engine = _engine
    await sweeper.first()
    runner.start()
    doorbell.start()
    bell.connect(doorbell.ring, loops.poke)
    loops.start()
    return _engine


async def stop() -> None:
    """Finish or give back the jobs at hand, end the loops; nothing if it never started."""
    global _engine
    engine, _engine = _engine, None
    if engine is None:
        return
    bell.connect(None, None)
    await engine.loops.stop()
    await engine.runner.stop()
    await asyncio.get_running_loop().run_in_executor(None, engine.doorbell.stop)


def _loops(ctx: Context, sweeper: Sweeper) -> list[Loop]:
    intervals, job = ctx.settings.scheduler, ctx.settings.job
    timeouts = partial(time_out, awaiting_csr=job.awaiting_csr_timeout, awaiting_approval=job.awaiting_approval_timeout)
    return [
        Loop("renewal", intervals.renewal_check_interval, renewal.scan),
        Loop("jobs", intervals.job_processor_interval, sweeper.sweep),
        Loop("job retry", intervals.retry_interval, sweeper.retry),
        Loop("job timeouts", intervals.job_timeout_interval, timeouts),
        Loop("verifications", PRESUME_EVERY, presume),
        Loop("agent health", intervals.agent_health_check_interval, watch),
        Loop("status flips", timedelta(seconds=1), renewal.flips),
        Loop("audit sealer", SEAL_EVERY, partial(seal, ctx)),
    ]
