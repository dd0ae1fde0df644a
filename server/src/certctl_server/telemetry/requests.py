"""The span and the measure of an answer. What it is called by is the route, never the path that a client sent."""

from __future__ import annotations

import re
from functools import cache

from certctl_sdk import tracing
from certctl_sdk.tracing import Span
from litestar.types import HTTPScope

from certctl_server.errors import request_id
from certctl_server.http.calls import POLLS, UNRECORDED
from certctl_server.http.health import HEALTH
from certctl_server.telemetry import metrics

HEADER = tracing.HEADER.encode()
#: Asked by machines all day long: they belong to a trace only if they say so.
SCRAPES = re.compile(r"/api/v1/metrics(/|\Z)")
OTHER = "other"
"""What is called a route that is none of ours, and a method that HTTP does not know."""
SERVER_ERROR = 500


def serving(scope: HTTPScope) -> Span:
    """Return the context in which a request is answered: part of the client's trace, else one of its own."""
    sent = [value for name, value in scope["headers"] if name == HEADER]
    parent = tracing.read(sent[0].decode("latin-1")) if len(sent) == 1 else ""
    path = scope["path"]
    if not parent and any(machines.match(path) for machines in (POLLS, UNRECORDED, SCRAPES)):
        return tracing.carry("")
    return tracing.span("HTTP", "server", parent=parent)


def answered(span: Span, scope: HTTPScope, method: str, status: int, seconds: float) -> None:
    """Note how a request was answered; ``status`` 0: not at all."""
    route, method = _route(scope), method if method in metrics.METHODS else OTHER
    metrics.answered(route, method, status, seconds)
    if span.recorded:
        about = {"http.request.method": method, "http.route": route, "certctl.request.id": request_id(scope)}
        span.describe({**about, "http.response.status_code": status}, name=f"{method} {route}")
        if not status or status >= SERVER_ERROR:
            span.fail(str(status))


def _route(scope: HTTPScope) -> str:
    if template := scope.get("path_template"):
        return _readable(str(template))
    path = scope["path"]
    return path if path in HEALTH else OTHER


@cache
def _readable(template: str) -> str:
    """Without the types of parameters; there are as many templates as routes."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", template) or OTHER
