"""Order certificates: jobs of type Issuance or Renewal, one per agent that keeps a key of its own.

Step 4 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from certctl_core.job import JobState, JobType

from certctl_server import db
from certctl_server.audit.record import Actor
from certctl_server.certificates.status import settle
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, lane_of_issuer, order_place
from certctl_server.jobs.state import NORMAL, move
from certctl_server.jobs.tables import Job

WANTED = db.Sql(
    """
    SELECT DISTINCT c.id, c.issuer_id, c.created_at, t.agent_id, p.max_retries,
        (p.requires_approval OR coalesce(f.requires_approval, false)) AS approval
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id
        LEFT JOIN certificate_profile f ON f.id = c.certificate_profile_id
        LEFT JOIN certificate_target m ON m.certificate_id = c.id
        LEFT JOIN target t ON t.id = m.target_id AND t.enabled
    WHERE c.id IN ({ids:$1}) ORDER BY c.created_at, c.id, t.agent_id
    """
)
HOMELESS = "no target is mapped, so no agent makes a key: map a target, or renew with csr_pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for, of any number of certificates at once."""

    type: JobType
    force: bool = False
    """Renew although it is revoked; a new key is then required."""
    csr_pem: str = ""
    """A checked CSR made by the caller, for one certificate; its key stays with the caller."""
    csr_sha256: str = ""
    agent_id: str = ""
    """Only this agent's; empty: each agent that has a target of the certificate."""
    priority: int = NORMAL
    request: Mapping[str, Any] = field(default_factory=dict)


async def order(ids: Sequence[str], asked: Order, actor: Actor) -> list[NewJob]:
    """Make the jobs for ``asked`` and send them on their way; certificates that have one open get none.

    Everything is written in one transaction: jobs, their first moves, the certificates' status, audit rows.
    """
    async with db.transaction():
        rows = await db.fetch(WANTED, json.dumps(list(ids)))
        made = await create(_jobs(rows, asked), actor)
        await _send_on([job for job in made if job.status is JobState.PENDING], asked, actor)
        await settle({str(job.certificate_id) for job in made}, actor=actor)
    return made


def _jobs(rows: list[db.Row], asked: Order) -> list[NewJob]:
    agents: dict[str, list[str | None]] = defaultdict(list)
    for row in rows:
        agents[row["id"]].append(row["agent_id"])
    jobs = []
    for row in rows:
        # A certificate that has one target with an agent has no job without one; a caller's CSR has no agent.
        agent_id = None if asked.csr_pem else row["agent_id"]
        if agent_id is None and not asked.csr_pem and any(agents[row["id"]]):
            continue
        if asked.agent_id and agent_id != asked.agent_id:
            continue
        status = JobState.AWAITING_APPROVAL if row["approval"] else JobState.PENDING
        jobs.append(
            NewJob(
                type=asked.type,
                place=order_place(row["id"], agent_id),
                status=status,
                certificate_id=row["id"],
                agent_id=agent_id,
                issuer_id=row["issuer_id"],
                lane=lane_of_issuer(row["issuer_id"]),
                priority=asked.priority,
                max_attempts=max(1, row["max_retries"]),
                request={**asked.request, "force": asked.force},
            )
        )
    return list({job.place: job for job in jobs}.values())


async def _send_on(jobs: Sequence[NewJob], asked: Order, actor: Actor) -> None:
    if asked.csr_pem:
        await give_csr([job.id for job in jobs], asked.csr_pem, asked.csr_sha256)
        return
    await await_csr([job.id for job in jobs if job.agent_id], actor)
    homeless = [job.id for job in jobs if not job.agent_id]
    await await_csr(homeless, actor, last_error=HOMELESS)


async def await_csr(ids: Sequence[str], actor: Actor, **facts: Any) -> None:
    """Offer orders to their agents, who will answer with a CSR."""
    if not ids:
        return
    now = db.now()
    moved = await move(
        Job.id.is_in(list(ids)), JobState.PENDING, JobState.AWAITING_CSR, actor=actor, offer_at=now, **facts
    )
    for agent_id in {row["agent_id"] for row in moved if row["agent_id"]}:
        bell.ring_agent(agent_id)


async def give_csr(ids: Sequence[str], csr_pem: str, csr_sha256: str) -> None:
    """Store a CSR with orders that wait for one, and let a worker have them."""
    query = Job.update(csr_pem=csr_pem, csr_sha256=csr_sha256, due_at=db.now(), offer_at=None, last_error="")
    rows = await query.where(Job.id.is_in(list(ids)), Job.csr_sha256 == "").returning(Job.lane)
    for lane in {row["lane"] for row in rows}:
        bell.ring(lane)
