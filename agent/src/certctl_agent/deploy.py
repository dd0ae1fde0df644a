"""The second half of a certificate's way: join it with its key, deploy it, prove that it is served, and say so.

Steps 8 and 9 of docs/main-flow.md. On any failure everything on this machine is back as it was before the server
hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from certctl_core import config
from certctl_core.connector import Connector
from certctl_core.errors import ConnectorError, MisconfiguredError, TransientError
from certctl_core.run import Egress
from certctl_core.target import (
    Bundle,
    DeployRequest,
    Endpoints,
    Rollback,
    RollbackRequest,
    Target,
)
from certctl_core.x509 import San, fingerprint, parse_san
from certctl_sdk import tracing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certctl_agent import allowed as agent_toml
from certctl_agent.api import AgentApi, Refused, Verification
from certctl_agent.connectors import Connectors
from certctl_agent.host import AgentHost, FileStore, JobRun, now
from certctl_agent.keys import KeyRing, safe
from certctl_agent.reports import insist, told
from certctl_agent.settings import Settings
from certctl_agent.threads import in_thread
from certctl_agent.unfinished import Unfinished
from certctl_agent.verify import Proof
from certctl_agent.work import Item

log = logging.getLogger(__name__)

LONGEST = timedelta(minutes=30)
RENEW_SECONDS = 180.0
"""The server's run lease is 10 minutes unless its operator shortened it."""
LAST_WORDS = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the deployments of one agent share."""

    api: AgentApi
    keys: KeyRing
    connectors: Connectors
    egress: Egress
    settings: Settings
    unfinished: Unfinished


class JobGone(Exception):
    """The server took the job away: cancelled, superseded, or given to a later run."""


async def deploy(item: Item, site: Site) -> None:
    """Do one deployment and report what came of it.

    Cancelled, it goes back, reports that and raises on.

    Raises:
        TransientError: the server did not answer; it offers the item again.
        Refused: it does not know us.
    """
    fields = {"job": item.id, "certificate": item.certificate_id, "target": item.target_id}
    try:
        await site.api.report(item.id, "Running")
    except Refused as exc:
        if exc.status not in {404, 409}:
            raise
        log.info("deployment is not wanted any more", extra={**fields, "said": exc.said})
        return
    attempt = _Attempt(item, site)
    try:
        async with lease(item, site.api):
            await attempt.place()
    except asyncio.CancelledError:
        log.warning("deployment taken back: the agent stops", extra=fields)
        with contextlib.suppress(TransientError, Refused, TimeoutError):
            async with asyncio.timeout(LAST_WORDS.total_seconds()):
                await site.api.report(item.id, "Failed", error="the agent was stopped", error_kind="transient")
        raise
    except JobGone as exc:
        log.warning("deployment taken back: the server ended its job", extra={**fields, "said": str(exc)})
    except Exception as exc:  # whatever a connector does must not end the agent
        error, kind = told(exc, attempt.connector)
        bug = exc if not isinstance(exc, ConnectorError | Refused) else None
        tracing.fail(kind, error)
        log.warning("deployment failed", extra={**fields, "error": error, "error_kind": kind}, exc_info=bug)
        await _to_its_end(attempt.report_failure(error, kind))
    else:
        log.info("deployed", extra={**fields, "proved": bool(attempt.proof)})
        await _to_its_end(attempt.report_success())


class _Attempt:
    """One try at one item, and what is known of it so far."""

    def __init__(self, item: Item, site: Site) -> None:
        self._item = item
        self._site = site
        self.connector: type[Connector] | None = None
        self.proof: Proof | None = None

    async def place(self) -> None:
        """Make the target serve the certificate and keep its key, or raise with everything back as it was."""
        item, site = self._item, self._site
        safe(item.target_id)
        pem = await insist(lambda: site.api.certificate(item.certificate_id))
        bundle = await in_thread(lambda: site.keys.bundle(item.certificate_id, pem))
        _check_expected(bundle, item.expected_fingerprint)
        request_names = frozenset(_san(text).value for text in item.sans)
        run = JobRun(item.id, now() + LONGEST, site.settings.state_dir / "runs" / f"{safe(item.id)}.json")
        async with self._opened() as target, site.unfinished.deployment(item, target.config):
            self.proof = await self._proof(target, bundle, run)
            request = DeployRequest(bundle=bundle, names=request_names, verify=self.proof)
            about = {"certctl.target.id": item.target_id, "certctl.target.kind": target.kind}
            with tracing.span(f"deploy {target.kind}", attributes=about):
                await _within(LONGEST, self._deploy(target, request, run))
            await in_thread(lambda: site.keys.promote(item.certificate_id, bundle))
        run.forget()

    async def _deploy(self, target: Target, request: DeployRequest, run: JobRun) -> None:
        receipt = await target.deploy(request, run)
        if self.proof is None or self.proof.passed:
            return
        try:
            await self.proof()
        except BaseException as failure:
            if isinstance(target, Rollback):
                await _to_its_end(target.rollback(RollbackRequest(receipt=receipt), run), at_most=LONGEST)
            else:
                failure.add_note(f"a {target.kind} target cannot go back: the new certificate stays in place")
            raise

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Target]:
        item, site = self._item, self._site
        plugins = site.connectors.having("target", item.target_type)
        cls = self.connector = plugins.pick(plugins.targets, item.target_type)
        reading = config.read(cls.Config, item.target_config)
        if reading.warnings:
            log.info("target has options of no meaning", extra={"target": item.target_id, "keys": reading.warnings})
        if reading.config is None:
            faults = "; ".join(f"{path}: {message}" for path, message in reading.faults)
            raise MisconfiguredError(f"target {item.target_id} cannot work as it is configured: {faults}")
        # Read anew each time: whoever adds the line that a refusal asked for need not start the agent again.
        allowed = agent_toml.read(site.settings.config).allowed
        store = FileStore(site.settings.state_dir / "stores" / f"{item.target_id}.json")
        target = cls(reading.config, AgentHost(store, site.egress, allowed))
        try:
            yield target
        finally:
            await target.aclose()

    async def _proof(self, target: Target, bundle: Bundle, run: JobRun) -> Proof | None:
        """None where nobody can say where to look, or nobody wants to."""
        verify = self._site.settings.verify
        if not verify.enabled:
            return None
        # Only the connector knows: the host of its options may be where it is managed, not where it serves.
        endpoints = await target.endpoints(run) if isinstance(target, Endpoints) else ()
        return Proof(bundle, endpoints, self._site.egress, verify) if endpoints else None

    async def report_success(self) -> None:
        """Say what is served, then that the job is done."""
        await self._tell_verification("")
        await self._tell("Completed")

    async def report_failure(self, error: str, kind: str) -> None:
        """Say what was served instead, if that was it, then that the job failed."""
        if self.proof and self.proof.looked and not self.proof.passed:
            await self._tell_verification(error)
        await self._tell("Failed", error, kind)

    async def _tell(self, status: str, error: str = "", kind: str = "") -> None:
        item, api = self._item, self._site.api
        await self._heard(lambda: api.report(item.id, status, error=error, error_kind=kind))

    async def _tell_verification(self, error: str) -> None:
        if not (proof := self.proof):
            return
        found = Verification(
            target_id=self._item.target_id,
            expected_fingerprint=proof.expected_fingerprint,
            actual_fingerprint=proof.actual_fingerprint,
            verified=proof.passed,
            error=error,
        )
        await self._heard(lambda: self._site.api.verified(self._item.id, found))

    async def _heard(self, call: Callable[[], Awaitable[None]]) -> None:
        """The server offers a job again whose end it did not hear of, so nothing is lost but time."""
        try:
            await insist(call)
        except (TransientError, Refused) as exc:
            log.warning("report was not taken", extra={"job": self._item.id, "said": str(exc)})


@contextlib.asynccontextmanager
async def lease(item: Item, api: AgentApi, *, every: float = RENEW_SECONDS) -> AsyncIterator[None]:
    """Say Running again and again meanwhile; end what runs inside when the server takes the job away.

    Raises:
        JobGone: it did.
    """
    inside = asyncio.current_task()
    gone = ""

    async def renew() -> None:
        nonlocal gone
        while True:
            await asyncio.sleep(every)
            try:
                await api.report(item.id, "Running")
            except TransientError as exc:
                log.info("lease not renewed", extra={"job": item.id, "said": str(exc)})
            except Refused as exc:
                if exc.status in {404, 409} and inside:
                    gone = exc.said
                    inside.cancel()
                    return

    renewal = asyncio.create_task(renew())
    try:
        yield
    except asyncio.CancelledError as exc:
        if gone and inside and inside.uncancel() == 0:
            raise JobGone(gone) from exc
        raise
    finally:
        renewal.cancel()


def _check_expected(bundle: Bundle, expected: str) -> None:
    """A newer certificate has a job of its own; doing it in the name of this one would prove the wrong thing."""
    der = x509.load_pem_x509_certificate(bundle.cert_pem.encode()).public_bytes(Encoding.DER)
    if expected and fingerprint(der) != expected.lower().removeprefix("sha256:").replace(":", ""):
        raise TransientError("the server sent another certificate than the one this job is for")


def _san(text: str) -> San:
    try:
        return parse_san(text)
    except ValueError as exc:
        raise MisconfiguredError(f"the certificate is ordered for {text!a}, which is no name: {exc}") from exc


async def _within(longest: timedelta, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(longest.total_seconds()) as limit:
            await work
    except TimeoutError as exc:
        if limit.expired():
            raise TransientError(f"the deployment was taken back: it took over {longest}") from exc
        raise


async def _to_its_end(work: Awaitable[None], *, at_most: timedelta = LAST_WORDS) -> None:
    """Await ``work``; cancelled meanwhile, give it ``at_most`` longer and then raise on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=at_most.total_seconds())
        raise
