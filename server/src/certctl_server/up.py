"""One process, server or worker, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from certctl_core import plugins
from certctl_core.errors import MisconfiguredError

from certctl_server import db, engine, listeners, page, reserved, start, tls
from certctl_server.app import make_app
from certctl_server.connectors.refresh import refresh_all
from certctl_server.context import Context
from certctl_server.jobs import bell
from certctl_server.listeners import Door
from certctl_server.sealing import Cipher
from certctl_server.settings import Settings
from certctl_server.start import Running
from certctl_server.telemetry.process import telling


async def run(settings: Settings, announce: Callable[[Running], None], *, terminal: bool) -> None:
    """Serve until told to stop. ``announce`` is called once the doors are open.

    Raises:
        MisconfiguredError: it must not, or cannot, start like this.
    """
    os.umask(0o077)
    start.warn(settings, os.environ)
    async with telling("certctl-server", settings):
        await start.begin(settings, partial(_serve, settings, terminal=terminal), announce)


async def _serve(settings: Settings, announce: Callable[[Running], None], *, terminal: bool) -> None:
    async with start.ground(settings) as cipher, contextlib.AsyncExitStack() as stack:
        ctx = _context(settings, cipher)
        await reserved.put_webhook(settings, ctx.plugins, cipher, db.now())
        sockets = listeners.bind(settings.server.host, settings.server.port, "CERTCTL_SERVER_PORT")
        for sock in sockets:
            stack.callback(sock.close)
        shown, ca_file = await stack.enter_async_context(_certificate(ctx))
        handed = await start.hand_over(settings, tls.pin(settings), terminal=terminal)
        await refresh_all(ctx)
        await engine.start(ctx, engine.parts_of_server(ctx))
        stack.push_async_callback(engine.stop)
        door = Door(make_app(ctx, pages=page.Page(settings)), sockets, shown.context if shown else None, begins=True)
        url = start.local_url(settings, sockets[0].getsockname()[1])

        def ready() -> None:
            start.write_client(settings, url, ca_file)
            listeners.settle_memory()
            announce(Running(settings, url, handed))

        reload = shown.reload if shown else _nothing_to_reload
        await listeners.serve([door], ready=ready, reload=reload, drain=bell.answer_all)


async def work(settings: Settings, announce: Callable[[], None]) -> None:
    """Run jobs until told to stop, then finish those at hand. ``announce`` is called once it does.

    Raises:
        MisconfiguredError: it must not, or cannot, start like this.
    """
    if settings.embedded:
        raise MisconfiguredError(
            "a worker of its own needs CERTCTL_DATABASE_URL=postgres://... and CERTCTL_BROKER_URL=redis://...;"
            " without them the server has its workers inside"
        )
    os.umask(0o077)
    start.warn(settings, os.environ)
    async with telling("certctl-worker", settings):
        await start.begin(settings, partial(_work, settings), announce)


async def _work(settings: Settings, announce: Callable[[], None]) -> None:
    async with start.ground(settings) as cipher:
        await engine.start(_context(settings, cipher), engine.Part.WORKERS)
        try:
            announce()
            await listeners.told_to_stop()
        finally:
            await engine.stop()


def _context(settings: Settings, cipher: Cipher) -> Context:
    return Context(
        settings=settings, plugins=plugins.load(), cipher=cipher, clock=db.now, bell=bell, started_at=db.now()
    )


def _nothing_to_reload() -> None:
    """SIGHUP without TLS."""


@contextlib.asynccontextmanager
async def _certificate(ctx: Context) -> AsyncIterator[tuple[tls.ServerTls | None, Path | None]]:
    """What the API's listener shows, kept fresh meanwhile, and the file with its CA if that is ours."""
    if (pair := tls.pair_of(ctx.settings)) is None:
        yield None, None
        return
    if ctx.settings.server.tls == "files":
        yield tls.ServerTls(*pair), None
        return
    sign = partial(tls.issue_server_certificate, ctx)
    own = tls.OwnCertificate(ctx.settings.data_dir, tls.names(ctx.settings), sign, ctx.clock)
    await own.ensure()
    shown = tls.ServerTls(*pair)
    renewing = asyncio.create_task(own.keep(shown))
    try:
        yield shown, own.ca
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
