"""Groups of agents, how a new version spreads over its targets, and how many changes a group bears at once."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect

GROUPS = [
    """
    CREATE TABLE agent_group (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        description TEXT NOT NULL DEFAULT '',
        match_os TEXT NOT NULL DEFAULT '',
        match_architecture TEXT NOT NULL DEFAULT '',
        match_ip_cidr TEXT NOT NULL DEFAULT '',
        match_version TEXT NOT NULL DEFAULT '',
        enabled BOOLEAN NOT NULL DEFAULT true,
        max_concurrent_deployments BIGINT NULL,
        has_criteria BOOLEAN NOT NULL DEFAULT false,
        os_key TEXT NOT NULL DEFAULT '',
        architecture_key TEXT NOT NULL DEFAULT '',
        ip_from TEXT NOT NULL DEFAULT '',
        ip_until TEXT NOT NULL DEFAULT '',
        version_from TEXT NOT NULL DEFAULT '',
        version_until TEXT NOT NULL DEFAULT '',
        version_not TEXT NOT NULL DEFAULT '[]',
        created_at TIMESTAMPTZ NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL)
    """,
    "CREATE UNIQUE INDEX agent_group_name ON agent_group (name)",
    "CREATE INDEX agent_group_created_at_id ON agent_group (created_at, id)",
    "CREATE INDEX agent_group_capped ON agent_group (id) WHERE max_concurrent_deployments IS NOT NULL",
    """
    CREATE TABLE agent_group_member (
        group_id TEXT NOT NULL REFERENCES agent_group (id) ON DELETE CASCADE,
        agent_id TEXT NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
        membership_type TEXT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (group_id, agent_id))
    """,
    "CREATE INDEX agent_group_member_agent_id ON agent_group_member (agent_id)",
    # Agents that were told to wait for room among the changes of a group, in the order in which they came.
    """
    CREATE TABLE agent_group_wait (
        group_id TEXT NOT NULL REFERENCES agent_group (id) ON DELETE CASCADE,
        agent_id TEXT NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
        since TIMESTAMPTZ NOT NULL,
        asked_at TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (group_id, agent_id))
    """,
    "ALTER TABLE agent ADD COLUMN os_key TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE agent ADD COLUMN architecture_key TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE agent ADD COLUMN ip_key TEXT NULL",
    "ALTER TABLE agent ADD COLUMN version_key TEXT NULL",
    "ALTER TABLE renewal_policy ADD COLUMN agent_group_id TEXT NULL REFERENCES agent_group (id) ON DELETE RESTRICT",
    "CREATE INDEX renewal_policy_agent_group_id ON renewal_policy (agent_group_id)",
    "ALTER TABLE job ADD COLUMN offered_until TIMESTAMPTZ NULL",
    "CREATE INDEX job_offered ON job (offered_until) WHERE offered_until IS NOT NULL",
]
ROLLOUTS = [
    """
    CREATE TABLE rollout (
        certificate_id TEXT PRIMARY KEY REFERENCES certificate (id) ON DELETE RESTRICT,
        status TEXT NOT NULL,
        waves TEXT NOT NULL,
        soak_seconds BIGINT NOT NULL,
        max_failures BIGINT NOT NULL,
        wave BIGINT NOT NULL DEFAULT 0,
        passed_at TIMESTAMPTZ NULL,
        due_at TIMESTAMPTZ NULL,
        reason TEXT NOT NULL DEFAULT '',
        started_at TIMESTAMPTZ NOT NULL)
    """,
    "CREATE INDEX rollout_due_at ON rollout (due_at) WHERE due_at IS NOT NULL",
    # It goes with its mapping: who is no target any more is in no rollout.
    """
    CREATE TABLE rollout_target (
        certificate_id TEXT NOT NULL REFERENCES rollout (certificate_id) ON DELETE CASCADE,
        target_id TEXT NOT NULL,
        version_id TEXT NOT NULL,
        previous_version_id TEXT NULL,
        wave BIGINT NULL,
        PRIMARY KEY (certificate_id, target_id),
        FOREIGN KEY (certificate_id, target_id) REFERENCES certificate_target (certificate_id, target_id)
            ON DELETE CASCADE)
    """,
]


def statements(dialect: Dialect) -> list[str]:
    """Return what makes the tables, in order."""
    return by_code_point(GROUPS + ROLLOUTS, dialect)
