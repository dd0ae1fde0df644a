"""The one guard: who calls, how fast, and whether the route is for them. A route that says no roles is for nobody."""

from __future__ import annotations

import logging
from http import HTTPStatus
from math import ceil
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from certctl_server.auth.keys import Keyring, authenticate, authenticate_token
from certctl_server.auth.principal import EVERYBODY, NOBODY, Principal
from certctl_server.auth.roles import LISTED, Role
from certctl_server.context import Context
from certctl_server.errors import FIELD_CHARACTERS, Refused
from certctl_server.http.client_address import client_address
from certctl_server.http.rate import RateLimiter
from certctl_server.list_query import query, unfit

log = logging.getLogger(__name__)
Connection = ASGIConnection[Any, Any, Any, Any]
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="certctl"'}


class Guard:
    """Holds the environment's keys, as digests, and the rate limits."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._open = ctx.settings.auth.type == "none"
        self._keyring = Keyring.of(ctx.settings.auth, ctx.settings.agent_bootstrap_token.get_secret_value())
        limits = ctx.settings.rate_limit
        self._limited = limits.enabled
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
            self._limit(connection, NOBODY)
            _check_query(connection, handler)
            return
        principal = await self._who(connection, enrolling=Role.ENROLMENT in roles)
        self._limit(connection, principal or NOBODY)
        if principal is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, _why(connection), headers=CHALLENGE)
        connection.scope["user"] = principal
        if principal.role not in roles:
            raise Refused(HTTPStatus.FORBIDDEN, f"This is not for the role {principal.role}")
        _check_query(connection, handler)

    async def _who(self, connection: Connection, *, enrolling: bool) -> Principal | None:
        key = _bearer(connection)
        found = None
        if key:
            found = await authenticate(key, self._keyring, self._ctx.clock())
            if found is None and enrolling:
                found = await authenticate_token(key, self._ctx.clock())
        return EVERYBODY if found is None and self._open else found

    def pace(self, scope: Scope) -> None:
        """Count one call against its address; the front asks this for calls that no route and so no guard sees.

        Raises:
            Refused: 429.
        """
        if not self._limited:
            return
        if wait := self._addresses.wait(client_address(scope, self._ctx.settings.trusted_proxies)):
            raise _too_fast(wait)

    def _limit(self, connection: Connection, principal: Principal) -> None:
        if not self._limited:
            return
        if principal in {NOBODY, EVERYBODY}:
            self.pace(connection.scope)
        elif wait := self._principals.wait(principal.key_id or principal.name):
            raise _too_fast(wait)


def _check_query(connection: Connection, handler: BaseRouteHandler) -> None:
    known = handler.opt.get("query", frozenset())
    if not connection.scope["query_string"] or known == LISTED:
        return
    # "_" keeps caches from answering.
    if unknown := query(connection.scope).keys() - known - {"_"}:
        raise unfit({name[:FIELD_CHARACTERS]: "is unknown" for name in sorted(unknown)})


def _too_fast(wait: float) -> Refused:
    headers = {"Retry-After": str(ceil(wait))}
    return Refused(HTTPStatus.TOO_MANY_REQUESTS, "Rate limit exceeded", headers=headers)


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
