"""Rules that certificates are held against, and what breaks them."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect

STEPS = [
    """
    CREATE TABLE policy_rule (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        type TEXT NOT NULL,
        config TEXT NOT NULL DEFAULT '{}',
        severity TEXT NOT NULL DEFAULT 'Warning',
        enabled BOOLEAN NOT NULL DEFAULT true,
        created_at TIMESTAMPTZ NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL)
    """,
    "CREATE UNIQUE INDEX policy_rule_name ON policy_rule (name)",
    "CREATE INDEX policy_rule_created_at_id ON policy_rule (created_at, id)",
    "CREATE INDEX policy_rule_enabled ON policy_rule (id) WHERE enabled",
    """
    CREATE TABLE policy_violation (
        id TEXT PRIMARY KEY,
        certificate_id TEXT NOT NULL REFERENCES certificate (id) ON DELETE RESTRICT,
        rule_id TEXT NOT NULL REFERENCES policy_rule (id) ON DELETE CASCADE,
        message TEXT NOT NULL DEFAULT '',
        severity TEXT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL,
        resolved_at TIMESTAMPTZ NULL)
    """,
    # A certificate breaks a rule once, however often that is seen.
    "CREATE UNIQUE INDEX policy_violation_open ON policy_violation (certificate_id, rule_id) WHERE resolved_at IS NULL",
    "CREATE INDEX policy_violation_rule_id_created_at_id ON policy_violation (rule_id, created_at, id)",
    "CREATE INDEX policy_violation_certificate_id ON policy_violation (certificate_id)",
]


def statements(dialect: Dialect) -> list[str]:
    """Return what makes the tables, in order."""
    return by_code_point(STEPS, dialect)
