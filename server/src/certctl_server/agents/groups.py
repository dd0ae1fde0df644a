"""Who belongs to a group of agents: criteria that are compared now, and what a person says of single agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctl_server import db
from certctl_server.agents.matching import MEMBER, agent_keys, group_keys
from certctl_server.context import Context

CRITERIA = ("match_os", "match_architecture", "match_ip_cidr", "match_version")
#: Joins agent ``a`` and its group ``g`` to what a person said of the two.
SAID = "LEFT JOIN agent_group_member m ON m.group_id = g.id AND m.agent_id = a.id"
COUNT = f"(SELECT count(*) FROM agent a JOIN agent_group g ON g.id = item.id {SAID} WHERE {MEMBER})"  # noqa: S608  # ours
#: The condition that the listed agent is a member of the group that is its argument.
MEMBERS = (
    "EXISTS (SELECT 1 FROM agent_group g LEFT JOIN agent_group_member m ON m.group_id = g.id AND m.agent_id = item.id"  # noqa: S608  # ours
    f" WHERE g.id = {{}} AND {MEMBER.replace('a.', 'item.')})"
)
KEYS = db.Sql(
    """
    UPDATE agent_group SET has_criteria = $2, os_key = $3, architecture_key = $4, ip_from = $5, ip_until = $6,
        version_from = $7, version_until = $8, version_not = $9 WHERE id = $1
    """
)
GROUP = db.Sql("SELECT * FROM agent_group WHERE id = $1")
COLUMNS = (
    "has_criteria", "os_key", "architecture_key", "ip_from", "ip_until", "version_from", "version_until", "version_not",
)  # fmt: skip
OF_AGENT = db.Sql("UPDATE agent SET os_key = $2, architecture_key = $3, ip_key = $4, version_key = $5 WHERE id = $1")
SAY = db.Sql(
    """
    INSERT INTO agent_group_member (group_id, agent_id, membership_type, created_at) VALUES ($1, $2, $3, {now})
    ON CONFLICT (group_id, agent_id) DO UPDATE SET membership_type = excluded.membership_type
    """
)
INCLUDED = db.Sql("SELECT agent_id FROM agent_group_member WHERE group_id = $1 AND membership_type = 'include'")
UNSAY = db.Sql("DELETE FROM agent_group_member WHERE group_id = $1 AND agent_id = $2 RETURNING membership_type")


def check_group(values: dict[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Return what is wrong with the criteria that a client gives."""
    given = {name: values.get(name, (before or {}).get(name, "")) for name in CRITERIA}
    _, faults = group_keys(given)
    return {name: words for name, words in faults.items() if name in values}


async def written(_: Context, id: str) -> None:
    """Keep the criteria of a group as keys."""
    [row] = await db.fetch(GROUP, id)
    keys = group_keys(row)[0]
    await db.fetch(KEYS, id, *(keys[name] for name in COLUMNS))


async def note_keys(agent_id: str, said: Mapping[str, Any]) -> None:
    """Keep what an agent says of itself as keys."""
    await db.fetch(OF_AGENT, agent_id, *agent_keys(said).values())


async def say(group_id: str, agent_id: str, membership_type: str) -> None:
    """Put an agent into a group, or keep it out, whatever the criteria say."""
    await db.fetch(SAY, group_id, agent_id, membership_type)


async def included(group_id: str) -> frozenset[str]:
    """Return the agents that a person put into a group."""
    return frozenset(row["agent_id"] for row in await db.fetch(INCLUDED, group_id))


async def unsay(group_id: str, agent_id: str) -> bool:
    """Leave it to the criteria again whether an agent belongs; return whether a person had said something."""
    return bool(await db.fetch(UNSAY, group_id, agent_id))
