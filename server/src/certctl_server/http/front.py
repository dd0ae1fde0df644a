"""The first to see a request and the last to see its answer.

It names the request, bounds its body, answers what needs no handler (OPTIONS, liveness), turns HEAD into GET,
adds the headers that every answer carries, and logs the call.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send

from certctl_server import logs
from certctl_server.audit.record import Event
from certctl_server.auth.principal import NOBODY, Principal
from certctl_server.body import ignored_header
from certctl_server.context import Context
from certctl_server.errors import Refused, envelope, request_id
from certctl_server.http.calls import POLLS, UNRECORDED, CallLog
from certctl_server.http.client_address import client_address
from certctl_server.http.cross_origin import CrossOrigin
from certctl_server.http.health import HEALTH
from certctl_server.telemetry.requests import answered, serving

log = logging.getLogger("certctl_server.access")
API = ("/api", "/health", "/ready", "/.well-known/est", "/.well-known/pki")
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
STRICT = "max-age=31536000"
CONTENT_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
PATH_CHARACTERS = 512
Pace: TypeAlias = Callable[[Scope], Awaitable[None]]


def is_api(path: str) -> bool:
    """Whether ``path`` is answered in JSON, and not by a page."""
    return any(path == base or path.startswith(f"{base}/") for base in API)


def _storable(path: str) -> str:
    """PostgreSQL keeps neither U+0000 nor half characters; a path with them is refused, not lost from the trail."""
    return path[:PATH_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _is_recorded(method: str, path: str) -> bool:
    return method != "OPTIONS" and is_api(path) and not UNRECORDED.match(path)


@dataclass(frozen=True, slots=True)
class Apps:
    """Who answers what."""

    api: ASGIApp
    mounts: Mapping[str, ASGIApp]
    """By path prefix, applications that answer without routing, keys or rate limit of ours."""
    pages: ASGIApp | None
    """Answers what is no API path."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every exchange."""

    max_body_size: int
    origins: CrossOrigin
    pace: Pace
    """Raises Refused for an address that calls too fast."""


