"""How many there are of what, without counting: triggers keep it in the transaction of each change.

See docs/decisions/016-tally.md and ``db/migrations/m0007_tally.py``. Who reads the view ``tally_now`` in one statement
gets what a full count in that statement would. On PostgreSQL transactions leave what they add and take away in
``tally_delta``, and the loop here folds it into ``tally``; on SQLite, which has one writer, they change ``tally``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
from certctl_core.certificate import Status
from certctl_core.job import INTERNAL, OPEN, JobState

from certctl_server import db
from certctl_server.agents.health import AgentStatus
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.leader import Leadership

MOST = 20_000
"""Changes that are folded in one transaction: none that takes long, however many have gathered while nobody led."""
ROW = {"dimension": "text", "value": "text", "detail": "text", "n": "bigint"}
KEY = "dimension, value, detail"
_by_status = db.once(
    db.Sql(
        """
        SELECT dimension, value, detail, CAST(sum(n) AS BIGINT) AS n FROM tally_now
        WHERE dimension IN ('certificate.status', 'job', 'agent') GROUP BY dimension, value, detail
        """
    )
)
WAITS = db.Sql(
    postgres="SELECT EXISTS (SELECT 1 FROM tally_delta) OR EXISTS (SELECT 1 FROM tally WHERE n = 0) AS waits",
    sqlite="SELECT EXISTS (SELECT 1 FROM tally WHERE n = 0) AS waits",
)
FOLD = db.Sql(
    postgres=f"""
    WITH gone AS (
        DELETE FROM tally_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM tally_delta LIMIT $1)) RETURNING {KEY}, n),
    folded AS (
        INSERT INTO tally ({KEY}, n) SELECT {KEY}, sum(n) FROM gone GROUP BY {KEY} HAVING sum(n) <> 0
        ON CONFLICT ({KEY}) DO UPDATE SET n = tally.n + excluded.n)
    SELECT count(*) AS folded FROM gone
    """,  # noqa: S608  # ours
    sqlite="SELECT 0 AS folded, $1 AS most",
)
FORGET = db.Sql("DELETE FROM tally WHERE n = 0")
# Both sides as they are at one moment: what is written meanwhile changes both alike.
AMISS = db.Sql(
    f"""
    SELECT {KEY}, CAST(sum(n) AS BIGINT) AS n FROM (
        SELECT {KEY}, n FROM tally_counted UNION ALL SELECT {KEY}, -n FROM tally_now) AS sides
    GROUP BY {KEY} HAVING sum(n) <> 0 ORDER BY {KEY}
    """  # noqa: S608  # ours
)
LOCK = db.Sql(postgres="SELECT pg_advisory_xact_lock(7381953)", sqlite="SELECT 1 AS locked")
CORRECT = {
    "postgres": db.insert_rows("tally_delta", ROW),
    "sqlite": db.insert_rows("tally", ROW, f"ON CONFLICT ({KEY}) DO UPDATE SET n = tally.n + excluded.n"),
}


@dataclass(frozen=True, slots=True)
class Statuses:
    """How many there are in each status, at one moment."""

    certificates: Mapping[str, int]
    """Every status is there."""
    agents: Mapping[str, int]
    """Those that retired, and the server's own, left out."""
    jobs: Mapping[str, int]
    """Internal ones left out."""

    @property
    def pending_jobs(self) -> int:
        """How many jobs wait for anybody or run."""
        return sum(self.jobs[state] for state in OPEN)


async def statuses() -> Statuses:
    """Return how many certificates, agents and jobs there are now, by status."""
    certificates, agents, jobs = ({str(state): 0 for state in each} for each in (Status, AgentStatus, JobState))
    for row in await _by_status(()):
        match row["dimension"]:
            case "job" if row["value"] not in INTERNAL:
                jobs[row["detail"]] += row["n"]
            case "agent" if not row["detail"]:
                agents[row["value"]] = row["n"]
            case "certificate.status":
                certificates[row["value"]] = row["n"]
    return Statuses(certificates, agents, jobs)


async def fold(leadership: Leadership) -> datetime | None:
    """The loop ``tally folder``: add up what gathered, forget what there is none of; return whether more waits.

    Raises:
        NotLeading: another process does it now; nothing was written.
    """
    [row] = await db.fetch(WAITS)
    if not row["waits"]:
        return None
    async with leadership.leading():
        [done] = await db.fetch(FOLD, MOST)
        await db.fetch(FORGET)
    return db.now() if done["folded"] == MOST else None


async def amiss() -> list[db.Row]:
    """Compare with a full count; return by how much each count is too low (``n``), and nothing if all are exact."""
    return await db.fetch(AMISS)


async def recount() -> list[db.Row]:
    """Correct what a full count finds wrong, while everybody goes on; return what ``amiss`` found."""
    async with db.transaction():
        await db.fetch(LOCK)
        found = await amiss()
        if found:
            await db.fetch(CORRECT[db.dialect()], msgspec.json.encode(found).decode())
            off = {"/".join(filter(None, (row["dimension"], row["value"], row["detail"]))): row["n"] for row in found}
            await record([Event(SYSTEM, "totals_corrected", "database", "tally", {"by": off})])
    return found
