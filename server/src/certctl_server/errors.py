"""Every error a client can see, in one envelope, by type and never by text."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from itertools import islice
from math import ceil
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
from certctl_core.errors import IllegalTransition, MisconfiguredError, RejectedError, TransientError
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.types import ExceptionHandlersMap, Scope

from certctl_server.db.engines import UNREACHABLE

log = logging.getLogger(__name__)
AnyRequest = Request[Any, Any, Any]
MESSAGE_CHARACTERS = 300
FIELD_CHARACTERS = 255
MOST_FAULTS = 100
REASONS = {413: "Request Entity Too Large"}
UNREACHABLE_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")
TAKEN_SQLITE = ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY")
REFERRED_SQLITE = ("SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_TRIGGER")
TAKEN = "The id or name is taken"
REFERRED = "It is in use, or refers to what is not there"
UNAVAILABLE = "The database cannot be reached"
#: A server that shuts down, is full or has failed over, and transactions that lost against another.
FOR_NOW = (
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
)


class Refused(Exception):
    """The request cannot be answered as asked.

    ``faults`` names every field at fault by its JSON path, ``headers`` go out with the answer, and ``extra`` are
    further keys of its body.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        faults: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.faults = dict(faults or {})
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def invalid(faults: Mapping[str, str]) -> Refused:
    """Return the 400 that names these fields."""
    return Refused(HTTPStatus.BAD_REQUEST, "Some fields are not valid", faults)


def not_found(kind: str) -> Refused:
    """Return the 404 for a resource of this kind, as people call it: ``Team``, ``Renewal policy``."""
    return Refused(HTTPStatus.NOT_FOUND, f"{kind} not found")


def conflict(message: str) -> Refused:
    """Return the 409: it cannot be done in the present state."""
    return Refused(HTTPStatus.CONFLICT, message)


def request_id(scope: Scope) -> str:
    """Return our name for the request; what a client sent under that name is only logged."""
    return str(scope.setdefault("state", {}).setdefault("request_id", str(uuid4())))


def envelope(scope: Scope, refused: Refused) -> bytes:
    """Return the body of every error."""
    body: dict[str, Any] = {
        "error": REASONS.get(refused.status) or HTTPStatus(refused.status).phrase,
        "message": str(refused)[:MESSAGE_CHARACTERS],
        "request_id": request_id(scope),
    }
    if refused.faults:
        body["details"] = list(_details(refused.faults))
    return msgspec.json.encode({**body, **refused.extra}) + b"\n"


def _details(faults: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for field, text in islice(faults.items(), MOST_FAULTS):
        yield {"field": field[:FIELD_CHARACTERS], "message": text[:MESSAGE_CHARACTERS]}
    if len(faults) > MOST_FAULTS:
        yield {"field": "and more", "message": f"only the first {MOST_FAULTS} faults are told"}


def _answer(request: AnyRequest, refused: Refused) -> Response[bytes]:
    return Response(
        envelope(request.scope, refused),
        status_code=refused.status,
        headers=refused.headers,
        media_type="application/json",
    )


def _illegal(request: AnyRequest, exc: IllegalTransition) -> Response[bytes]:
    return _answer(request, conflict(str(exc)))


def _invalid(request: AnyRequest, exc: ValidationException) -> Response[bytes]:
    found: Sequence[Any] = exc.extra if isinstance(exc.extra, list) else []
    faults = {str(each.get("key", "")): str(each.get("message", "")) for each in found}
    return _answer(request, Refused(HTTPStatus.BAD_REQUEST, "The request is not valid", faults))


def _nowhere(request: AnyRequest, _: NotFoundException) -> Response[bytes]:
    return _answer(request, Refused(HTTPStatus.NOT_FOUND, "There is nothing at this path"))


def _method(request: AnyRequest, exc: MethodNotAllowedException) -> Response[bytes]:
    allowed = {method.strip() for method in (exc.headers or {}).get("allow", "").split(",")} - {""}
    if "GET" in allowed:
        allowed.add("HEAD")
    headers = {"Allow": ", ".join(sorted(allowed))}
    message = f"{request.method} is not possible here"
    return _answer(request, Refused(HTTPStatus.METHOD_NOT_ALLOWED, message, headers=headers))


def _http(request: AnyRequest, exc: HTTPException) -> Response[bytes]:
    if exc.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _bug(request, exc)
    return _answer(request, Refused(HTTPStatus(exc.status_code), exc.detail))


def _taken(request: AnyRequest, _: Exception) -> Response[bytes]:
    return _answer(request, conflict(TAKEN))


def _referred(request: AnyRequest, _: Exception) -> Response[bytes]:
    return _answer(request, conflict(REFERRED))


def _unreachable(request: AnyRequest, exc: Exception) -> Response[bytes]:
    # A value that asyncpg cannot encode is an InterfaceError as well, and no fault of the database.
    if isinstance(exc, ValueError):
        return _bug(request, exc)
    log.error("database unreachable", extra={"request": request_id(request.scope)}, exc_info=exc)
    return _unavailable(request, UNAVAILABLE, timedelta(seconds=1))


def _unavailable(request: AnyRequest, message: str, retry_after: timedelta | None) -> Response[bytes]:
    headers = {"Retry-After": str(max(1, ceil(retry_after.total_seconds())))} if retry_after else {}
    return _answer(request, Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, headers=headers))


def _sqlite(request: AnyRequest, exc: sqlite3.Error) -> Response[bytes]:
    name = getattr(exc, "sqlite_errorname", "")
    if name in TAKEN_SQLITE:
        return _taken(request, exc)
    if name in REFERRED_SQLITE:
        return _referred(request, exc)
    if name.startswith(UNREACHABLE_SQLITE):
        return _unreachable(request, exc)
    return _bug(request, exc)


def _later(request: AnyRequest, exc: TransientError) -> Response[bytes]:
    return _unavailable(request, str(exc), exc.retry_after)


def _peer(request: AnyRequest, exc: RejectedError | MisconfiguredError) -> Response[bytes]:
    return _unavailable(request, str(exc), None)


def _bug(request: AnyRequest, exc: Exception) -> Response[bytes]:
    log.error("internal error", extra={"request": request_id(request.scope)}, exc_info=exc)
    return _answer(request, Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error"))


HANDLERS: ExceptionHandlersMap = {
    Refused: _answer,
    IllegalTransition: _illegal,
    TransientError: _later,
    RejectedError: _peer,
    MisconfiguredError: _peer,
    ValidationException: _invalid,
    NotFoundException: _nowhere,
    MethodNotAllowedException: _method,
    HTTPException: _http,
    asyncpg.UniqueViolationError: _taken,
    asyncpg.ForeignKeyViolationError: _referred,
    asyncpg.RestrictViolationError: _referred,
    sqlite3.Error: _sqlite,
    **dict.fromkeys((*UNREACHABLE, *FOR_NOW), _unreachable),
    Exception: _bug,
}
