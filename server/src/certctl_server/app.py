"""The whole assembly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ASGIApp, ControllerRouterHandler

from certctl_server.agents.group_routes import routes as agent_groups
from certctl_server.agents.routes import routes as agents
from certctl_server.audit.routes import routes as audit
from certctl_server.auth.guard import Guard
from certctl_server.auth.routes import routes as auth
from certctl_server.certificates.bulk_routes import routes as bulk
from certctl_server.certificates.routes import routes as certificates
from certctl_server.connectors.routes import routes as connectors
from certctl_server.context import Context
from certctl_server.digest.routes import routes as digest
from certctl_server.discovery.routes import routes as discovery
from certctl_server.errors import HANDLERS
from certctl_server.http.answer import Answer
from certctl_server.http.calls import CallLog
from certctl_server.http.front import Apps, Front
from certctl_server.issuers.routes import routes as issuers
from certctl_server.jobs.routes import routes as jobs
from certctl_server.network_scans.routes import routes as network_scans
from certctl_server.notices.routes import routes as notices
from certctl_server.openapi.routes import routes as openapi
from certctl_server.people.routes import routes as people
from certctl_server.policies.routes import routes as policies
from certctl_server.rules.routes import routes as rules
from certctl_server.stats.routes import routes as stats
from certctl_server.targets.routes import routes as targets
from certctl_server.telemetry.routes import routes as telemetry
from certctl_server.version import routes as version

ROUTES: list[ControllerRouterHandler] = [
    *agents,
    *agent_groups,
    *audit,
    *auth,
    *certificates,
    *bulk,
    *jobs,
    *people,
    *policies,
    *rules,
    *connectors,
    *issuers,
    *notices,
    *targets,
    *discovery,
    *stats,
    *network_scans,
    *digest,
    *telemetry,
    *version,
    *openapi,
]
"""Every route of the API. A feature's ``routes.py`` has its own list, named here."""


class Lifespan(Protocol):
    """What runs around the application: entered when it starts, left when it stops."""

    def __call__(self, app: Litestar, /) -> AbstractAsyncContextManager[None]:
        """Return the context to run in."""


def make_app(
    ctx: Context,
    *,
    lifespan: Sequence[Lifespan] = (),
    mounts: Mapping[str, ASGIApp] | None = None,
    pages: ASGIApp | None = None,
) -> Front:
    """Return the ASGI application; the database must be open by the time it serves.

    Args:
        ctx: What every handler is given.
        lifespan: Entered in order when the server starts.
        mounts: By path prefix, applications that answer before routing, keys and rate limit: CRL and OCSP.
        pages: Answers whatever lies outside the API: the dashboard.
    """
    calls, guard = CallLog(timedelta(seconds=ctx.settings.audit_flush_timeout_seconds)), Guard(ctx)

    async def give() -> Context:
        return ctx

    api = Litestar(
        ROUTES,
        dependencies={"ctx": Provide(give)},
        exception_handlers=HANDLERS,
        guards=[guard.admit],
        lifespan=[calls.running, guard.running, *lifespan],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # the front bounds bodies
        response_class=Answer[Any],
        state=State({"ctx": ctx}),
    )
    return Front(ctx, Apps(api, mounts or {}, pages), calls, guard.pace)
