"""The daemon: beat, poll, do what is offered, report; and stop without leaving anything half done."""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from certctl_core.errors import RejectedError
from certctl_sdk import tracing
from certctl_sdk.egress import Allowance, Guard

from certctl_agent import allowed as agent_toml
from certctl_agent import machine, private, tls, work
from certctl_agent.api import AgentApi, Refused, Retired, Server
from certctl_agent.connectors import Connectors
from certctl_agent.deploy import Site, deploy
from certctl_agent.discover import KIND, discover
from certctl_agent.host import now
from certctl_agent.jobs import Jobs
from certctl_agent.keys import KeyRing
from certctl_agent.order import order
from certctl_agent.pace import Pace
from certctl_agent.settings import Settings
from certctl_agent.threads import in_thread
from certctl_agent.unfinished import Unfinished

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import HeartbeatBody

log = logging.getLogger(__name__)

CAPABILITIES = ("verify", "rollback", "boot_id")
BEAT_SECONDS = 60.0
WAIT_SECONDS = 25
POLL_SECONDS = 30.0
LEAST_SECONDS = 0.5
LEEWAY_SECONDS = 5.0
DISCOVERY_SECONDS = 6 * 3600.0
TOLERATED_OFFSET = timedelta(minutes=5)
FINISH = timedelta(seconds=30)


class Agent:
    """What one enrolled agent does, each duty in a task of its own."""

    def __init__(self, site: Site, discovery_directories: Iterable[Path]) -> None:
        self._site = site
        self._api = site.api
        self._directories = list(dict.fromkeys(discovery_directories))
        self._boot_id = uuid.uuid4().hex
        self._jobs = Jobs(self._do)
        self._wait = WAIT_SECONDS
        self._greeted = asyncio.Event()
        self._skewed = False

    async def run(self, stopping: asyncio.Event, *, patience: timedelta = FINISH) -> None:
        """Do all duties until ``stopping`` or until the server retires this agent; then finish what is at hand.

        A deployment that lasts longer than ``patience`` then is taken back.
        """
        await self._site.unfinished.recover(agent_toml.read(self._site.settings.config).allowed)
        every = (self._beat_on(), self._poll(), self._discover(), stopping.wait())
        duties = [asyncio.create_task(each) for each in every]
        try:
            done, _ = await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
            for duty in done:
                duty.result()
        except Retired as exc:
            log.warning("this agent is retired and stops for good", extra={"said": exc.said})
        finally:
            for duty in duties:
                duty.cancel()
            await self._jobs.finish(patience)
            self._api.close()

    async def _beat_on(self) -> None:
        while True:
            await self._insistently("heartbeat", self._beat)
            self._greeted.set()
            await asyncio.sleep(BEAT_SECONDS)

    async def _beat(self) -> None:
        facts = await in_thread(lambda: machine.facts(self._site.settings.server_url))
        more = {"capabilities": CAPABILITIES, "local_time": now().isoformat(), "boot_id": self._boot_id}
        answer = await self._api.heartbeat(cast("HeartbeatBody", {**facts, **more}))
        offset = machine.clock_offset(answer.get("server_time"), now())
        if (skewed := abs(offset) > TOLERATED_OFFSET) and not self._skewed:
            log.warning("this machine's clock is off: it gets no work that needs a CSR", extra={"offset": str(offset)})
        self._skewed = skewed

    async def _poll(self) -> None:
        # The first beat ends whatever leases an earlier run left, so it comes before any work.
        await self._greeted.wait()
        while True:
            await self._jobs.room()
            began = asyncio.get_running_loop().time()
            fresh = 0

            async def once() -> None:
                nonlocal fresh
                fresh = self._jobs.take(self._readable(await self._offered()))

            await self._insistently("work", once)
            asked = asyncio.get_running_loop().time() - began
            # A server that does not know how to wait, or ends, answers at once: it must not be asked in circles.
            waited = self._wait and asked > self._wait - LEEWAY_SECONDS
            await asyncio.sleep(max(0.0, (LEAST_SECONDS if fresh or waited else POLL_SECONDS) - asked))

    async def _offered(self) -> list[dict[str, object]]:
        try:
            return await self._api.work(self._wait)
        except Refused as exc:
            if exc.status != 400 or not self._wait:  # noqa: PLR2004
                raise
            log.info("the server cannot wait: asking every half minute", extra={"said": exc.said})
            self._wait = 0
            return await self._api.work(0)

    def _readable(self, offered: Iterable[dict[str, object]]) -> list[work.Item]:
        items = []
        for raw in offered:
            try:
                items.append(work.read(raw))
            except RejectedError as exc:
                log.error("work left alone", extra={"error": str(exc)})
        return items

    async def _do(self, item: work.Item) -> None:
        with tracing.span(f"do {item.type}", "consumer", parent=item.traceparent, attributes=_about(item)):
            await self._work(item)

    async def _work(self, item: work.Item) -> None:
        if item.wants_csr:
            await order(item, self._api, self._site.keys)
        elif item.type == "Deployment":
            await deploy(item, self._site)
        else:
            log.error("work left alone", extra={"job": item.id, "type": item.type, "status": item.status})

    async def _discover(self) -> None:
        site = self._site
        while self._directories:
            await self._insistently(
                "discovery",
                lambda: discover(
                    self._directories,
                    api=self._api,
                    plugins=site.connectors.having("discovery", KIND),
                    egress=site.egress,
                    state_dir=site.settings.state_dir,
                ),
            )
            await asyncio.sleep(DISCOVERY_SECONDS)
        await asyncio.Event().wait()

    async def _insistently(self, duty: str, call: Callable[[], Awaitable[None]]) -> None:
        """Make ``call`` until it succeeds; only the end of this agent's service gets through."""
        pace = Pace(duty)
        while True:
            try:
                await call()
            except Retired:
                raise
            except Exception as exc:  # noqa: BLE001  # told by the pace
                # A scanner's bug or a full disk ends nothing else: keys and deployments go on.
                await asyncio.sleep(pace.failed(exc))
            else:
                return pace.worked()


def _about(item: work.Item) -> dict[str, str | int]:
    found = {
        "certctl.job.id": item.id,
        "certctl.job.type": item.type,
        "certctl.certificate.id": item.certificate_id,
        "certctl.target.id": item.target_id,
        "certctl.target.kind": item.target_type,
    }
    return {name: text for name, text in found.items() if text}


def assemble(settings: Settings, egress_allow: tuple[Allowance, ...] = ()) -> Agent:
    """Return the agent that ``settings`` describe.

    Raises:
        MisconfiguredError: a directory, ``agent.toml`` or the CA file cannot be used.
    """
    for directory in (settings.state_dir, settings.state_dir / "runs", settings.state_dir / "stores"):
        private.make_directory(directory)
    toml = agent_toml.read(settings.config)
    context = tls.trusting(settings.ca_file) if settings.server_url.startswith("https:") else None
    site = Site(
        api=AgentApi(Server(settings.server_url, key=settings.api_key, tls=context), settings.agent_id),
        keys=KeyRing(settings.key_dir),
        connectors=Connectors(),
        egress=Guard(private_allowed=True, allow=egress_allow),
        settings=settings,
        unfinished=Unfinished(settings.state_dir / "deployments.json"),
    )
    return Agent(site, [*settings.discovery_directories, *toml.discovery_directories])


async def serve(agent: Agent) -> None:
    """Run ``agent`` until it is told to stop."""
    stopping = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        log.info("told to stop", extra={"signal": number.name})
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    log.info("agent started")
    await agent.run(stopping)
    log.info("agent stopped")
