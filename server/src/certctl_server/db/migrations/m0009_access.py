"""Logins: cookies that keys were exchanged for, as digests, each of which ends with its key."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect

STEPS = [
    """
    CREATE TABLE login (
        digest TEXT PRIMARY KEY,
        key_id TEXT NULL REFERENCES api_key (id) ON DELETE RESTRICT,
        proof TEXT NOT NULL DEFAULT '',
        created_at TIMESTAMPTZ NOT NULL,
        expires_at TIMESTAMPTZ NOT NULL)
    """,
    "CREATE INDEX login_key_id ON login (key_id)",
    "CREATE INDEX login_expires_at ON login (expires_at)",
]


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return by_code_point(STEPS, dialect)
