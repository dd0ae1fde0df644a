"""Whether the process lives, and whether it can work: asked by machines, all the time, without a key."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from certctl_server.db.engines import UNREACHABLE
from certctl_server.db.migrate import missing
from certctl_server.errors import UNAVAILABLE, Refused


async def alive() -> bytes:
    """Answer without touching anything."""
    return b'{"status":"healthy"}\n'


async def ready() -> bytes:
    """Answer if the database does, and is brought up to date.

    Raises:
        Refused: 503.
    """
    try:
        lacking = await missing()
    except (*UNREACHABLE, sqlite3.Error, RuntimeError) as exc:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE) from exc
    if lacking:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The database is being brought up to date")
    return b'{"status":"ready"}\n'


HEALTH: dict[str, Callable[[], Awaitable[bytes]]] = {"/health": alive, "/ready": ready}
