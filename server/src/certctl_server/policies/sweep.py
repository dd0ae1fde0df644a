"""The loop ``policy sweep``: every certificate is held against the rules, for what the clock or a new rule changes."""

from __future__ import annotations

from datetime import datetime

from certctl_server import db
from certctl_server.leader import Leadership
from certctl_server.policies.judge import SUBJECT, refresh

LOOP = "policy sweep"
CHUNK = 2000
"""Certificates in one transaction, and one stretch of computing."""
AFTER = db.Sql(
    f"""
    SELECT {SUBJECT} FROM (
        SELECT * FROM certificate WHERE id > $1 AND archived_at IS NULL ORDER BY id LIMIT $2) AS c
    JOIN issuer i ON i.id = c.issuer_id ORDER BY c.id
    """  # noqa: S608  # ours
)


async def sweep(leadership: Leadership) -> datetime | None:
    """Bring the violations of all certificates up to the rules; what is as it was is only read."""
    last = ""
    while True:
        async with leadership.leading():
            rows = await db.fetch(AFTER, last, CHUNK)
            await refresh(rows)
        if len(rows) < CHUNK:
            return None
        last = rows[-1]["id"]
