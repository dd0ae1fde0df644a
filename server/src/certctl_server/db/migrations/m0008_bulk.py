"""How far certificates have followed a change, networks to scan, and what was found by what it is."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect

STEPS = [
    """
    CREATE TABLE follow_up (
        reference TEXT NOT NULL,
        row_id TEXT NOT NULL,
        reached TEXT NOT NULL,
        round BIGINT NOT NULL DEFAULT 0,
        PRIMARY KEY (reference, row_id))
    """,
    """
    CREATE TABLE network_scan_target (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        cidrs TEXT NOT NULL DEFAULT '[]',
        ports TEXT NOT NULL DEFAULT '[443]',
        enabled BOOLEAN NOT NULL DEFAULT true,
        scan_interval_hours BIGINT NOT NULL DEFAULT 6,
        timeout_ms BIGINT NOT NULL DEFAULT 5000,
        last_scan_at TIMESTAMPTZ NULL,
        last_scan_duration_ms BIGINT NULL,
        last_scan_certs_found BIGINT NULL,
        created_at TIMESTAMPTZ NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL)
    """,
    "CREATE UNIQUE INDEX network_scan_target_name ON network_scan_target (name)",
    "CREATE INDEX network_scan_target_created_at_id ON network_scan_target (created_at, id)",
    "CREATE INDEX discovered_certificate_is_ca_last_seen_at_id ON discovered_certificate (is_ca, last_seen_at, id)",
    """
    CREATE INDEX discovered_certificate_key_algorithm_last_seen_at_id
        ON discovered_certificate (key_algorithm, last_seen_at, id)
    """,
]


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return by_code_point(STEPS, dialect)
