"""Order certificates: jobs of type Issuance or Renewal, one per agent that keeps a key of its own, none against a rule.

Step 4 of the main flow (docs/main-flow.md).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from certctl_core.job import JobState, JobType
from certctl_core.policy import Act
from certctl_core.renewal import alert_at, renew_due_at, spread_of

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.certificates import kept
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.timing import Expiring, Held, announce_new, replaced_by_order, timed
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, lane_of_issuer, order_place
from certctl_server.jobs.priorities import NORMAL, URGENT
from certctl_server.jobs.state import is_early, move, until_open
from certctl_server.jobs.tables import Job
from certctl_server.policies.judge import SUBJECT, Breaches, against, judge, say

# With the newest version that each agent has.
WANTED = db.Sql(
    f"""
    SELECT DISTINCT {SUBJECT}, c.created_at, t.agent_id, p.max_retries, p.renewal_window_days,
        p.alert_thresholds_days, p.maintenance_windows, v.id AS version_id, v.not_before, v.not_after,
        (p.auto_renew AND i.enabled) AS automatic,
        (p.requires_approval OR coalesce(f.requires_approval, false)) AS approval
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id JOIN issuer i ON i.id = c.issuer_id
        LEFT JOIN certificate_profile f ON f.id = c.certificate_profile_id
        LEFT JOIN certificate_target m ON m.certificate_id = c.id
        LEFT JOIN target t ON t.id = m.target_id AND t.enabled
        LEFT JOIN certificate_version v ON v.certificate_id = c.id AND v.version = (
            SELECT max(n.version) FROM certificate_version n
            WHERE n.certificate_id = c.id AND n.agent_id = coalesce(t.agent_id, ''))
    WHERE c.id IN ({{ids:$1}}) ORDER BY c.created_at, c.id, t.agent_id
    """  # noqa: S608  # ours
)
GIVE = db.Sql(
    """
    UPDATE job SET csr_pem = $2, csr_sha256 = $3, offer_at = NULL, opens_at = NULL, window_at = NULL, last_error = '',
        due_at = CASE WHEN status IN ('Pending', 'AwaitingCSR') THEN {now} END
    WHERE id IN ({ids:$1}) AND csr_sha256 = '' AND place IS NOT NULL AND status <> 'Running' RETURNING id, lane
    """
)
APPROVED = db.Sql("SELECT id, agent_id, csr_sha256, lane, opens_at FROM job WHERE id = $1")
DUE = db.Sql("UPDATE job SET due_at = {now} WHERE id = $1 AND status = 'Pending'")
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
    only: frozenset[tuple[str, str]] | None = None
    """Certificates and agents for which alone jobs are made; None: for all."""
    due_at: datetime | None = None
    """Agents that have a version which is not due yet at this moment get no job while another agent needs one."""
    automatic: bool = False
    """Nobody asked for it: a Renewal then waits for a maintenance window."""
    priority: int = NORMAL


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of an order."""

    jobs: list[NewJob]
    """Those that are new."""
    forbidden: Breaches
    """What policies have against those certificates that get none for it."""


async def order(ids: Sequence[str], asked: Order, actor: Actor) -> list[NewJob]:
    """Do as ``place``, for whoever tells nobody of policies; return the jobs."""
    return (await place(ids, asked, actor)).jobs


async def place(ids: Sequence[str], asked: Order, actor: Actor, *, held: bool = False) -> Placed:
    """Make the jobs for ``asked`` and send them on their way; certificates that have one open get none.

    Those that a policy forbids get none either, and say so. Everything is written in one transaction: jobs, their
    first moves, the certificates' status, violations, audit rows. ``held`` says that the caller's transaction holds
    the certificates.
    """
    async with db.transaction():
        if not held:
            await hold(ids)
        rows = await db.fetch(WANTED, json.dumps(list(ids)))
        forbidden = against(await judge(rows, actor), Act.ORDER)
        await say(forbidden)
        jobs = _jobs([row for row in rows if row["id"] not in forbidden], asked)
        made = await create([_offered(job, asked) for job, _ in jobs], actor)
        await announce_new(made, {job.id: expiring for job, expiring in jobs if expiring})
        await _send_on(made, asked, actor)
        await settle({str(job.certificate_id) for job in made}, actor=actor, held=True)
    return Placed(made, forbidden)


def _jobs(rows: list[db.Row], asked: Order) -> list[tuple[NewJob, Expiring | None]]:
    """The jobs, and what each of them replaces whose start overrides maintenance windows."""
    able = _able(rows, asked)
    needy = {row["id"] for row in able if _needs(row, asked)}
    jobs = [_job(row, asked) for row in able if row["id"] not in needy or _needs(row, asked)]
    return list({job.place: (job, expiring) for job, expiring in jobs}.values())


def _able(rows: list[db.Row], asked: Order) -> list[db.Row]:
    """Those that an order can be made for: what became of the certificate meanwhile is known only now."""
    agents: dict[str, list[str | None]] = defaultdict(list)
    for row in rows:
        agents[row["id"]].append(row["agent_id"])
    able = []
    for row in rows:
        # A certificate that has one target with an agent has no job without one; a caller's CSR has no agent.
        agent_id = None if asked.csr_pem else row["agent_id"]
        homeless = agent_id is None and not asked.csr_pem
        gone = row["archived_at"] is not None or (row["revoked_at"] is not None and not asked.force)
        # Its due moment may not follow its issuer or its policy yet.
        gone = gone or (asked.automatic and not row["automatic"])
        if gone or (homeless and any(agents[row["id"]])) or (asked.agent_id and agent_id != asked.agent_id):
            continue
        if asked.only is None or (row["id"], agent_id) in asked.only:
            able.append({**row, "agent_id": agent_id})
    return able


