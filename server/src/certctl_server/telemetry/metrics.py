"""What this process counts and times, for Prometheus; docs/observability.md lists it.

Label values are words of ours: kinds, states, routes. Whatever clients, agents or CAs can make up stays out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from math import inf
from typing import Any

from certctl_core.errors import MisconfiguredError
from certctl_core.job import JobState
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

REGISTRY = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

REQUEST_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.5, 10, 30, inf)
RUN_BUCKETS = (0.05, 0.2, 1, 5, 30, 120, 600, inf)
WAIT_BUCKETS = (1, 5, 30, 120, 600, 3600, 21600, 86400, inf)
LAG_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, inf)
ENDS = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOOPBACK = "127.0.0.1"

REQUEST_SECONDS = Histogram(
    "certctl_http_request_seconds",
    "How long answers took, by route, method and status; a waiting poll counts as long as it waits",
    ("route", "method", "status"),
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)
AGENT_POLLS = Counter(
    "certctl_agent_polls",
    "Answers to agents that asked for work, by whether there was any",
    ("result",),
    registry=REGISTRY,
)
JOB_RUN_SECONDS = Histogram(
    "certctl_job_run_seconds",
    "From the start of a job's last run to its end, by type and the state it ended in",
    ("type", "outcome"),
    buckets=RUN_BUCKETS,
    registry=REGISTRY,
)
JOB_LATENCY_SECONDS = Histogram(
    "certctl_job_latency_seconds",
    "From the moment since which a job was wanted to its end, by type and the state it ended in",
    ("type", "outcome"),
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
CONNECTOR_SECONDS = Histogram(
    "certctl_connector_call_seconds",
    "How long calls of connectors took, by what they are, their kind, the call and what came of it",
    ("connector", "kind", "call", "outcome"),
    buckets=RUN_BUCKETS,
    registry=REGISTRY,
)
LEASE_EXPIRIES = Counter(
    "certctl_lease_expiries", "Jobs that were taken from an owner who no longer answered", ("owner",), registry=REGISTRY
)
LOOP_LAG = Gauge("certctl_loop_lag_seconds", "For how long a loop's next turn is overdue", ("loop",), registry=REGISTRY)
LOOP_SECONDS = Histogram(
    "certctl_loop_turn_seconds",
    "How long turns of loops took",
    ("loop", "outcome"),
    buckets=LAG_BUCKETS,
    registry=REGISTRY,
)
BLOCKED = Counter("certctl_connector_loop_blocked", "How often a connector blocked all others", registry=REGISTRY)
BLOCKED_SECONDS = Counter(
    "certctl_connector_loop_blocked_seconds", "For how long connectors blocked all others", registry=REGISTRY
)
EVENT_LOOP_LAG = Histogram(
    "certctl_event_loop_lag_seconds",
    "How much later than asked for the event loop called back, asked once a second",
    buckets=LAG_BUCKETS,
    registry=REGISTRY,
)

_requests: dict[tuple[str, str, int], Histogram] = {}
_polls = {True: AGENT_POLLS.labels("work"), False: AGENT_POLLS.labels("idle")}
_expiries = {True: LEASE_EXPIRIES.labels("agent"), False: LEASE_EXPIRIES.labels("worker")}


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """Note an answer: ``route`` is one of ours, ``method`` one of METHODS or ``other``, ``status`` 0 if none went."""
    # labels() costs twice what observing does; there are as many children as routes have outcomes.
    key = route, method, status
    child = _requests.get(key)
    if child is None:
        child = _requests[key] = REQUEST_SECONDS.labels(*key)
    child.observe(seconds)


def polled(*, found: bool) -> None:
    """Note an answer to an agent that asked for work."""
    _polls[found].inc()


def leases_expired(agents: Iterable[bool]) -> None:
    """Note jobs that were taken from a silent owner; True stands for an agent, False for a worker."""
    for agent in agents:
        _expiries[agent].inc()


def jobs_ended(rows: Iterable[dict[str, Any]], state: JobState, now: datetime, *, ran: bool) -> None:
    """Note jobs that have just come to an end; ``ran``: until now."""
    for row in rows:
        labels = row["type"], state.value
        # Two clocks took these times.
        JOB_LATENCY_SECONDS.labels(*labels).observe(max(0.0, (now - row["scheduled_at"]).total_seconds()))
        if ran and row["started_at"] is not None:
            JOB_RUN_SECONDS.labels(*labels).observe(max(0.0, (now - row["started_at"]).total_seconds()))


class LoopWatch:
    """How one background loop keeps its time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due = inf
        LOOP_LAG.labels(name).set_function(lambda: max(0.0, time.monotonic() - self._due))

    def expect(self, wait: timedelta | None) -> None:
        """Say when the next turn should begin; None: none is expected here."""
        self._due = inf if wait is None else time.monotonic() + wait.total_seconds()

    def turned(self, spent: timedelta, *, failed: bool) -> None:
        """Note a turn."""
        outcome = "failed" if failed else "done"
        LOOP_SECONDS.labels(self._name, outcome).observe(max(0.0, spent.total_seconds()))


class BlockWatch:
    """For how long the connectors' loop has stood still."""

    def __init__(self) -> None:
        self._counted = 0.0

    def late(self, seconds: float) -> None:
        """Say that it stands still, and since when."""
        if not self._counted:
            BLOCKED.inc()
        BLOCKED_SECONDS.inc(max(0.0, seconds - self._counted))
        self._counted = seconds

    def turns(self) -> None:
        """Say that it turns."""
        self._counted = 0.0


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Answer ``GET /metrics`` from a thread, so also while the event loop stands still; nothing if ``port`` is 0.

    Raises:
        MisconfiguredError: the port is taken.
    """
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, LOOPBACK, REGISTRY)
    except OSError as exc:
        said = exc.strerror or exc
        raise MisconfiguredError(f"cannot listen on {LOOPBACK}:{port}: {said}; CERTCTL_METRICS_PORT sets it") from exc
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
