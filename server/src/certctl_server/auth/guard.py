"""The one guard: who calls, how fast, and whether the route is for them. A route that says no roles is for nobody."""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from math import ceil
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from certctl_server.auth import logins
from certctl_server.auth.keys import Keyring, authenticate, authenticate_token
from certctl_server.auth.principal import EVERYBODY, NOBODY, Principal
from certctl_server.auth.roles import LISTED, Role
from certctl_server.context import Context
from certctl_server.errors import FIELD_CHARACTERS, Refused
from certctl_server.http.client_address import client_address, is_encrypted
from certctl_server.http.rate import RateLimiter
from certctl_server.http.shared_rate import SharedBuckets
from certctl_server.list_query import query, unfit
from certctl_server.settings import Settings

log = logging.getLogger(__name__)
Connection = ASGIConnection[Any, Any, Any, Any]
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="certctl"'}


class Guard:
    """Holds the environment's keys, as digests, and the rate limits."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._open = ctx.settings.auth.type == "none"
        self._keyring = Keyring.of_settings(ctx.settings)
        limits = ctx.settings.rate_limit
        self._limited = limits.enabled
        broker = ctx.settings.broker if limits.enabled else ""
        self._shared = SharedBuckets(broker) if broker else None
        self._addresses = RateLimiter(limits.rps, limits.burst)
        self._principals = RateLimiter(limits.per_user_rps or limits.rps, limits.per_user_burst or limits.burst)

    async def admit(self, connection: Connection, handler: BaseRouteHandler) -> None:
        """Set ``connection.user``, or refuse.

        Raises:
            Refused: 401, 403 or 429; 400 for parameters that the route does not name.
        """
        roles = handler.opt.get("roles")
        if roles is None:
            log.error("route without roles", extra={"route": str(handler)})
            raise Refused(HTTPStatus.FORBIDDEN, "Nobody may do this")
        # Set first, so that the audit trail knows a refused caller as well.
        connection.scope["user"] = NOBODY
        if Role.ANONYMOUS in roles:
            await self._limit(connection, NOBODY)
            _check_query(connection, handler)
            return
        principal = await self._who(connection, enrolling=Role.ENROLMENT in roles)
        await self._limit(connection, principal or NOBODY)
        if principal is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, _why(connection), headers=CHALLENGE)
        connection.scope["user"] = principal
        _check_origin(connection, principal)
        if principal.role not in roles:
            raise Refused(HTTPStatus.FORBIDDEN, f"This is not for the role {principal.role}")
        _check_query(connection, handler)

    async def _who(self, connection: Connection, *, enrolling: bool) -> Principal | None:
        now, settings = self._ctx.clock(), self._ctx.settings
        found = None
        if key := _bearer(connection):
            found = await authenticate(key, self._keyring, now)
            if found is None and enrolling:
                found = await authenticate_token(key, now)
        # Who shows a key means that key, also in a browser where somebody else logged in.
        elif not _authorization(connection)[0] and (cookie := login_cookie(connection, settings)):
            found = await logins.logged_in(cookie, self._keyring, now)
        return EVERYBODY if found is None and self._open else found

    async def pace(self, scope: Scope) -> None:
        """Count one call against its address; the front asks this for calls that no route and so no guard sees.

        Raises:
            Refused: 429.
        """
        address = client_address(scope, self._ctx.settings.trusted_proxies)
        await self._count("address", self._addresses, address)

    @contextlib.asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """While the application serves; what is shared with other servers is let go at the end."""
        try:
            yield
        finally:
            if self._shared:
                await self._shared.aclose()

    async def _limit(self, connection: Connection, principal: Principal) -> None:
        if principal in {NOBODY, EVERYBODY}:
            await self.pace(connection.scope)
        else:
            await self._count("caller", self._principals, principal.key_id or principal.name)

    async def _count(self, name: str, limiter: RateLimiter, key: str) -> None:
        if not self._limited:
            return
        wait = await self._shared.wait(name, limiter, key) if self._shared else limiter.wait(key)
        if wait:
            headers = {"Retry-After": str(ceil(wait))}
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "Rate limit exceeded", headers=headers)


def login_cookie(connection: Connection, settings: Settings) -> str:
    """Return the cookie of a login, "" if none came with the request."""
    return logins.presented(connection.cookies, encrypted=is_encrypted(connection.scope, settings))


def _check_origin(connection: Connection, principal: Principal) -> None:
    """A browser sends its cookie whoever's page asks for a change; only ours knows the token."""
    if not principal.csrf_token or connection.scope.get("method") == "GET":
        return
    given = connection.headers.get(logins.CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), principal.csrf_token.encode()):
        raise Refused(HTTPStatus.FORBIDDEN, "X-CSRF-Token must say the csrf_token of the login")


def _check_query(connection: Connection, handler: BaseRouteHandler) -> None:
    known = handler.opt.get("query", frozenset())
    if not connection.scope["query_string"] or known == LISTED:
        return
    # "_" keeps caches from answering.
    if unknown := query(connection.scope).keys() - known - {"_"}:
        raise unfit({name[:FIELD_CHARACTERS]: "is unknown" for name in sorted(unknown)})


def _authorization(connection: Connection) -> tuple[str, str]:
    raw = next((value for name, value in connection.scope["headers"] if name == b"authorization"), b"")
    scheme, _, rest = raw.decode("utf-8", "surrogateescape").strip().partition(" ")
    return scheme, rest.strip()


def _bearer(connection: Connection) -> str:
    scheme, key = _authorization(connection)
    return key if scheme.lower() == "bearer" else ""


def _why(connection: Connection) -> str:
    scheme, _ = _authorization(connection)
    if not scheme:
        return "Authorization header required"
    if scheme.lower() != "bearer":
        return "Authorization must be of the form: Bearer KEY"
    return "Invalid API key"