def _job(row: db.Row, asked: Order) -> tuple[NewJob, Expiring | None]:
    urgent_at = _urgent_at(row) if asked.priority > URGENT else None
    late = urgent_at is not None and urgent_at <= db.now()
    held, overrides = Held(opens_at=None, window_at=None), False
    expiring = replaced_by_order(row["version_id"], row["not_after"], row["expires_at"])
    if asked.automatic and asked.type is JobType.RENEWAL:
        held, overrides = timed(asked.type, row["maintenance_windows"], expiring, db.now())
    job = NewJob(
        type=asked.type,
        place=order_place(row["id"], row["agent_id"]),
        status=JobState.AWAITING_APPROVAL if row["approval"] else JobState.PENDING,
        certificate_id=row["id"],
        agent_id=row["agent_id"],
        issuer_id=row["issuer_id"],
        lane=lane_of_issuer(row["issuer_id"]),
        priority=URGENT if late else asked.priority,
        urgent_at=None if late else urgent_at,
        max_attempts=max(1, row["max_retries"]),
        request={"force": asked.force} | ({"automatic": True} if asked.automatic else {}),
        **held,
    )
    return job, expiring if overrides else None


def _urgent_at(row: db.Row) -> datetime | None:
    """When a renewal has become so late that people are warned; warnings from before it is due do not count."""
    start, end = row["not_before"], row["not_after"]
    if end is None:
        return None
    due_at = renew_due_at(start, end, window_days=row["renewal_window_days"])
    warnings = (alert_at(start, end, days) for days in json.loads(row["alert_thresholds_days"]))
    return min((moment for moment in warnings if moment > due_at), default=end)


def _needs(row: db.Row, asked: Order) -> bool:
    if asked.due_at is None or row["not_after"] is None:
        return True
    life, window_days = (row["not_before"], row["not_after"]), row["renewal_window_days"]
    return renew_due_at(*life, window_days=window_days, spread=spread_of(row["id"])) <= asked.due_at


async def _send_on(jobs: Sequence[NewJob], asked: Order, actor: Actor) -> None:
    if asked.csr_pem:
        await give_csr([job.id for job in jobs], asked.csr_pem, asked.csr_sha256)
        return
    offered = [
        {"id": job.id, "agent_id": job.agent_id, "certificate_id": job.certificate_id}
        for job in jobs
        if job.status is JobState.AWAITING_CSR
    ]
    await _taken_on(offered, actor)


def _offered(job: NewJob, asked: Order) -> NewJob:
    """The same job, on offer from the beginning if it waits for nothing but a CSR: one write instead of two."""
    now = db.now()
    if asked.csr_pem or job.status is not JobState.PENDING or (job.opens_at or now) > now:
        return job
    return replace(job, status=JobState.AWAITING_CSR, offered=True, last_error="" if job.agent_id else HOMELESS)


async def ask_for_csr(jobs: Iterable[tuple[str, str | None]], actor: Actor) -> None:
    """Send orders, each with its agent, on their way: to that agent, or to wait for one where there is none."""
    agents = dict(jobs)
    await await_csr([id for id, agent_id in agents.items() if agent_id], actor)
    homeless = [id for id, agent_id in agents.items() if not agent_id]
    await await_csr(homeless, actor, last_error=HOMELESS)


async def await_csr(ids: Sequence[str], actor: Actor, **facts: Any) -> None:
    """Offer orders to their agents, who will answer with a CSR."""
    if not ids:
        return
    now = db.now()
    facts |= {"offer_at": now, "scheduled_at": now}
    moved = await move(Job.id.is_in(list(ids)), JobState.PENDING, JobState.AWAITING_CSR, actor=actor, **facts)
    await _taken_on(moved, actor)


async def _taken_on(jobs: Sequence[db.Row], actor: Actor) -> None:
    """Let agents know of orders that begin to wait for their CSRs."""
    await _take_kept(jobs, actor)
    for agent_id in {job["agent_id"] for job in jobs if job["agent_id"]}:
        bell.ring_agent(agent_id)


async def give_csr(ids: Sequence[str], csr_pem: str, csr_sha256: str) -> list[str]:
    """Store a CSR with open orders that have none; return which took it. A worker may have them, once approved."""
    rows = await db.fetch(GIVE, json.dumps(list(ids)), csr_pem, csr_sha256)
    for lane in {row["lane"] for row in rows}:
        bell.ring(lane)
    return [row["id"] for row in rows]


async def approved(id: str, actor: Actor) -> None:
    """Send an order on that a person has just approved: to its agent in time, or to a worker if its CSR is there."""
    [row] = await db.fetch(APPROVED, id)
    if row["csr_sha256"]:
        await db.fetch(DUE, id)
        bell.ring(row["lane"])
    elif is_early(row):
        await until_open([row])
    else:
        await ask_for_csr([(id, row["agent_id"])], actor)


async def _take_kept(moved: Sequence[db.Row], actor: Actor) -> None:
    """Let orders that begin to wait have the CSRs that their agents sent beforehand."""
    for job, csr in await kept.fitting([row for row in moved if row["agent_id"]]):
        await give_csr([job["id"]], csr["csr_pem"], csr["csr_sha256"])
        told = {"certificate_id": job["certificate_id"], "csr_sha256": csr["csr_sha256"]}
        await record([Event(actor, "csr_submitted", "job", job["id"], told)])
