"""What people ask of a certificate: renew it, deploy it, revoke it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certctl_core.csr import CsrError
from certctl_core.errors import RejectedError
from certctl_core.issuer import Revoker
from certctl_core.job import ORDERS, JobType
from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.certificates.mapping import OPEN_ORDERS
from certctl_server.certificates.orders import Order, give_csr, order
from certctl_server.certificates.rollout import release
from certctl_server.certificates.rollout_state import call_off, is_held
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.versions import deploy, fitting
from certctl_server.certificates.windows import start_now
from certctl_server.errors import conflict, invalid
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, lane_of_issuer, revocation_place
from certctl_server.jobs.issue import accept, ordered
from certctl_server.jobs.priorities import FREE, URGENT
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.notices.tell import Notice, tell

REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "caCompromise": 2,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "certificateHold": 6,
    "privilegeWithdrawn": 9,
}
"""Reasons for revocation and their CRL codes (RFC 5280 section 5.3.1)."""
ISSUER = db.Sql("SELECT id, type, enabled, status FROM issuer WHERE id = $1")
OPEN_DEPLOYMENTS = db.Sql(
    """
    SELECT id, target_id, version_id FROM job WHERE certificate_id = $1 AND type = 'Deployment'
        AND coalesce(place, '') <> '' ORDER BY created_at, id
    """
)
MAPPED = db.Sql("SELECT target_id FROM certificate_target WHERE certificate_id = $1")
REVOKE_VERSIONS = db.Sql(
    """
    UPDATE certificate_version SET revoked_at = {now}, revocation_reason = $2
    WHERE certificate_id = $1 AND revoked_at IS NULL AND not_after > {now}
    RETURNING id, issuer_id, serial_number, public_key_sha256
    """
)
STATES = ("confirmed", "pending", "failed")
"""From the best on: a certificate shows the worst of its versions."""
ISSUERS = db.Sql(
    """
    SELECT DISTINCT i.id, i.type FROM certificate_version v JOIN issuer i ON i.id = v.issuer_id
    WHERE v.certificate_id = $1 AND v.revoked_at IS NULL AND v.not_after > {now}
    """
)
REVOKED = db.Sql(
    """
    UPDATE certificate SET revoked_at = {now}, revocation_reason = $2, revocation_state = $3, updated_at = {now}
    WHERE id = $1
    """
)
REVOCATIONS = db.insert_rows(
    "revocation",
    {
        **dict.fromkeys(("id", "issuer_id", "serial_number", "certificate_id", "version_id", "reason"), "text"),
        "revoked_at": "timestamptz",
        "state": "text",
        "confirmed_at": "timestamptz",
    },
    "ON CONFLICT DO NOTHING",
)
BLOCK = db.insert_rows(
    "blocked_key",
    {"public_key_sha256": "text", "reason": "text", "created_at": "timestamptz"},
    "ON CONFLICT DO NOTHING",
)
OWN_CA, PUBLIC_CA = "GenericCA", "ACME"
PUBLIC_REASONS = frozenset({"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"})
"""What CAs in browsers' programmes may be told by subscribers (Mozilla Root Store Policy, section 6.1.1)."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """A request to renew."""

    force: bool = False
    csr_pem: str = ""


async def renew(row: db.Row, asked: Renewal, actor: Actor) -> list[str]:
    """Order a renewal now, whatever the window says; return the ids of its jobs.

    Raises:
        Refused: 400 for a CSR that does not fit, 409 when it cannot be renewed in its present state.
    """
    await _renewable(row, asked)
    existing = await db.fetch(OPEN_ORDERS, json.dumps([row["id"]]))
    joined = [each["id"] for each in existing if asked.csr_pem and not each["agent_id"] and not each["csr_sha256"]]
    issuing = [each["id"] for each in existing if each["type"] == JobType.ISSUANCE]
    if existing and not joined and issuing:
        return issuing
    if existing and not joined:
        return await _at_once(existing, asked, actor)
    csr_pem, csr_sha256 = await _checked(row, asked.csr_pem)
    kind = JobType.RENEWAL if row["version_id"] or row["was_active"] else JobType.ISSUANCE
    asks = Order(type=kind, force=asked.force, csr_pem=csr_pem, csr_sha256=csr_sha256, priority=URGENT)
    async with audited(actor, "renewal_triggered", "certificate", row["id"], {"force": asked.force}):
        if joined:
            if not await give_csr(joined, csr_pem, csr_sha256):
                raise conflict("The order has a CSR by now")
            return joined
        if not (made := await order([row["id"]], asks, actor)):
            raise conflict("A renewal is under way")
    return [job.id for job in made]


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


async def _renewable(row: db.Row, asked: Renewal) -> None:
    if row["archived_at"] is not None:
        raise conflict("The certificate is archived")
    if row["revoked_at"] is not None and not asked.force:
        raise conflict("The certificate is revoked: renew it with force to replace it by one with a new key")
    [issuer] = await db.fetch(ISSUER, row["issuer_id"])
    if not issuer["enabled"] or issuer["status"] in {"incomplete", "disabled"}:
        raise conflict(f"The issuer {issuer['id']} is {'disabled' if not issuer['enabled'] else issuer['status']}")


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
        Refused: 400 for a target that is not mapped, 409 when there is nothing to deploy or nowhere.
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


