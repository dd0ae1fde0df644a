"""Whether the process lives, and whether it can work: asked by machines, all the time, without a key."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from certctl_server.context import Context
from certctl_server.db.engines import UNREACHABLE
from certctl_server.db.migrate import missing
from certctl_server.errors import UNAVAILABLE, Refused


async def alive(_: Context) -> bytes:
    """Answer without touching anything."""
    return b'{"status":"healthy"}\n'


async def ready(ctx: Context) -> bytes:
    """Answer if the database does, and is brought up to date.

    A broker that is away is named and no reason to be sent no more requests: work is found without it, only later.

    Raises:
        Refused: 503.
    """
    try:
        lacking = await missing()
    except (*UNREACHABLE, sqlite3.Error, RuntimeError) as exc:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE) from exc
    if lacking:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The database is being brought up to date")
    if ctx.engine is not None and not ctx.engine.doorbell.reachable():
        return b'{"status":"ready","broker":"unreachable"}\n'
    return b'{"status":"ready"}\n'


HEALTH: dict[str, Callable[[Context], Awaitable[bytes]]] = {"/health": alive, "/ready": ready}
