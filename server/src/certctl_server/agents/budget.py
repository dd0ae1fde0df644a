"""How many changes the agents of a group may have open at once: deployments that are offered, or run.

Whoever offers first locks the groups of the agent that have a bound, so two polls never share the last place. An agent
that finds no room waits in line: places go to those who asked first, for as long as they keep asking.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta

from certctl_server import db
from certctl_server.agents.groups import SAID
from certctl_server.agents.matching import MEMBER
from certctl_server.jobs import bell

PATIENCE = timedelta(seconds=45)
"""For so long a place is kept for an agent that waits and does not ask; one that cannot wait asks every 30 s."""
NOT_SINCE = -PATIENCE.total_seconds()
FRESH = timedelta(seconds=15)
"""A place in line is written down again only when it is older than this."""
NOTED = timedelta(minutes=5)
WOKEN = 5
"""So many at the head of a line are woken; the others behind them are not, nor are they counted further than this."""
#: The groups with a bound that agent $1 is in, locked in one order.
_GROUPS = f"""
    SELECT g.id, g.max_concurrent_deployments AS most, w.since, w.asked_at
    FROM agent_group g JOIN agent a ON a.id = $1 {SAID}
        LEFT JOIN agent_group_wait w ON w.group_id = g.id AND w.agent_id = a.id
    WHERE g.max_concurrent_deployments IS NOT NULL AND {MEMBER} ORDER BY g.id
"""  # noqa: S608  # ours
GROUPS = db.Sql(postgres=f"{_GROUPS} FOR NO KEY UPDATE OF g", sqlite=_GROUPS)
# A lease of an offer that is over holds nothing; one of a run ends with the run (jobs/sweeper.py). The agent of each
# change is looked up: joined, PostgreSQL would go through all agents.
_OPEN = f"""
    SELECT g.id, count(*) AS changes FROM (
            SELECT agent_id FROM job WHERE lane = '' AND status = 'Running' AND type = 'Deployment'
            UNION ALL SELECT agent_id FROM job WHERE offered_until > {{now}} AND status = 'Pending') change
        JOIN agent_group g ON (SELECT {MEMBER} FROM agent a {SAID} WHERE a.id = change.agent_id)
    WHERE g.id IN ({{ids:$1}}) GROUP BY g.id
"""  # noqa: S608  # ours
# The plus takes the index on status out of SQLite's choice: it would walk all jobs that wait.
OPEN = db.Sql(postgres=_OPEN, sqlite=_OPEN.replace("AND status = 'Pending'", "AND +status = 'Pending'"))
# Counted no further than $4: a line is never walked, however long it is.
AHEAD = db.Sql(
    """
    SELECT g.id, (SELECT count(*) FROM (SELECT 1 FROM agent_group_wait w WHERE w.group_id = g.id AND w.agent_id <> $2
        AND w.asked_at > {after:$3} AND (w.since, w.agent_id) < (coalesce(mine.since, (SELECT {now})), $2)
        ORDER BY w.since, w.agent_id LIMIT $4) ahead) AS waiting
    FROM agent_group g LEFT JOIN agent_group_wait mine
        ON mine.group_id = g.id AND mine.agent_id = $2 AND mine.asked_at > {after:$3}
    WHERE g.id IN ({ids:$1})
    """
)
#: Agents among those of the JSON array $1 that are in line, but not at its head; $3 is NOT_SINCE.
BEHIND = f"""
    SELECT w.agent_id FROM agent_group_wait w JOIN agent_group g ON g.id = w.group_id
    WHERE w.agent_id IN ({{ids:$1}}) AND w.asked_at > {{after:$3}} AND g.max_concurrent_deployments IS NOT NULL
        AND {WOKEN} = (SELECT count(*) FROM (SELECT 1 FROM agent_group_wait o WHERE o.group_id = w.group_id
            AND o.asked_at > {{after:$3}} AND (o.since, o.agent_id) < (w.since, w.agent_id)
            ORDER BY o.since, o.agent_id LIMIT {WOKEN}) ahead)
