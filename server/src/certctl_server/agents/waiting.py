"""Polls that wait, however many: one statement at a time looks for a tenth of them, each every five seconds.

A bell wakes a poll at once. This is for work that another server made while its bell was lost, and for what becomes due
by itself. Who waits for room in a group of agents is woken at the head of its line only.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from datetime import timedelta
from zlib import crc32

from certctl_server import db
from certctl_server.agents.budget import BEHIND, NOT_SINCE
from certctl_server.jobs import bell

log = logging.getLogger(__name__)
LOOK = timedelta(seconds=5)
SHARES = 10
SOON = db.Sql(
    f"""
    SELECT agent_id, min(offer_at) AS offer_at FROM job
    WHERE agent_id IN ({{ids:$1}}) AND offer_at IS NOT NULL AND offer_at <= {{after:$2}}
        AND NOT (type = 'Deployment' AND agent_id IN ({BEHIND})) GROUP BY agent_id
    """  # noqa: S608  # ours
)
_looking: asyncio.Task[None] | None = None


def keep_looking() -> None:
    """See to it that somebody looks for as long as any poll of this process waits."""
    global _looking  # noqa: PLW0603  # one for all polls of the process
    loop = asyncio.get_running_loop()
    if _looking is None or _looking.done() or _looking.get_loop() is not loop:
        _looking = loop.create_task(_look(), name="waiting polls", context=contextvars.Context())


async def _look() -> None:
    turn = 0
    while waiting := bell.waiting():
        turn = (turn + 1) % SHARES
        some = [agent_id for agent_id in waiting if crc32(agent_id.encode()) % SHARES == turn]
        try:
            await _wake(some)
        except Exception as exc:
            # A look that ends is work that is late for good: it goes on whatever happened.
            log.warning("work for waiting polls cannot be looked for", exc_info=exc)
        await asyncio.sleep(LOOK.total_seconds() / SHARES)


async def _wake(agent_ids: list[str]) -> None:
    if not agent_ids:
        return
    loop, now = asyncio.get_running_loop(), db.now()
    for row in await db.fetch(SOON, json.dumps(agent_ids), LOOK.total_seconds(), NOT_SINCE):
        wait = (db.as_moment(row["offer_at"]) - now).total_seconds()
        loop.call_later(max(0.0, wait), bell.hear, f"{bell.AGENT}:{row['agent_id']}")
