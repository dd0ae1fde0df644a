"""Where a certificate is to be served: targets come and go, and what they need follows (docs/decisions/)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from certctl_core.job import ORDERS, JobType

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.certificates.orders import Order, order
from certctl_server.certificates.rollout_state import admitted, poke
from certctl_server.certificates.versions import deploy, fitting
from certctl_server.jobs import bell
from certctl_server.jobs.create import order_place
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job

MAP = db.insert_rows(
    "certificate_target", {"certificate_id": "text", "target_id": "text", "position": "bigint"},
    "ON CONFLICT (certificate_id, target_id) DO UPDATE SET position = excluded.position",
)  # fmt: skip
UNMAP = db.Sql(
    "DELETE FROM certificate_target WHERE certificate_id = $1 AND target_id NOT IN ({ids:$2}) RETURNING target_id"
)
WANTING = db.Sql(
    """
    SELECT c.id, c.version_id, (SELECT count(*) FROM job o WHERE o.certificate_id = c.id
        AND o.type IN ('Issuance', 'Renewal') AND coalesce(o.place, '') <> '') AS open_orders
    FROM certificate c WHERE c.id IN ({ids:$1}) AND c.archived_at IS NULL AND c.revoked_at IS NULL
    """
)
OPEN_ORDERS = db.Sql(
    """
    SELECT certificate_id, agent_id, id, type, csr_sha256 FROM job WHERE certificate_id IN ({ids:$1})
        AND type IN ('Issuance', 'Renewal') AND coalesce(place, '') <> '' ORDER BY created_at, id
    """
)
ASSIGN = db.Sql(
    """
    UPDATE job SET agent_id = $2, place = $3, last_error = '',
        scheduled_at = CASE WHEN opens_at > {now} THEN opens_at ELSE {now} END,
        offer_at = CASE WHEN status = 'AwaitingCSR' THEN {now} END
    WHERE id = $1 AND agent_id IS NULL AND csr_sha256 = '' AND place IS NOT NULL RETURNING id
    """
)


async def map_targets(certificate_id: str, target_ids: Sequence[str], actor: Actor) -> None:
    """Let a certificate be served on exactly these targets.

    Deployments to targets that are gone are called off. ``catch_up`` does what new targets need.
    """
    wanted = list(dict.fromkeys(target_ids))
    gone = [row["target_id"] for row in await db.fetch(UNMAP, certificate_id, json.dumps(wanted))]
    rows = [{"certificate_id": certificate_id, "target_id": id, "position": n} for n, id in enumerate(wanted)]
    if rows:
        await db.fetch(MAP, json.dumps(rows))
    if gone:
        mine = (Job.certificate_id == certificate_id) & Job.target_id.is_in(gone)
        await cancel(mine, actor=actor, reason="the target was removed")


async def _call_off_idle(ids: Iterable[str], actor: Actor) -> None:
    """Call off the orders of agents that have no target of these certificates while another agent has one."""
    wanted = sorted(set(ids))
    serving: dict[str, set[str]] = defaultdict(set)
    for row in await fitting(wanted):
        serving[row["certificate_id"]].add(row["agent_id"])
    idle = []
    for row in await db.fetch(OPEN_ORDERS, json.dumps(wanted)):
        agents = serving[row["certificate_id"]]
        if agents and row["agent_id"] and row["agent_id"] not in agents:
            idle.append(row["id"])
    if idle:
        await cancel(Job.id.is_in(idle), actor=actor, reason="another agent serves the certificate now")


async def catch_up(ids: Iterable[str], actor: Actor) -> None:
    """Bring the targets of certificates what they lack, after some were mapped, enabled or moved to other agents.

    An order that had no agent gets one. A target whose agent has the key of a living version gets that version.
    An agent that has none gets an order of its own, unless the certificate was made elsewhere, and then waits for
    its renewal. Orders of agents that serve it no more are called off, once those who do have theirs. The caller
    settles.
    """
    wanting = {row["id"]: row for row in await db.fetch(WANTING, json.dumps(sorted(set(ids))))}
    rows = await fitting(wanting)
    now = db.now()
    alive = [row for row in rows if row["version_id"] and row["not_after"] > now and row["revoked_at"] is None]
    await deploy(await admitted([row for row in alive if row["there"] != row["version_id"]]), actor=actor)
    await poke(wanting)
    lacking: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row["version_id"] is None and (wanting[row["certificate_id"]]["version_id"] or _open(wanting, row)):
            lacking[row["certificate_id"]][row["agent_id"]] = None
    await _assign(lacking, actor)
    for type_ in ORDERS:
        issued = type_ is JobType.RENEWAL
        some = [id for id in lacking if (wanting[id]["version_id"] is not None) == issued]
        agents = frozenset((id, agent) for id in some for agent in lacking[id])
        if agents:
            await order(some, Order(type=type_, only=agents), actor)
    await _call_off_idle(wanting, actor)


def _open(wanting: dict[str, db.Row], row: db.Row) -> bool:
    return bool(wanting[row["certificate_id"]]["open_orders"])


async def _assign(lacking: dict[str, dict[str, None]], actor: Actor) -> None:
    """Give orders that have no agent, and no CSR, to the first agent that could use one."""
    orders = await db.fetch(OPEN_ORDERS, json.dumps(list(lacking))) if lacking else []
    busy = {(row["certificate_id"], row["agent_id"]) for row in orders}
    for row in orders:
        id = row["certificate_id"]
        agent = next((each for each in lacking[id] if (id, each) not in busy), None)
        if row["agent_id"] or agent is None or row["csr_sha256"]:
            continue
        if await db.fetch(ASSIGN, row["id"], agent, order_place(id, agent)):
            await record([Event(actor, "job_assigned", "job", row["id"], {"agent_id": agent, "certificate_id": id})])
            bell.ring_agent(agent)
