"""Spans around jobs and around what connectors do for them, which is timed as well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from certctl_core.connector import Connector
from certctl_core.job import CAUSES, Cause
from certctl_core.run import LeaseLost
from certctl_sdk import tracing
from certctl_sdk.tracing import Span

from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.jobs.state import Claimed
from certctl_server.telemetry import metrics

T = TypeVar("T")
OUTCOMES: dict[type[BaseException], str] = {
    **{kind: cause.value for kind, cause in CAUSES.items()},
    LeaseLost: "lost",
    TimeoutError: "timeout",
    asyncio.CancelledError: "cancelled",
}
"""What a call of a connector comes to, by what it raises; anything else is its bug."""


def running(job: Claimed) -> Span:
    """Return the context in which a worker runs ``job``: part of the trace of whoever wanted it."""
    about = {
        "certctl.job.id": job.id,
        "certctl.job.type": job.type.value,
        "certctl.job.attempt": job.attempts,
        "certctl.certificate.id": job.certificate_id,
        "certctl.issuer.id": job.issuer_id,
    }
    return tracing.span(f"run {job.type}", "consumer", parent=job.traceparent, attributes=about)


async def call(
    loop: ConnectorLoop,
    named: tuple[str, str],
    connector: Connector,
    verb: str,
    work: Callable[[], Coroutine[Any, Any, T]],
) -> T:
    """Return what ``work`` comes to on ``loop``, traced and timed; errors are those of ``ConnectorLoop.call``.

    ``named`` says what ``connector`` is, issuer or notifier, and the id of its row; ``verb`` which of its methods.
    """
    what, id = named
    about = {f"certctl.{what}.kind": connector.kind, f"certctl.{what}.id": id}
    began, outcome = time.monotonic(), "ok"
    with tracing.span(f"{verb} {connector.kind}", "client", attributes=about):
        try:
            return await loop.call(work)
        except BaseException as exc:
            outcome = next((word for kind, word in OUTCOMES.items() if isinstance(exc, kind)), Cause.BUG.value)
            raise
        finally:
            labels = (what, connector.kind, verb, outcome)
            metrics.CONNECTOR_SECONDS.labels(*labels).observe(time.monotonic() - began)
