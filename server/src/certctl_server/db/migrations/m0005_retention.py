"""What retention goes by, when a loop that does not come back counts as late, and intents by their age."""

from __future__ import annotations

from certctl_server.db.sql import Dialect


def statements(_: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return [
        "ALTER TABLE job ADD COLUMN kept_since TIMESTAMPTZ NULL",
        """
        UPDATE job SET kept_since = coalesce(completed_at, created_at)
        WHERE place IS NULL AND status IN ('Completed', 'Cancelled', 'Failed')
        """,
        "CREATE INDEX job_kept_since ON job (kept_since) WHERE kept_since IS NOT NULL",
        "CREATE INDEX kept_csr_until ON kept_csr (until)",
        "ALTER TABLE loop_beat ADD COLUMN late_at TIMESTAMPTZ NULL",
        "CREATE INDEX intent_created_at_part ON intent (created_at) WHERE status = 'open'",
    ]
