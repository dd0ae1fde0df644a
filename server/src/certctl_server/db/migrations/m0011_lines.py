"""Lines before a group of agents that is full, by an index; lanes that leave it to a setting how much they bear."""

from __future__ import annotations

from certctl_server.db.sql import Dialect


def statements(_: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return [
        "CREATE INDEX agent_group_wait_line ON agent_group_wait (group_id, since, agent_id)",
        "CREATE INDEX agent_group_wait_agent_id ON agent_group_wait (agent_id)",
        "CREATE INDEX agent_group_wait_asked_at ON agent_group_wait (asked_at)",
        "ALTER TABLE lane RENAME COLUMN concurrency TO chosen",
        "ALTER TABLE lane ADD COLUMN concurrency BIGINT NULL",
        """
        UPDATE lane SET concurrency = chosen WHERE chosen <> 25
            OR name IN (SELECT 'issuer:' || id FROM issuer WHERE limits IS NOT NULL)
        """,
        "ALTER TABLE lane DROP COLUMN chosen",
    ]
