"""What only the database knows: how many certificates, agents and jobs there are, whichever server tells it.

Counted on indexes, at most once a second however many ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary

from certctl_core.certificate import Status
from certctl_core.job import OPEN, JobState
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from certctl_server import db
from certctl_server.agents.health import AgentStatus
from certctl_server.agents.tables import SCANNER
from certctl_server.db.session import engine
from certctl_server.jobs.lanes import OLDEST

FRESH_SECONDS = 1.0
LANES = 100
"""So many of the fullest lanes have a sample of their own; operators may make thousands."""
REST = "other"
CERTIFICATES = db.Sql("SELECT status, count(*) AS n FROM certificate GROUP BY status")
AGENTS = db.Sql(
    f"SELECT status, count(*) AS n FROM agent WHERE retired_at IS NULL AND id <> '{SCANNER}' GROUP BY status"  # noqa: S608
)
JOBS = db.Sql("SELECT status, count(*) AS n FROM job GROUP BY status")
WAITING = db.Sql("SELECT lane, count(*) AS n FROM job WHERE due_at IS NOT NULL GROUP BY lane")
RUNNING = db.Sql("SELECT lane, count(*) AS n FROM job WHERE status = 'Running' GROUP BY lane")
BEATS = db.Sql("SELECT name, finished_at FROM loop_beat")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted, and when."""

    certificates: Mapping[str, int]
    """By status; every status is there."""
    agents: Mapping[str, int]
    """By status, those that retired left out."""
    jobs: Mapping[str, int]
    """By status."""
    lanes: Mapping[tuple[str, str], int]
    """By lane and status: Pending, for what a worker may take now or later, and Running."""
    oldest_due_seconds: float
    """For how long the job that has been due longest has waited for a worker."""
    turned: Mapping[str, datetime]
    """By loop, when it last came to its end."""
    measured_at: datetime

    def gauges(self) -> dict[str, int]:
        """Return what may grow and shrink, by the names of the API (spec/api.md 8.14)."""
        certificates = self.certificates
        return {
            "certificate_total": sum(certificates.values()),
            "certificate_active": certificates[Status.ACTIVE],
            "certificate_expiring_soon": certificates[Status.EXPIRING],
            "certificate_expired": certificates[Status.EXPIRED],
            "certificate_revoked": certificates[Status.REVOKED],
            "agent_total": sum(self.agents.values()),
            "agent_online": self.agents[AgentStatus.ONLINE],
            "job_pending": sum(self.jobs[state] for state in OPEN),
        }

    def counters(self) -> dict[str, int]:
        """Return what the API calls counters."""
        jobs = self.jobs
        return {"job_completed_total": jobs[JobState.COMPLETED], "job_failed_total": jobs[JobState.FAILED]}


HELP = {
    "certificate_total": "All certificates; the sum of certctl_certificates under its older name",
    "certificate_active": "Certificates that are Active",
    "certificate_expiring_soon": "Certificates that are Expiring",
    "certificate_expired": "Certificates that are Expired",
    "certificate_revoked": "Certificates that are Revoked",
    "agent_total": "All agents but retired ones",
    "agent_online": "Agents that are Online",
    "job_pending": "Jobs that wait for anybody or run",
    "job_completed_total": "Jobs that are Completed",
    "job_failed_total": "Jobs that are Failed",
}


class _Board:
    """The figures of one database, counted by one task at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._figures: Figures | None = None
        self._until = 0.0

    async def read(self) -> Figures:
        async with self._lock:
            if self._figures is None or time.monotonic() >= self._until:
                self._figures = await _count()
                self._until = time.monotonic() + FRESH_SECONDS
            return self._figures


_boards: WeakKeyDictionary[object, _Board] = WeakKeyDictionary()


async def figures() -> Figures:
    """Return the figures of the open database, at most a second old."""
    return await _boards.setdefault(engine(), _Board()).read()


async def _count() -> Figures:
    oldest = await db.moment(OLDEST)
    lanes = {
        (row["lane"], state.value): int(row["n"])
        for state, sql in ((JobState.PENDING, WAITING), (JobState.RUNNING, RUNNING))
        for row in await db.fetch(sql)
        if row["lane"]
    }
    beats = {row["name"]: row["finished_at"] for row in await db.fetch(BEATS) if row["finished_at"]}
    now = db.now()
    return Figures(
        certificates=await _by_status(CERTIFICATES, Status),
        agents=await _by_status(AGENTS, AgentStatus),
        jobs=await _by_status(JOBS, JobState),
        lanes=lanes,
        oldest_due_seconds=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
        turned=beats,
        measured_at=now,
    )


async def _by_status(sql: db.Sql, states: type[Status | AgentStatus | JobState]) -> dict[str, int]:
    return dict.fromkeys(states, 0) | {row["status"]: int(row["n"]) for row in await db.fetch(sql)}


class Families:
    """The figures as Prometheus reads them, the names of the contract among them."""

    def __init__(self, found: Figures, uptime_seconds: float) -> None:
        self._found = found
        self._uptime = uptime_seconds

    def collect(self) -> Iterator[Metric]:
        """Return each metric with its samples."""
        yield from self._of_the_contract()
        found = self._found
        states = {
            "certificates": ("Certificates by status", found.certificates),
            "agents": ("Agents by status, those that retired left out", found.agents),
            "jobs": ("Jobs by status", found.jobs),
        }
        for name, (help_, counted) in states.items():
            family = GaugeMetricFamily(f"certctl_{name}", help_, labels=["status"])
            for status, n in counted.items():
                family.add_metric([status], n)
            yield family
        yield self._queues()
        oldest = "For how long the job that has been due longest has waited for a worker"
        yield GaugeMetricFamily("certctl_oldest_due_job_age_seconds", oldest, found.oldest_due_seconds)
        turned = "When each background loop last came to its end, on whichever server leads"
        beats = GaugeMetricFamily("certctl_loop_last_finish_timestamp_seconds", turned, labels=["loop"])
        for loop, finished_at in found.turned.items():
            beats.add_metric([loop], finished_at.timestamp())
        yield beats

    def _of_the_contract(self) -> Iterator[Metric]:
        for name, value in self._found.gauges().items():
            yield GaugeMetricFamily(f"certctl_{name}", HELP[name], value)
        for name, value in self._found.counters().items():
            yield CounterMetricFamily(f"certctl_{name}", HELP[name], value)
        uptime = "For how long the server that answers has run"
        yield GaugeMetricFamily("certctl_uptime_seconds", uptime, self._uptime)

    def _queues(self) -> Metric:
        help_ = f"Jobs in the lanes of workers, by status; lanes beyond the {LANES} fullest are one, called {REST}"
        family = GaugeMetricFamily("certctl_queue_depth", help_, labels=["lane", "status"])
        fullest = sorted(self._found.lanes.items(), key=lambda each: each[1], reverse=True)
        for (lane, status), n in fullest[:LANES]:
            family.add_metric([lane, status], n)
        rest: dict[str, int] = {}
        for (_, status), n in fullest[LANES:]:
            rest[status] = rest.get(status, 0) + n
        for status, n in rest.items():
            family.add_metric([REST, status], n)
        return family
