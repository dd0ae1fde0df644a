"""The test buttons: what a configured row can do right now, asked of the peer itself."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from math import ceil
from typing import TypeAlias, TypedDict

from certctl_core.connector import Checker
from certctl_core.errors import ConnectorError, TransientError
from certctl_core.notifier import Notification, Resolver, ResolveRequest

from certctl_server.auth.principal import Req
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.run import CallRun
from certctl_server.connectors.service import DISABLED, Family, assess, stored, tested
from certctl_server.context import Context
from certctl_server.crud import one
from certctl_server.errors import Refused, conflict
from certctl_server.lists import Row

PATIENCE = timedelta(seconds=10)
Call: TypeAlias = Callable[[Instances, CallRun], Awaitable[None]]


class Check(TypedDict):
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """None: not looked at; the message says why."""
    message: str
    ms: int


async def check_connection(family: Family, ctx: Context, request: Req, row_id: str) -> list[Check]:
    """Ask the peer of an issuer whether it can be reached and takes our credentials; return what was looked at.

    Raises:
        Refused: 404; 400, the row is incomplete; 409, it is disabled; 503, the peer did not pass.
    """

    async def ask(instances: Instances, run: CallRun) -> None:
        issuer = await instances.issuer(row_id)
        if isinstance(issuer, Checker):
            checker = issuer
            await instances.call(issuer, "check", lambda: checker.check(run))

    return await _test(family, ctx, request, row_id, ask)


async def send_test(family: Family, ctx: Context, request: Req, row_id: str) -> None:
    """Send a message that says it is a test; an incident that it opens is closed again.

    Raises:
        Refused: as ``check_connection``, and 503 where no connector for the channel is installed.
    """
    row = await one(family.table, row_id, request.user, family.kind)
    if family.model(ctx.plugins, row["type"]) is None:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"No connector of kind {row['type']} is installed")
    message = Notification(
        subject="certctl: test message",
        body=f"This is a test of the notifier {row_id}. Nothing happened.",
        severity="info",
        incident=f"test|{row_id}",
        facts={"type": "Test"},
    )

    async def send(instances: Instances, run: CallRun) -> None:
        notifier = await instances.notifier(row_id)
        await instances.call(notifier, "send", lambda: notifier.send(message, run))
        if isinstance(notifier, Resolver):
            resolver = notifier
            asked = ResolveRequest(incident=message.incident)
            await instances.call(notifier, "resolve", lambda: resolver.resolve(asked, run))

    await _test(family, ctx, request, row_id, send)


async def _test(family: Family, ctx: Context, request: Req, row_id: str, call: Call) -> list[Check]:
    await one(family.table, row_id, request.user, family.kind)
    row = await stored(family, row_id)
    checks = [_configuration(family, ctx, row)]
    if ctx.engine is None:
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "This process runs no connectors")
    started = time.monotonic()
    run = CallRun(f"test-{row_id}-{secrets.token_hex(8)}", ctx.clock() + PATIENCE)
    error: ConnectorError | None = None
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            await call(ctx.engine.instances, run)
    except TimeoutError:
        error = TransientError(f"{row['type']} did not answer within {PATIENCE.total_seconds():g} s")
    except ConnectorError as exc:
        error = exc
    spent = round((time.monotonic() - started) * 1000)
    checks.append({"name": "connection", "ok": error is None, "message": str(error or ""), "ms": spent})
    await tested(family, ctx, request, row, ok=error is None)
    if error:
        raise _failed(error, checks)
    return checks


def _configuration(family: Family, ctx: Context, row: Row) -> Check:
    """Refuse what cannot be tested: the words say what to do first."""
    started = time.monotonic()
    verdict = assess(family, ctx, row["type"], json.loads(row["config"]), family.where(row["id"]))
    if not verdict.complete:
        faults = {**verdict.missing, **verdict.faults}
        raise Refused(HTTPStatus.BAD_REQUEST, f"The configuration of {row['id']} is incomplete", faults)
    if row["shown_status"] == DISABLED:
        raise conflict(f"{family.kind} {row['id']} is disabled")
    return {"name": "configuration", "ok": True, "message": "", "ms": round((time.monotonic() - started) * 1000)}


def _failed(error: ConnectorError, checks: list[Check]) -> Refused:
    wait = error.retry_after if isinstance(error, TransientError) else None
    headers = {"Retry-After": str(max(1, ceil(wait.total_seconds())))} if wait else {}
    message = f"The check connection failed: {error}"
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, headers=headers, extra={"checks": checks})
