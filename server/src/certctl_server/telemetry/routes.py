"""Metrics over HTTP: a few for people, all of them for Prometheus."""

import asyncio
from typing import TypedDict

from litestar import Response, get
from litestar.types import ControllerRouterHandler
from prometheus_client import generate_latest

from certctl_server.auth.roles import READ
from certctl_server.body import Time
from certctl_server.context import Context, Ctx
from certctl_server.telemetry.figures import Counters, Families, Figures, Gauges, figures
from certctl_server.telemetry.metrics import REGISTRY

BASE = "/api/v1/metrics"
TEXT = "text/plain; version=0.0.4"  # Litestar adds the charset


class Uptime(TypedDict):
    """Since when the server runs."""

    uptime_seconds: float
    server_started: Time
    measured_at: Time


class Metrics(TypedDict):
    """A few figures; the rest is for Prometheus."""

    gauge: Gauges
    counter: Counters
    uptime: Uptime


@get(BASE, opt={"roles": READ})
async def metrics(ctx: Ctx) -> Metrics:
    """Return how many there are of what."""
    found = await figures()
    uptime: Uptime = {
        "uptime_seconds": _uptime(ctx, found),
        "server_started": ctx.started_at,
        "measured_at": found.measured_at,
    }
    return {"gauge": found.gauges(), "counter": found.counters(), "uptime": uptime}


@get(BASE + "/prometheus", opt={"roles": READ, "media": TEXT})
async def prometheus(ctx: Ctx) -> Response[bytes]:
    """Return the metrics of this process, and those of the whole installation."""
    found = await figures()
    families = Families(found, _uptime(ctx, found))
    # Thousands of lines take long enough to be felt by whoever is answered meanwhile.
    text = await asyncio.get_running_loop().run_in_executor(None, _written, families)
    return Response(text, media_type=TEXT)


def _written(families: Families) -> bytes:
    return generate_latest(families) + generate_latest(REGISTRY)


def _uptime(ctx: Context, found: Figures) -> float:
    return round((found.measured_at - ctx.started_at).total_seconds(), 3)


routes: list[ControllerRouterHandler] = [metrics, prometheus]
