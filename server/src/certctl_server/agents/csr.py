"""A CSR from an agent: checked against the order, stored with the job, signed by nobody here."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import timedelta
from typing import Literal, TypeAlias

from certctl_core.csr import CheckedCsr, CsrError, match_names, read_csr
from certctl_core.errors import RejectedError
from certctl_core.job import JobState, JobType
from certctl_core.names import normalise_sans

from certctl_server import db
from certctl_server.agents.health import is_plain
from certctl_server.audit.record import Actor, audited
from certctl_server.certificates import kept
from certctl_server.certificates.orders import Order, give_csr, place
from certctl_server.errors import conflict, invalid, not_found
from certctl_server.jobs.issue import accept, ordered
from certctl_server.policies.judge import refused

PATIENCE = timedelta(seconds=10)
PACES = (0.05, 0.5)
"""Seconds between looks for the outcome: at first and in the end."""
WAITING = db.Sql(
    """
    SELECT id, status, certificate_id, csr_sha256, version_id, place FROM job
    WHERE agent_id = $1 AND certificate_id = $2 AND type IN ('Issuance', 'Renewal')
    ORDER BY CASE WHEN place IS NOT NULL THEN 0 ELSE 1 END, created_at DESC, id DESC LIMIT 5
    """
)
ALL_WAITING = db.Sql(
    """
    SELECT j.id, j.status, j.certificate_id, j.csr_sha256, j.version_id, c.common_name, c.sans
    FROM job j JOIN certificate c ON c.id = j.certificate_id
    WHERE j.agent_id = $1 AND j.status = 'AwaitingCSR' AND j.csr_sha256 = '' ORDER BY j.created_at, j.id LIMIT 500
    """
)
SAME = db.Sql(
    """
    SELECT id, status, certificate_id, csr_sha256, version_id FROM job WHERE agent_id = $1 AND csr_sha256 = $2
    ORDER BY created_at DESC, id DESC LIMIT 1
    """
)
SERVES = db.Sql(
    """
    SELECT c.revoked_at, c.archived_at FROM certificate_target m JOIN target t ON t.id = m.target_id
        JOIN certificate c ON c.id = m.certificate_id
    WHERE m.certificate_id = $2 AND t.agent_id = $1 AND t.enabled LIMIT 1
    """
)
HELD_KEY = db.Sql(
    """
    INSERT INTO agent_key (agent_id, certificate_id, public_key_sha256) VALUES ($1, $2, $3)
    ON CONFLICT (agent_id, certificate_id) DO UPDATE SET public_key_sha256 = excluded.public_key_sha256
    """
)
Outcome: TypeAlias = Literal["csr_signed", "csr_accepted"]
STATES = db.Sql("SELECT id, status, version_id, last_error FROM job WHERE id IN ({ids:$1})")
SAY = db.Sql("UPDATE job SET last_error = $2 WHERE id = $1 AND status = 'AwaitingCSR'")


async def submit(agent: db.Row, csr_pem: str, certificate_id: str, actor: Actor) -> Outcome:
    """Take a CSR; return ``csr_signed`` if the certificate came of it within ten seconds, else ``csr_accepted``.

    No database connection is held while waiting.

    Raises:
        Refused: 400 for a CSR that does not fit its order, 404 where the agent has none, 409 where the order has one.
    """
    try:
        csr = read_csr(csr_pem)
    except CsrError as exc:
        raise invalid({"csr_pem": str(exc)}) from exc
    if (job := await _job(agent["id"], certificate_id, csr, actor)) is None:
        async with audited(actor, "csr_kept", "agent", agent["id"], {"csr_sha256": csr.sha256}):
            await kept.keep(agent["id"], csr)
        return "csr_accepted"
    if is_plain(agent):
        # Whatever becomes of the CSR: its key is the one in the agent's file by now.
        await db.fetch(HELD_KEY, agent["id"], job["certificate_id"], csr.public_key_sha256)
    if job["csr_sha256"] != csr.sha256:
        await _check(job, csr, actor)
        await _give(job, csr, actor)
    return await _outcome(job["id"])


async def _give(job: db.Row, csr: CheckedCsr, actor: Actor) -> None:
    told = {"certificate_id": job["certificate_id"], "csr_sha256": csr.sha256}
    async with audited(actor, "csr_submitted", "job", job["id"], told):
        if not await give_csr([job["id"]], csr.pem, csr.sha256):
            raise conflict("The order has a CSR already, or is over")


async def _job(agent_id: str, certificate_id: str, csr: CheckedCsr, actor: Actor) -> db.Row | None:
    """The order that the CSR answers: of this certificate, else the one whose names are the CSR's, else a new one.

    None: it names no certificate and fits no order, or several.
    """
    if not certificate_id:
        same = await db.fetch(SAME, agent_id, csr.sha256)
        fitting = same or [row for row in await db.fetch(ALL_WAITING, agent_id) if _named(row, csr)]
        return fitting[0] if len(fitting) == 1 else None
    rows = await db.fetch(WAITING, agent_id, certificate_id)
    sent = [row for row in rows if row["csr_sha256"] == csr.sha256]
    # One that comes again because its answer was lost is no answer to the order that is newer.
    known = [row for row in sent if row["version_id"] or row["place"]]
    waiting = [row for row in rows if row["status"] == JobState.AWAITING_CSR and not row["csr_sha256"]]
    if found := [*known, *waiting, *sent]:
        return found[0]
    if not (served := await db.fetch(SERVES, agent_id, certificate_id)):
        raise not_found("Certificate")
    if served[0]["revoked_at"] or served[0]["archived_at"] or any(row["place"] for row in rows):
        raise conflict("No order of this certificate waits for a CSR of this agent, and none can be made now")
    try:
        await accept(csr.pem, certificate_id, await ordered(certificate_id, forced=True))
    except (CsrError, RejectedError) as exc:
        raise invalid({"csr_pem": str(exc)}) from exc
    asked = Order(type=JobType.ISSUANCE, agent_id=agent_id)
    placed = await place([certificate_id], asked, actor)
    if placed.forbidden:
        raise refused(placed.forbidden[certificate_id])
    made = [job.id for job in placed.jobs]
    for row in await db.fetch(WAITING, agent_id, certificate_id):
        if row["id"] in made and row["status"] == JobState.AWAITING_CSR:
            return row
    raise conflict("The order of this certificate waits for an approval")


def _named(row: db.Row, csr: CheckedCsr) -> bool:
    sans = json.loads(row["sans"])
    names = normalise_sans([row["common_name"], *sans] if row["common_name"] else sans)
    with suppress(CsrError):
        match_names(csr, row["common_name"], names)
        return True
    return False


async def _check(job: db.Row, csr: CheckedCsr, actor: Actor) -> None:
    try:
        await accept(csr.pem, job["certificate_id"], await ordered(job["certificate_id"], forced=True))
    except (CsrError, RejectedError) as exc:
        async with audited(actor, "csr_refused", "job", job["id"], {"reason": str(exc)}):
            await db.fetch(SAY, job["id"], f"the agent's CSR was refused: {exc}")
        raise invalid({"csr_pem": str(exc)}) from exc


async def _states(ids: list[str]) -> list[db.Row]:
    found = {row["id"]: row for row in await db.fetch(STATES, json.dumps(ids))}
    return [found[id] for id in ids]


_state = db.Together(_states, apart=True)


async def _outcome(job_id: str) -> Outcome:
    until = time.monotonic() + PATIENCE.total_seconds()
    pace, slowest = PACES
    while time.monotonic() < until:
        row = await _state(job_id)
        if row["version_id"]:
            return "csr_signed"
        if row["status"] in {JobState.FAILED, JobState.CANCELLED}:
            break
        await asyncio.sleep(pace)
        pace = min(pace * 1.5, slowest)
    return "csr_accepted"
