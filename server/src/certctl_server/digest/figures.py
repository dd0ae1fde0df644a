"""What the digest says, counted over everything there is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from certctl_core.job import JobState

from certctl_server import db
from certctl_server.agents.tables import SCANNER
from certctl_server.tally import statuses

AHEAD = BEHIND = timedelta(days=30)
ROWS = 100
"""As many certificates are named; all are counted."""
_EXPIRING = """FROM certificate c JOIN owner o ON o.id = c.owner_id
    WHERE c.expires_at > $1 AND c.expires_at <= $2 AND c.archived_at IS NULL AND c.revoked_at IS NULL"""
EXPIRING = db.Sql(
    f"""SELECT c.id, c.name, c.common_name, c.sans, c.status, c.expires_at, o.name AS owner {_EXPIRING}
    ORDER BY c.expires_at, c.id LIMIT $3"""
)
COUNT = db.Sql(f"SELECT count(*) AS n {_EXPIRING}")
# What failed and is tried again is found by that moment, everything else that ended by when it did.
JOBS = db.Sql(
    """
    SELECT status, count(*) AS n FROM (
        SELECT status, type, completed_at FROM job WHERE kept_since > $1
        UNION ALL SELECT status, type, completed_at FROM job WHERE next_retry_at IS NOT NULL) ended
    WHERE status IN ('Completed', 'Failed') AND completed_at > $1
        AND type IN ('Issuance', 'Renewal', 'Deployment', 'Validation')
    GROUP BY status
    """
)
VERSIONS = db.Sql(
    f"""
    SELECT version, count(*) AS n FROM agent WHERE retired_at IS NULL AND id <> '{SCANNER}'
    GROUP BY version ORDER BY count(*) DESC, version
    """  # noqa: S608  # ours
)


@dataclass(frozen=True, slots=True)
class Expiring:
    """A certificate whose end is near."""

    id: str
    name: str
    names: Sequence[str]
    """Common name and SANs, each once."""
    owner: str
    status: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Digest:
    """How the installation is."""

    made_at: datetime
    certificates: Mapping[str, int]
    """By status; every status is there."""
    agents: Mapping[str, int]
    """By status; every status is there."""
    versions: Sequence[tuple[str, int]]
    """Agents by version, the most frequent first."""
    completed: int
    """Jobs of the last 30 days."""
    failed: int
    """Likewise."""
    expiring: Sequence[Expiring]
    """The first of those that end within 30 days, soonest first."""
    expiring_total: int
    """All of them."""


async def digest() -> Digest:
    """Return how the installation is now."""
    now, found = db.now(), await statuses()
    jobs = {row["status"]: int(row["n"]) for row in await db.fetch(JOBS, now - BEHIND)}
    [counted] = await db.fetch(COUNT, now, now + AHEAD)
    return Digest(
        made_at=now,
        certificates=found.certificates,
        agents=found.agents,
        versions=[(row["version"], int(row["n"])) for row in await db.fetch(VERSIONS)],
        completed=jobs.get(JobState.COMPLETED, 0),
        failed=jobs.get(JobState.FAILED, 0),
        expiring=[_expiring(row) for row in await db.fetch(EXPIRING, now, now + AHEAD, ROWS)],
        expiring_total=int(counted["n"]),
    )


def _expiring(row: db.Row) -> Expiring:
    names = dict.fromkeys(name for name in (row["common_name"], *json.loads(row["sans"])) if name)
    same = {name: row[name] for name in ("id", "name", "owner", "status", "expires_at")}
    return Expiring(names=list(names), **same)
