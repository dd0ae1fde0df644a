"""What is over long enough is forgotten: finished jobs with their intents, CSRs that nobody came for, old beats.

Audit rows are no business of retention: they leave by an archive alone (spec/api.md 10).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.leader import Leadership

PASS = 1000
"""Jobs looked at in one transaction."""
FORGOTTEN_LOOP = timedelta(days=7)
# A job that a person tries again just now is left to them.
_OVER = "SELECT id FROM job WHERE kept_since <= $1 ORDER BY kept_since LIMIT $2"
OVER = db.Sql(postgres=f"{_OVER} FOR UPDATE SKIP LOCKED", sqlite=_OVER)
# Who reads a job that is over: settle the newest order of each agent, a target the one that changed it last, whoever
# finds a certificate that nobody ordered the intents that came to nobody knows what, and a person what the CA was not
# told.
_NEEDED = """
    SELECT j.id FROM job j WHERE j.id IN ({ids:$1}) AND (
        EXISTS (SELECT 1 FROM intent i WHERE i.job_id = j.id AND i.status IN ('open', 'unresolved'))
        OR EXISTS (SELECT 1 FROM certificate_target m
            WHERE m.certificate_id = j.certificate_id AND m.target_id = j.target_id AND m.last_job_id = j.id)
        OR (j.type = 'Revocation' AND (j.status = 'Failed' OR (j.status = 'Cancelled' AND EXISTS (
            SELECT 1 FROM revocation r WHERE r.certificate_id = j.certificate_id AND r.state = 'pending'))))
        OR (j.type IN ('Issuance', 'Renewal') AND j.status <> 'Cancelled' AND NOT EXISTS (
            SELECT 1 FROM job n WHERE n.certificate_id = j.certificate_id AND n.type IN ('Issuance', 'Renewal')
                AND n.status <> 'Cancelled' AND coalesce(n.agent_id, '') = coalesce(j.agent_id, '')
                AND (n.created_at, n.id) > (j.created_at, j.id))))
    """
# The plus takes the index on type out of SQLite's choice, as in certificates/status.py.
NEEDED = db.Sql(postgres=_NEEDED, sqlite=_NEEDED.replace("AND n.type", "AND +n.type"))
# Looked at again when as long has passed, so that what stays does not stand in the way of what goes.
KEEP_ON = db.Sql("UPDATE job SET kept_since = {now} WHERE id IN ({ids:$1})")
INTENTS = db.Sql("DELETE FROM intent WHERE job_id IN ({ids:$1})")
JOBS = db.Sql("DELETE FROM job WHERE id IN ({ids:$1})")
CSRS = db.Sql("DELETE FROM kept_csr WHERE until <= {now} RETURNING csr_sha256")
BEATS = db.Sql("DELETE FROM loop_beat WHERE late_at <= $1 RETURNING name")


async def forget(leadership: Leadership, after: timedelta) -> datetime | None:
    """Delete what ended more than ``after`` ago, jobs in bounded numbers; return when there is more to do.

    Zero keeps jobs for ever. What somebody still reads stays, however old.

    Raises:
        NotLeading: another process does it now; nothing was written.
    """
    async with leadership.leading():
        seen, jobs = await _jobs(db.now() - after) if after else (0, 0)
        csrs, beats = len(await db.fetch(CSRS)), len(await db.fetch(BEATS, db.now() - FORGOTTEN_LOOP))
        if jobs or csrs or beats:
            told = {"jobs": jobs, "csrs": csrs, "loops": beats, "older_than_seconds": int(after.total_seconds())}
            await record([Event(SYSTEM, "retention_applied", "retention", "jobs", told)])
    return db.now() if seen == PASS else None


async def _jobs(before: datetime) -> tuple[int, int]:
    """How many were looked at, and how many of them are gone."""
    ids = {row["id"] for row in await db.fetch(OVER, before, PASS)}
    if not ids:
        return 0, 0
    needed = {row["id"] for row in await db.fetch(NEEDED, json.dumps(sorted(ids)))}
    gone = json.dumps(sorted(ids - needed))
    await db.fetch(KEEP_ON, json.dumps(sorted(needed)))
    await db.fetch(INTENTS, gone)
    await db.fetch(JOBS, gone)
    return len(ids), len(ids - needed)
