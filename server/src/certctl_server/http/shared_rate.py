"""Budgets of callers that all servers of an installation share, kept in Redis.

While Redis is away each server counts by itself: a caller then gets at most as many budgets as there are servers,
and nobody waits for Redis, nor is refused because of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import ceil

from certctl_server import db
from certctl_server.doorbell import NAMESPACE
from certctl_server.http.rate import RateLimiter

log = logging.getLogger(__name__)
MICROSECONDS = 1_000_000
PATIENCE_SECONDS = 0.5
AGAIN_SECONDS = 5.0
"""How often Redis is asked whether it is back, by one request that may wait for it."""
#: GCRA as in rate.py, by Redis' own clock, for any number of callers at once.
SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local waits = {}
for number, key in ipairs(KEYS) do
    local interval, tolerance = tonumber(ARGV[2 * number - 1]), tonumber(ARGV[2 * number])
    local full_at = math.max(now, tonumber(redis.call('GET', key) or now)) + interval
    local over = full_at - now - tolerance
    if over <= 0 then
        over = 0
        redis.call('SET', key, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
    end
    waits[number] = math.ceil(over)
end
return waits
"""


class SharedBuckets:
    """The buckets of every limiter of this process, as the whole installation has them."""

    def __init__(self, url: str) -> None:
        import redis.asyncio as redis  # noqa: PLC0415  # a fifth of a second that only needs who has a broker
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415

        self._trouble = (redis.RedisError, OSError)
        self._redis: redis.Redis = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._script = self._redis.register_script(SCRIPT)
        self._ask = db.Together(self._ask_all)
        self._away = False
        self._again_at = 0.0

    async def wait(self, name: str, limiter: RateLimiter, key: str) -> float:
        """Let ``key`` pass by the terms of ``limiter`` and return 0, or return the seconds after which it may.

        ``name`` tells the buckets of one limiter from those of another.
        """
        if self._away:
            if time.monotonic() < self._again_at:
                return limiter.wait(key)
            self._again_at = time.monotonic() + AGAIN_SECONDS
        try:
            microseconds = await self._ask((f"{NAMESPACE}:rate:{name}:{key}", limiter))
        except self._trouble as exc:
            self._lost(exc)
            return limiter.wait(key)
        self._found()
        return microseconds / MICROSECONDS

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _ask_all(self, asked: list[tuple[str, RateLimiter]]) -> list[int]:
        terms = [
            ceil(seconds * MICROSECONDS) for _, limiter in asked for seconds in (limiter.interval, limiter.tolerance)
        ]
        async with asyncio.timeout(PATIENCE_SECONDS):
            found: list[int] = await self._script(keys=[key for key, _ in asked], args=terms)
        return found

    def _lost(self, exc: Exception) -> None:
        if not self._away:
            log.warning(
                "the broker does not count calls: each server limits callers by itself", extra={"error": repr(exc)}
            )
            self._away, self._again_at = True, time.monotonic() + AGAIN_SECONDS

    def _found(self) -> None:
        if self._away:
            log.info("the broker counts calls again: servers share the limits")
            self._away = False
