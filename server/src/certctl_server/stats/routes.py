"""Figures for dashboards: how many there are now, and how many on each day. All are exact over every row."""

from datetime import datetime
from typing import Annotated, Literal, TypedDict

import msgspec
from certctl_core.certificate import Status
from certctl_core.job import JobState
from litestar import get
from litestar.types import ControllerRouterHandler, Scope

from certctl_server import db
from certctl_server.agents.health import AgentStatus
from certctl_server.auth.principal import Req
from certctl_server.auth.roles import READ
from certctl_server.list_query import number_to, query, unfit
from certctl_server.stats import series
from certctl_server.stats.series import Ended, Expiring, Issued
from certctl_server.tally import statuses

BASE = "/api/v1/stats"
DAYS, MOST_DAYS = 30, 365
BUCKETS = DAY, WEEK = "day", "week"
ASKED = {
    "days": Annotated[int, msgspec.Meta(ge=1, le=MOST_DAYS)],
    "bucket": Literal[BUCKETS],
}
SERIES = {"roles": READ, "query": ASKED}


class Figures(TypedDict):
    """How many there are; ``completed_at`` is when it was seen."""

    total_certificates: int
    expiring_certificates: int
    expired_certificates: int
    revoked_certificates: int
    active_agents: int
    offline_agents: int
    total_agents: int
    pending_jobs: int
    failed_jobs: int
    complete_jobs: int
    completed_at: datetime


class Summary(Figures):
    """The figures, and the same again where the original's command line looks for them."""

    data: Figures


class InStatus(TypedDict):
    """How many certificates there are in one status."""

    status: Status
    count: int


@get(BASE + "/summary", opt={"roles": READ})
async def summary() -> Summary:
    """Return how many certificates, agents and jobs there are."""
    found = await statuses()
    certificates, agents, total_agents = found.certificates, found.agents, sum(found.agents.values())
    offline = agents[AgentStatus.OFFLINE]
    figures: Figures = {
        "total_certificates": sum(certificates.values()),
        "expiring_certificates": certificates[Status.EXPIRING],
        "expired_certificates": certificates[Status.EXPIRED],
        "revoked_certificates": certificates[Status.REVOKED],
        "active_agents": total_agents - offline,
        "offline_agents": offline,
        "total_agents": total_agents,
        "pending_jobs": found.pending_jobs,
        "failed_jobs": found.jobs[JobState.FAILED],
        "complete_jobs": found.jobs[JobState.COMPLETED],
        "completed_at": db.now(),
    }
    return {**figures, "data": figures}


@get(BASE + "/certificates-by-status", opt={"roles": READ})
async def by_status() -> list[InStatus]:
    """Return how many certificates there are in each status."""
    certificates = (await statuses()).certificates
    return [{"status": status, "count": certificates[status]} for status in Status]


@get(BASE + "/expiration-timeline", opt=SERIES)
async def expiration_timeline(request: Req) -> list[Expiring]:
    """Return how many certificates end on each day from today on."""
    days, weekly = _asked(request.scope)
    return await series.expirations(series.coming(days, weekly=weekly))


@get(BASE + "/job-trends", opt=SERIES)
async def job_trends(request: Req) -> list[Ended]:
    """Return how jobs ended on each day up to today."""
    days, weekly = _asked(request.scope)
    return await series.ended(series.past(days, weekly=weekly))


@get(BASE + "/issuance-rate", opt=SERIES)
async def issuance_rate(request: Req) -> list[Issued]:
    """Return how many certificates were issued on each day up to today."""
    days, weekly = _asked(request.scope)
    return await series.issued(series.past(days, weekly=weekly))


def _asked(scope: Scope) -> tuple[int, bool]:
    """Return how many days are asked for, and whether by week; raise Refused, naming what is not possible."""
    given, faults, days = query(scope), dict[str, str](), DAYS
    try:
        days = number_to(MOST_DAYS, given.get("days") or str(DAYS))
    except ValueError as exc:
        faults["days"] = str(exc)
    bucket = (given.get("bucket") or BUCKETS[0]).lower()
    if bucket not in BUCKETS:
        faults["bucket"] = f"is neither {' nor '.join(BUCKETS)}"
    if faults:
        raise unfit(faults)
    return days, bucket == WEEK


routes: list[ControllerRouterHandler] = [summary, by_status, expiration_timeline, job_trends, issuance_rate]
