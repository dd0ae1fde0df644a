"""Which agents are there: a heartbeat in the last three minutes, a clock that agrees, jobs that do not all fail."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from enum import StrEnum

from certctl_server import db
from certctl_server.agents.budget import forget
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.leader import Leadership

SILENCE = timedelta(minutes=3)
SKEW_MS = 5 * 60 * 1000
AGENTS = db.Sql("SELECT id, status, last_heartbeat_at, clock_offset_ms FROM agent WHERE retired_at IS NULL")
STATUSES = ("last", "second_last", "third_last")
# One look into the index of an agent's jobs for each of the last three: all its jobs may be very many.
LAST_JOBS = db.Sql(
    "SELECT a.id AS agent_id, "  # noqa: S608  # the names above
    + ", ".join(
        f"""(SELECT j.status FROM job j WHERE j.agent_id = a.id AND j.status IN ('Completed', 'Failed')
            ORDER BY j.created_at DESC, j.id DESC LIMIT 1 OFFSET {number}) AS {name}"""  # noqa: S608  # as above
        for number, name in enumerate(STATUSES)
    )
    + " FROM agent a WHERE a.id IN ({ids:$1})"
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
        await forget()
        rows = await db.fetch(AGENTS)
        beats = {row["id"]: row["last_heartbeat_at"] for row in rows if row["last_heartbeat_at"]}
        fresh = {id: at for id, at in beats.items() if now - at <= SILENCE}
        last = {
            row["agent_id"]: [row[name] for name in STATUSES if row[name]]
            for row in await db.fetch(LAST_JOBS, json.dumps(list(fresh)))
        }
        changed = []
        for row in rows:
            status = status_of(row["last_heartbeat_at"], row["clock_offset_ms"], last.get(row["id"], []), now)
            if status != row["status"]:
                changed.append({"id": row["id"], "status": status, "was": row["status"]})
        if changed:
            await db.fetch(WRITE, json.dumps(changed))
            await record(
                Event(SYSTEM, f"agent_{each['status'].lower()}", "agent", each["id"], {"from": each["was"]})
                for each in changed
            )
    return min(fresh.values()) + SILENCE + LOOK if fresh else None
