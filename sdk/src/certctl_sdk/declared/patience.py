"""A client that goes as fast as the server lets it: told to come back later, it does."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from certctl_sdk.api import Call
from certctl_sdk.client import ApiError, AsyncClient

A = TypeVar("A")
AT_ONCE = 8
"""Calls under way."""
TRIES = 100
"""Of one call: each that is refused may be so because others of ours were let in."""
TOO_MANY_REQUESTS = 429


class PatientClient(AsyncClient):
    """Waits where the server's rate limit says so, and has a few calls under way at most."""

    _gate: asyncio.Semaphore | None = None

    async def send(self, call: Call[A]) -> A:
        """As ``AsyncClient.send``."""
        self._gate = self._gate or asyncio.Semaphore(AT_ONCE)
        async with self._gate:
            for _ in range(TRIES - 1):
                try:
                    return await super().send(call)
                except ApiError as exc:
                    if exc.status != TOO_MANY_REQUESTS:
                        raise
                    await asyncio.sleep(exc.retry_after or 1)
            return await super().send(call)
