"""Which agents are there: a heartbeat in the last three minutes, a clock that agrees, jobs that do not all fail."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime, timedelta
from enum import StrEnum

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.leader import Leadership

SILENCE = timedelta(minutes=3)
SKEW_MS = 5 * 60 * 1000
AGENTS = db.Sql("SELECT id, status, last_heartbeat_at, clock_offset_ms FROM agent WHERE retired_at IS NULL")
LAST_JOBS = db.Sql(
    """
    SELECT agent_id, status FROM (
        SELECT agent_id, status, row_number() OVER (PARTITION BY agent_id ORDER BY created_at DESC, id DESC) AS newest
        FROM job WHERE agent_id IN ({ids:$1}) AND status IN ('Completed', 'Failed')) j
    WHERE newest <= 3
    """
)
WRITE = db.update_rows("agent", "id", {"status": "text"})
LOOK = timedelta(seconds=15)


class AgentStatus(StrEnum):
    """As the API spells it."""

    ONLINE = "Online"
    OFFLINE = "Offline"
    DEGRADED = "Degraded"


def is_plain(agent: db.Row) -> bool:
    """Whether it is an agent of the original, which names no capabilities.

    Such an agent keeps one key file per certificate, always makes ECDSA P-256 keys, and puts nothing back when
    something else is served.
    """
    return not json.loads(agent["capabilities"] or "[]")


def is_skewed(clock_offset_ms: int | None) -> bool:
    """Whether an agent's clock is too far off for work that dates matter to."""
    return abs(clock_offset_ms or 0) > SKEW_MS


def status_of(
    last_heartbeat_at: datetime | None, clock_offset_ms: int | None, last: list[str], now: datetime
) -> AgentStatus:
    """Return what an agent is; ``last`` are the states of its last three jobs."""
    if last_heartbeat_at is None or now - last_heartbeat_at > SILENCE:
        return AgentStatus.OFFLINE
    failing = len(last) == 3 and set(last) == {"Failed"}  # noqa: PLR2004  # the last three
    return AgentStatus.DEGRADED if is_skewed(clock_offset_ms) or failing else AgentStatus.ONLINE


async def watch(leadership: Leadership) -> datetime | None:
    """Bring every agent's status up to date; return when the next one may fall silent."""
    now = db.now()
    async with leadership.leading():
        rows = await db.fetch(AGENTS)
        fresh = [row["id"] for row in rows if row["last_heartbeat_at"] and now - row["last_heartbeat_at"] <= SILENCE]
        last = defaultdict(list)
        for row in await db.fetch(LAST_JOBS, json.dumps(fresh)):
            last[row["agent_id"]].append(row["status"])
        changed = []
        for row in rows:
            status = status_of(row["last_heartbeat_at"], row["clock_offset_ms"], last[row["id"]], now)
            if status != row["status"]:
                changed.append({"id": row["id"], "status": status, "was": row["status"]})
        if changed:
            await db.fetch(WRITE, json.dumps(changed))
            await record(
                Event(SYSTEM, f"agent_{each['status'].lower()}", "agent", each["id"], {"from": each["was"]})
                for each in changed
            )
    beats = [row["last_heartbeat_at"] for row in rows if row["id"] in fresh]
    return min(beats) + SILENCE + LOOK if beats else None
