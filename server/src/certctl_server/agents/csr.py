"""A CSR from an agent: checked against the order, stored with the job, signed by nobody here."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

from certctl_core.csr import CheckedCsr, CsrError, read_csr
from certctl_core.errors import RejectedError
from certctl_core.job import JobState, JobType

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.certificates.orders import Order, give_csr, order
from certctl_server.errors import invalid, not_found
from certctl_server.jobs.issue import accept, ordered

PATIENCE = timedelta(seconds=10)
PACE = 0.05
WAITING = db.Sql(
    """
    SELECT id, status, certificate_id, csr_sha256, version_id FROM job
    WHERE agent_id = $1 AND certificate_id = $2 AND type IN ('Issuance', 'Renewal')
    ORDER BY CASE WHEN place IS NOT NULL THEN 0 ELSE 1 END, created_at DESC, id DESC LIMIT 5
    """
)
ALL_WAITING = db.Sql(
    """
    SELECT j.id, j.status, j.certificate_id, j.csr_sha256, j.version_id, c.common_name, c.sans
    FROM job j JOIN certificate c ON c.id = j.certificate_id
    WHERE j.agent_id = $1 AND j.status = 'AwaitingCSR' ORDER BY j.created_at, j.id LIMIT 500
    """
)
SERVES = db.Sql(
    """
    SELECT 1 AS yes FROM certificate_target m JOIN target t ON t.id = m.target_id
    WHERE m.certificate_id = $2 AND t.agent_id = $1 LIMIT 1
    """
)
STATE = db.Sql("SELECT status, version_id, last_error FROM job WHERE id = $1")
SAY = db.Sql("UPDATE job SET last_error = $2 WHERE id = $1 AND status = 'AwaitingCSR'")


async def submit(agent_id: str, csr_pem: str, certificate_id: str, actor: Actor) -> str:
    """Take a CSR; return ``csr_signed`` if the certificate came of it within ten seconds, else ``csr_accepted``.

    No database connection is held while waiting.

    Raises:
        Refused: 400 for a CSR that does not fit its order, 404 where the agent has none.
    """
    try:
        csr = read_csr(csr_pem)
    except CsrError as exc:
        raise invalid({"csr_pem": str(exc)}) from exc
    job = await _job(agent_id, certificate_id, csr, actor)
    if job["csr_sha256"] == csr.sha256:
        return await _outcome(job["id"])
    await _check(job, csr, actor)
    async with db.transaction():
        await give_csr([job["id"]], csr.pem, csr.sha256)
        told = {"certificate_id": job["certificate_id"], "csr_sha256": csr.sha256}
        await record([Event(actor, "csr_submitted", "job", job["id"], told)])
    return await _outcome(job["id"])


async def _job(agent_id: str, certificate_id: str, csr: CheckedCsr, actor: Actor) -> db.Row:
    """The order that the CSR answers: of this certificate, else the one whose names are the CSR's, else a new one."""
    if not certificate_id:
        fitting = [row for row in await db.fetch(ALL_WAITING, agent_id) if _names(row) == _of(csr)]
        if len(fitting) != 1:
            raise invalid({"certificate_id": "name the certificate: the CSR fits no order of this agent, or several"})
        return fitting[0]
    rows = await db.fetch(WAITING, agent_id, certificate_id)
    for row in rows:
        if row["status"] == JobState.AWAITING_CSR or row["csr_sha256"] == csr.sha256:
            return row
    if not await db.fetch(SERVES, agent_id, certificate_id):
        raise not_found("Certificate")
    made = await order([certificate_id], Order(type=JobType.ISSUANCE, agent_id=agent_id), actor)
    mine = [job.id for job in made if job.agent_id == agent_id]
    rows = [row for row in await db.fetch(WAITING, agent_id, certificate_id) if row["id"] in mine]
    if not rows:
        raise invalid({"certificate_id": "no order of this certificate waits for a CSR of this agent"})
    return rows[0]


def _names(row: db.Row) -> frozenset[str]:
    return frozenset({*json.loads(row["sans"]), row["common_name"]} - {""})


def _of(csr: CheckedCsr) -> frozenset[str]:
    return frozenset(map(str, csr.names))


async def _check(job: db.Row, csr: CheckedCsr, actor: Actor) -> None:
    try:
        await accept(csr.pem, job["certificate_id"], await ordered(job["certificate_id"]))
    except (CsrError, RejectedError) as exc:
        async with db.transaction():
            await db.fetch(SAY, job["id"], f"the agent's CSR was refused: {exc}")
            await record([Event(actor, "csr_refused", "job", job["id"], {"reason": str(exc)})])
        raise invalid({"csr_pem": str(exc)}) from exc


async def _outcome(job_id: str) -> str:
    until = db.now() + PATIENCE
    while db.now() < until:
        [row] = await db.fetch(STATE, job_id)
        if row["version_id"]:
            return "csr_signed"
        if row["status"] in {JobState.FAILED, JobState.CANCELLED}:
            break
        await asyncio.sleep(PACE)
    return "csr_accepted"
