"""What people ask of a certificate: renew it, deploy it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from certctl_core.csr import CsrError
from certctl_core.errors import RejectedError
from certctl_core.job import JobType
from certctl_core.policy import Act

from certctl_server import db
from certctl_server.audit.record import Actor, Event, audited, record
from certctl_server.certificates.mapping import OPEN_ORDERS
from certctl_server.certificates.orders import Order, give_csr, place
from certctl_server.certificates.rollout import release
from certctl_server.certificates.rollout_state import is_held
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.versions import deploy, fitting
from certctl_server.certificates.windows import start_now
from certctl_server.errors import conflict, invalid
from certctl_server.jobs.issue import accept, ordered
from certctl_server.jobs.priorities import URGENT
from certctl_server.policies.judge import obstacles, refused, review

RENEWABLE = db.Sql(
    """
    SELECT c.id, c.archived_at, c.revoked_at, c.version_id, c.was_active, c.issuer_id, i.enabled AS issuer_enabled,
        i.status AS issuer_status, (SELECT count(*) FROM job o WHERE o.certificate_id = c.id
            AND o.type IN ('Issuance', 'Renewal') AND coalesce(o.place, '') <> '') AS open_orders
    FROM certificate c JOIN issuer i ON i.id = c.issuer_id WHERE c.id IN ({ids:$1}) ORDER BY c.id
    """
)
OPEN_DEPLOYMENTS = db.Sql(
    """
    SELECT id, target_id, version_id FROM job WHERE certificate_id = $1 AND type = 'Deployment'
        AND coalesce(place, '') <> '' ORDER BY created_at, id
    """
)
MAPPED = db.Sql("SELECT target_id FROM certificate_target WHERE certificate_id = $1")


@dataclass(frozen=True, slots=True)
class Renewal:
    """A request to renew."""

    force: bool = False
    csr_pem: str = ""


async def renew(row: db.Row, asked: Renewal, actor: Actor) -> list[str]:
    """Order a renewal now, whatever the window says; return the ids of its jobs.

    Raises:
        Refused: 400 for a CSR that does not fit or when a policy forbids it, 409 when it cannot be renewed in its
            present state.
    """
    [facts] = await db.fetch(RENEWABLE, json.dumps([row["id"]]))
    if why := unrenewable(facts, force=asked.force):
        raise conflict(why)
    existing = await db.fetch(OPEN_ORDERS, json.dumps([row["id"]]))
    joined = [each["id"] for each in existing if asked.csr_pem and not each["agent_id"] and not each["csr_sha256"]]
    issuing = [each["id"] for each in existing if each["type"] == JobType.ISSUANCE]
    if existing and not joined and issuing:
        return issuing
    if existing and not joined:
        return await _at_once(existing, asked, actor)
    csr_pem, csr_sha256 = await _checked(row, asked.csr_pem)
    asks = Order(type=kind_of_order(facts), force=asked.force, csr_pem=csr_pem, csr_sha256=csr_sha256, priority=URGENT)
    told = {"force": asked.force}
    if joined:
        async with audited(actor, "renewal_triggered", "certificate", row["id"], told):
            if not await give_csr(joined, csr_pem, csr_sha256):
                raise conflict("The order has a CSR by now")
        return joined
    async with db.transaction():
        placed = await place([row["id"]], asks, actor)
        if placed.jobs:
            await record([Event(actor, "renewal_triggered", "certificate", row["id"], told)])
    # What the policy forbids stays noted, so it is refused only now.
    if placed.forbidden:
        raise refused(placed.forbidden[row["id"]])
    if not placed.jobs:
        raise conflict("A renewal is under way")
    return [job.id for job in placed.jobs]


async def _at_once(existing: Sequence[db.Row], asked: Renewal, actor: Actor) -> list[str]:
    """Begin renewals that were ordered by the scan and wait for a maintenance window.

    Raises:
        Refused: 409, they do not, or what is asked for is something else.
    """
    certificate_id, ids = existing[0]["certificate_id"], [each["id"] for each in existing]
    async with audited(actor, "renewal_triggered", "certificate", certificate_id, {"force": asked.force}):
        await hold([certificate_id])
        if asked.force or asked.csr_pem or not (started := await start_now(ids, actor)):
            raise conflict(f"A renewal is under way: job {ids[0]}")
    return started


def unrenewable(row: db.Row, *, force: bool = False) -> str:
    """Return why nothing can be ordered for a certificate, a row of ``RENEWABLE``; empty if it can."""
    if row["archived_at"] is not None:
        return "The certificate is archived"
    if row["revoked_at"] is not None and not force:
        return "The certificate is revoked: renew it with force to replace it by one with a new key"
    if not row["issuer_enabled"] or row["issuer_status"] in {"incomplete", "disabled"}:
        return f"The issuer {row['issuer_id']} is {row['issuer_status'] if row['issuer_enabled'] else 'disabled'}"
    return ""


def kind_of_order(row: db.Row) -> JobType:
    """Return what an order for a certificate is: a renewal once there is something to renew."""
    return JobType.RENEWAL if row["version_id"] or row["was_active"] else JobType.ISSUANCE


async def _checked(row: db.Row, csr_pem: str) -> tuple[str, str]:
    if not csr_pem:
        return "", ""
    try:
        csr = await accept(csr_pem, row["id"], await ordered(row["id"], forced=True))
    except (CsrError, RejectedError) as exc:
        raise invalid({"csr_pem": str(exc)}) from exc
    return csr.pem, csr.sha256


async def redeploy(row: db.Row, target_id: str, actor: Actor) -> list[str]:
    """Send the newest version to its targets again, or to the one given; return the ids of the jobs.

    A halted rollout goes on; targets that wait for their wave go on waiting, but for one that is given.

    Raises:
        Refused: 400 for a target that is not mapped or when a policy forbids it, 409 when there is nothing to deploy
            or nowhere.
    """
    mapped = {each["target_id"] for each in await db.fetch(MAPPED, row["id"])}
    if target_id and target_id not in mapped:
        raise invalid({"target_id": "is not a target of this certificate"})
    if not mapped:
        raise conflict("The certificate has no target")
    if row["revoked_at"] or row["archived_at"]:
        raise conflict(f"The certificate is {'revoked' if row['revoked_at'] else 'archived'}")
    if row["version_id"] is None:
        raise conflict("The certificate was never issued")
    if found := obstacles((await review([row["id"]], actor))[row["id"]], Act.DEPLOY):
        raise refused(found)
    async with audited(actor, "deployment_triggered", "certificate", row["id"], {"target_id": target_id}):
        await hold([row["id"]])
        await release(row["id"], target_id, actor)
        rows = [each for each in await fitting([row["id"]]) if target_id in {"", each["target_id"]}]
        alive = [each for each in rows if each["version_id"] and _lives(each) and not is_held(each)]
        if not alive:
            raise conflict(_why_not(rows))
        opened = await db.fetch(OPEN_DEPLOYMENTS, row["id"])
        there = {(each["target_id"], each["version_id"]): each["id"] for each in opened}
        made = await deploy(alive, actor=actor)
        await settle([row["id"]], actor=actor)
    fresh = {job.target_id: job.id for job in made}
    return [fresh.get(each["target_id"]) or there[each["target_id"], each["version_id"]] for each in alive]


def _lives(version: db.Row) -> bool:
    return bool(version["not_after"] > db.now() and version["revoked_at"] is None)


def _why_not(rows: list[db.Row]) -> str:
    if not rows:
        return "The target is disabled"
    if any(is_held(row) for row in rows):
        return "The targets wait for their wave of the rollout"
    if any(row["version_id"] for row in rows):
        return "The newest version has expired or is revoked"
    return "No version was issued to the target's agent yet"
