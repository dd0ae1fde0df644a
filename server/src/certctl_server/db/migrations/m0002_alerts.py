"""Alerts of expiring certificates by their due moment, and jobs that wait for a maintenance window."""

from __future__ import annotations

from certctl_server.db.sql import Dialect


def statements(_: Dialect) -> list[str]:
    """Return the step's statements, in order."""
    return [
        "ALTER TABLE certificate ADD COLUMN alert_due_at TIMESTAMPTZ NULL",
        "ALTER TABLE certificate ADD COLUMN alerted TEXT NOT NULL DEFAULT '{}'",
        # Whatever is kept is looked at once: the loop finds out what each of them is due.
        """
        UPDATE certificate SET alert_due_at = updated_at
        WHERE expires_at IS NOT NULL AND archived_at IS NULL AND revoked_at IS NULL
        """,
        "CREATE INDEX certificate_alert_due ON certificate (alert_due_at) WHERE alert_due_at IS NOT NULL",
        "ALTER TABLE job ADD COLUMN opens_at TIMESTAMPTZ NULL",
        "ALTER TABLE job ADD COLUMN window_at TIMESTAMPTZ NULL",
        "CREATE INDEX job_window ON job (window_at) WHERE window_at IS NOT NULL",
    ]