async def revoke(row: db.Row, reason: str, plugins: Plugins, actor: Actor) -> str:
    """Revoke every version that has not expired; return how far the issuer is told.

    Raises:
        Refused: 409 when there is nothing to revoke.
    """
    if row["revoked_at"] is not None or row["archived_at"] is not None:
        raise conflict(f"The certificate is {'revoked' if row['revoked_at'] else 'archived'} already")
    if row["version_id"] is None:
        raise conflict("The certificate was never issued")
    details: dict[str, Any] = {"reason": reason}
    async with audited(actor, "certificate_revoked", "certificate", row["id"], details):
        await hold([row["id"]])
        # Versions may be of other issuers than the one that the certificate has now.
        issuers = {each["id"]: each["type"] for each in await db.fetch(ISSUERS, row["id"])}
        if PUBLIC_CA in issuers.values() and reason not in PUBLIC_REASONS:
            raise invalid({"reason": f"a public CA takes {', '.join(sorted(PUBLIC_REASONS))} only"})
        states = {id: told_state(plugins, kind) for id, kind in issuers.items()}
        state = max(states.values(), key=STATES.index, default="confirmed")
        await _call_off(row["id"], actor)
        versions = await db.fetch(REVOKE_VERSIONS, row["id"], reason)
        details["serial_numbers"] = [each["serial_number"] for each in versions]
        await write_revocations(row["id"], versions, reason, states)
        await db.fetch(REVOKED, row["id"], reason, state)
        to_tell = [each for each in versions if states[each["issuer_id"]] == "pending"]
        await create([_to_tell(row["id"], each, reason) for each in to_tell], actor)
        for issuer_id in {each["issuer_id"] for each in to_tell}:
            bell.ring(lane_of_issuer(issuer_id))
        await settle([row["id"]], actor=actor)
        told = f"{row['name']} was revoked ({reason})"
        occurrence = f"{row['id']}|{row['serial_number']}"
        await tell(Notice("Revocation", row["id"], "Certificate revoked", told, "warning", occurrence))
    return state


async def _call_off(certificate_id: str, actor: Actor) -> None:
    """What is revoked is deployed nowhere, and an order that was under way does not undo the revocation."""
    mine = (Job.certificate_id == certificate_id) & Job.type.is_in([JobType.DEPLOYMENT, *ORDERS])
    await call_off([certificate_id])
    await cancel(mine, actor=actor, reason="the certificate was revoked")


def told_state(plugins: Plugins, kind: str) -> str:
    """Return how far an issuer of this kind knows of a revocation at first.

    Our own CA does at once; one that cannot be told never will; of a missing connector the job finds out.
    """
    if kind == OWN_CA:
        return "confirmed"
    cls = plugins.issuers.get(kind)
    return "pending" if cls is None or issubclass(cls, Revoker) else "failed"


async def write_revocations(
    certificate_id: str, versions: Iterable[Mapping[str, Any]], reason: str, states: Mapping[str, str]
) -> None:
    """Note that versions are revoked, and how far each issuer knows of it; a compromised key is never taken again."""
    now = db.text_of(db.now())
    rows = [
        {
            "id": new_id("rev"),
            "issuer_id": each["issuer_id"],
            "serial_number": each["serial_number"],
            "certificate_id": certificate_id,
            "version_id": each["id"],
            "reason": reason,
            "revoked_at": now,
            "state": states[each["issuer_id"]],
            "confirmed_at": now if states[each["issuer_id"]] == "confirmed" else None,
        }
        for each in versions
    ]
    await db.fetch(REVOCATIONS, json.dumps(rows))
    if reason == "keyCompromise":
        keys = sorted({each["public_key_sha256"] for each in versions})
        why = f"revoked with certificate {certificate_id}"
        await db.fetch(BLOCK, json.dumps([{"public_key_sha256": k, "reason": why, "created_at": now} for k in keys]))


def _to_tell(certificate_id: str, version: db.Row, reason: str) -> NewJob:
    serial = version["serial_number"]
    request = {"version_id": version["id"], "serial_number": serial, "reason": REASONS[reason]}
    return revocation_job(certificate_id, version["issuer_id"], serial, request)


def revocation_job(certificate_id: str, issuer_id: str, serial_number: str, request: Mapping[str, Any]) -> NewJob:
    """Return the job that tells an issuer."""
    return NewJob(
        type=JobType.REVOCATION,
        place=revocation_place(issuer_id, serial_number),
        certificate_id=certificate_id,
        issuer_id=issuer_id,
        lane=lane_of_issuer(issuer_id),
        priority=FREE,
        due=True,
        max_attempts=10,
        request=request,
    )
