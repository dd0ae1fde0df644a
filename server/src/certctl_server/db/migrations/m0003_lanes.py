"""Lanes that respect their peer: what was ordered when, circuits, and jobs that are urgent or wait for room."""

from __future__ import annotations

from certctl_server.db.migrations.collation import by_code_point
from certctl_server.db.sql import Dialect

RATES = {"postgres": "(limits::json -> 'rates')::text", "sqlite": "limits ->> 'rates'"}
STEPS = [
    "ALTER TABLE lane DROP COLUMN tokens",
    "ALTER TABLE lane ADD COLUMN rates TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE lane ADD COLUMN room_at TIMESTAMPTZ NULL",
    "ALTER TABLE lane ADD COLUMN fault TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE lane ADD COLUMN faulted TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE lane ADD COLUMN opened BIGINT NOT NULL DEFAULT 0",
    """
    UPDATE lane SET rates = coalesce((
        SELECT {RATES} FROM issuer WHERE 'issuer:' || issuer.id = lane.name AND limits IS NOT NULL), '[]')
    """,
    "ALTER TABLE job ADD COLUMN urgency BIGINT NOT NULL DEFAULT 5",
    "ALTER TABLE job ADD COLUMN urgent_at TIMESTAMPTZ NULL",
    "ALTER TABLE job ADD COLUMN waits_for TEXT NOT NULL DEFAULT ''",
    "UPDATE job SET urgency = priority WHERE priority <> 5",
    # Nothing but claims asks what is due, and those ask for one lane: with two indexes, the wrong one may be taken.
    "DROP INDEX job_due_any",
    "CREATE INDEX job_urgent ON job (urgent_at) WHERE urgent_at IS NOT NULL",
    "CREATE INDEX job_waits ON job (lane, waits_for, priority, due_at) WHERE waits_for <> ''",
    # The running total of what was ordered: between two moments lies the difference of two rows.
    """
    CREATE TABLE budget (
        lane TEXT NOT NULL,
        key TEXT NOT NULL,
        total BIGINT NOT NULL,
        orders BIGINT NOT NULL,
        at TIMESTAMPTZ NOT NULL,
        arrived_at TIMESTAMPTZ NULL,
        until TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (lane, key, total))
    """,
    "CREATE INDEX budget_arrived ON budget (lane, key, arrived_at)",
    "CREATE INDEX budget_on_its_way ON budget (lane, at) WHERE arrived_at IS NULL",
    "CREATE INDEX budget_until ON budget (until)",
]


def statements(dialect: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return by_code_point([each.replace("{RATES}", RATES[dialect]) for each in STEPS], dialect)
