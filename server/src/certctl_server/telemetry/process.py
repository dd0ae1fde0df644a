"""What a process tells while it lives: spans, if they go anywhere, and how its event loop keeps time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Literal

from certctl_sdk import tracing

from certctl_server.settings import Settings
from certctl_server.telemetry import metrics

PACKAGE = "certctl-server"
LOOK_SECONDS = 1.0


@contextlib.asynccontextmanager
async def telling(service: Literal["certctl-server", "certctl-worker"], settings: Settings) -> AsyncIterator[None]:
    """Export spans as ``service``, watch the event loop and show metrics on their own port, as far as settings say so.

    Raises:
        MisconfiguredError: that port is taken.
    """
    with metrics.listening(settings.metrics_port):
        tracing.configure(service, PACKAGE, os.environ)
        watching = asyncio.create_task(_watch(), name="event loop lag")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            tracing.close()


async def _watch() -> None:
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        await asyncio.sleep(LOOK_SECONDS)
        metrics.EVENT_LOOP_LAG.observe(max(0.0, clock() - began - LOOK_SECONDS))