"""  # noqa: S608  # ours
# Who has not asked for long starts anew at the end of the line.
WAIT = db.Sql(
    """
    INSERT INTO agent_group_wait (group_id, agent_id, since, asked_at)
        SELECT g.id, $2, {now}, {now} FROM agent_group g WHERE g.id IN ({ids:$1})
    ON CONFLICT (group_id, agent_id) DO UPDATE SET asked_at = excluded.asked_at, since = CASE
        WHEN agent_group_wait.asked_at > {after:$3} THEN agent_group_wait.since ELSE excluded.since END
    """
)
SERVED = db.Sql("DELETE FROM agent_group_wait WHERE agent_id = $1")
# A rollout counts silence from then on (certificates/rollout_state.py): who asks and gets nothing is not silent.
# Written down again after minutes only, however often it asks.
NOT_SILENT = db.Sql(
    """
    UPDATE job SET scheduled_at = {now} WHERE agent_id = $1 AND offer_at <= {now} AND type = 'Deployment'
        AND status = 'Pending' AND scheduled_at <= {after:$2}
    """
)
CAPPED = db.Sql(_GROUPS)
HEAD = db.Sql(
    """
    SELECT agent_id FROM agent_group_wait WHERE group_id = $1 AND asked_at > {after:$2}
    ORDER BY since, agent_id LIMIT $3
    """
)
FORGET = db.Sql("DELETE FROM agent_group_wait WHERE asked_at <= (SELECT {after:$1})")


async def room(agent_id: str, wanted: int) -> int:
    """Return how many deployments may be offered to an agent now, up to ``wanted``; one that gets none is in line.

    Call it in the transaction that makes the offers.
    """
    if not (groups := await db.fetch(GROUPS, agent_id)):
        return wanted
    unused = await _unused(groups)
    free = dict(unused)
    if some := [id for id in unused if unused[id] > 0]:
        for row in await db.fetch(AHEAD, json.dumps(some), agent_id, NOT_SINCE, max(unused.values())):
            free[row["id"]] -= row["waiting"]
    places = max(0, min(wanted, *free.values()))
    if places < wanted:
        await db.fetch(NOT_SILENT, agent_id, -NOTED.total_seconds())
    if places:
        # With what it got it has had its turn, whatever else it waits for.
        await db.fetch(SERVED, agent_id)
        await _wake(id for id in unused if unused[id] > places)
    elif full := [group for group in groups if free[group["id"]] <= 0 and not _asked_just_now(group)]:
        await db.fetch(WAIT, json.dumps([group["id"] for group in full]), agent_id, NOT_SINCE)
    return places


def _asked_just_now(group: db.Row) -> bool:
    return group["asked_at"] is not None and db.now() - group["asked_at"] < FRESH


async def may_start(agent_id: str) -> bool:
    """Whether an agent may begin a change whose offer it let run out: its place may be somebody else's by now."""
    if not (groups := await db.fetch(GROUPS, agent_id)):
        return True
    return all(places > 0 for places in (await _unused(groups)).values())


async def _unused(groups: list[db.Row]) -> dict[str, int]:
    taken = {row["id"]: row["changes"] for row in await db.fetch(OPEN, json.dumps([group["id"] for group in groups]))}
    return {group["id"]: group["most"] - taken.get(group["id"], 0) for group in groups}


async def vacated(agent_id: str) -> None:
    """Wake those who wait longest for a place in the groups of an agent of which a change has come to its end."""
    await _wake(group["id"] for group in await db.fetch(CAPPED, agent_id))


async def _wake(group_ids: Iterable[str]) -> None:
    for id in group_ids:
        for row in await db.fetch(HEAD, id, NOT_SINCE, WOKEN):
            bell.ring_agent(row["agent_id"])


async def forget() -> None:
    """Take those out of their lines who have stopped asking."""
    await db.fetch(FORGET, NOT_SINCE)