class Front:
    """An ASGI application around the API's."""

    def __init__(self, ctx: Context, apps: Apps, calls: CallLog, pace: Pace) -> None:
        self._ctx = ctx
        self._apps = apps
        self._terms = Terms(ctx.settings.max_body_size, CrossOrigin(ctx.settings.cors_origins), pace)
        self.calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == ScopeType.HTTP:
            await self._answer(scope, receive, send)
        else:
            await self._apps.api(scope, receive, send)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._terms)
        with logs.during(request_id(scope)), serving(scope) as span:
            try:
                await self._route(scope, exchange)
            except Refused as refused:
                await exchange.refuse(refused)
            finally:
                seconds = time.perf_counter() - exchange.started
                answered(span, scope, exchange.method, exchange.status, seconds)
                self._note(scope, exchange, seconds)

    async def _route(self, scope: HTTPScope, exchange: Exchange) -> None:
        path = scope["path"]
        exchange.check()
        if scope["method"] == "OPTIONS":
            await exchange.answer(HTTPStatus.NO_CONTENT, b"", self._terms.origins.preflight(scope))
            return
        if "\0" in path:
            raise Refused(HTTPStatus.BAD_REQUEST, "The path holds the character U+0000")
        if scope["method"] == "HEAD":
            scope["state"]["head"] = True
            scope["method"] = "GET"
        if health := HEALTH.get(path):
            if scope["method"] != "GET":
                headers = {"Allow": "GET, HEAD, OPTIONS"}
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{scope['method']} is not possible here", headers=headers)
            await exchange.answer(HTTPStatus.OK, await health(self._ctx), {"Content-Type": "application/json"})
            return
        app = self._app(path)
        exchange.free = app is not self._apps.api
        await app(scope, exchange.receive, exchange.send)

    def _app(self, path: str) -> ASGIApp:
        for prefix, app in self._apps.mounts.items():
            if path.startswith(prefix):
                return app
        return self._apps.pages if self._apps.pages and not is_api(path) else self._apps.api

    def _note(self, scope: HTTPScope, exchange: Exchange, seconds: float) -> None:
        milliseconds = round(seconds * 1000, 3)
        principal: Principal = scope.get("user") or NOBODY
        path, id = _storable(exchange.path), request_id(scope)
        log.info(
            "answered",
            extra={
                "method": exchange.method,
                "route": scope.get("path_template") or "",
                "status": exchange.status,
                "ms": milliseconds,
                "request": id,
                "client_request": exchange.client_request_id,
                "actor": principal.name,
            },
        )
        if not _is_recorded(exchange.method, exchange.path):
            return
        details = {
            "method": exchange.method,
            "path": path,
            "body_hash": "" if scope["state"].get("secret") else exchange.body_hash,
            "status": exchange.status,
            "latency_ms": milliseconds,
            "remote_addr": client_address(scope, self._ctx.settings.trusted_proxies),
        }
        action = f"api_{'get' if exchange.method == 'HEAD' else exchange.method.lower()[:32]}"
        event = Event(principal.actor(id), action, "api", path[:255], details)
        if principal != NOBODY:
            self.calls.add(event, idle=self._is_idle(principal, scope, exchange))
        elif "user" in scope and exchange.status != HTTPStatus.TOO_MANY_REQUESTS:
            self.calls.add_stranger(event)
        else:
            self.calls.count(event)

    @staticmethod
    def _is_idle(principal: Principal, scope: HTTPScope, exchange: Exchange) -> bool:
        """A successful heartbeat, or a look for work that found none (its handler says so in the state)."""
        poll = POLLS.match(exchange.path)
        if poll is None or poll[1] != principal.agent_id or exchange.status != HTTPStatus.OK:
            return False
        return poll[2] == "heartbeat" or bool(scope["state"].get("idle"))


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send, terms: Terms) -> None:
        self.started = time.perf_counter()
        self.method, self.path = scope["method"], scope["path"]
        self.status = 0
        self._scope, self._receive, self._send = scope, receive, send
        self._terms, self._limit = terms, terms.max_body_size
        self._paced = self._overruled = False
        #: Whether what answers knows no rate limit of ours.
        self.free = False
        self._hash: Any = None
        self._taken = 0
        scope["state"] = {**(scope.get("state") or {})}
        headers = Headers.from_scope(scope)
        self._length = headers.get("content-length", "")
        self.client_request_id = headers.get("x-request-id", "")[:64]

    @property
    def body_hash(self) -> str:
        """SHA-256 of what was read of the body, "" if that is nothing."""
        return self._hash.hexdigest() if self._hash else ""

    def check(self) -> None:
        """Raise Refused, 413, for a body that says itself that it is too long."""
        if self._length.isdecimal() and int(self._length) > self._limit:
            raise self._too_long()

    def _too_long(self) -> Refused:
        return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {self._limit} bytes")

    async def receive(self) -> HTTPReceiveMessage:
        """Pass on what the client sends, up to the limit."""
        message: Any = await self._receive()
        if message["type"] == "http.request" and (part := message.get("body")):
            self._taken += len(part)
            if self._taken > self._limit:
                raise self._too_long()
            if self._hash is None:
                self._hash = hashlib.sha256()
            self._hash.update(part)
        return message  # type: ignore[no-any-return]

    async def send(self, message: Message) -> None:
        """Pass on the answer, with what every answer carries; without its body if that was not asked for."""
        if not self.status and await self._is_too_fast():
            self._overruled = True
        if self._overruled:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._stamp(MutableScopeHeaders.from_message(message))
        elif message["type"] == "http.response.body" and self._scope["state"].get("head"):
            message = {**message, "body": b""}
        await self._send(message)

    async def _is_too_fast(self) -> bool:
        """Count an answer to what no guard saw (no route, no method, no sense) and answer 429 instead, if need be."""
        if self._paced or self.free or "user" in self._scope or self.method == "OPTIONS" or self.path in HEALTH:
            return False
        self._paced = True
        try:
            await self._terms.pace(self._scope)
        except Refused as refused:
            await self.refuse(refused)
            return True
        return False

    def _stamp(self, headers: MutableScopeHeaders) -> None:
        headers["X-Request-Id"] = request_id(self._scope)
        for name, value in SECURITY.items():
            headers[name] = value
        if self._scope["scheme"] == "https":
            headers["Strict-Transport-Security"] = STRICT
        if headers.get("content-type", "").startswith("text/html"):
            headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
        if ignored := self._scope["state"].get("ignored_fields"):
            headers["X-Certctl-Ignored-Fields"] = ignored_header(ignored)
        for name, value in self._terms.origins.headers(self._scope, self.path).items():
            headers[name] = value

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer without a handler."""
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        if status != HTTPStatus.NO_CONTENT:
            raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            headers = {"Content-Type": "application/json", **refused.headers}
            await self.answer(refused.status, envelope(self._scope, refused), headers)
