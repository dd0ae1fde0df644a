"""What people ask of a certificate: renew it, deploy it, revoke it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from certctl_core.csr import CsrError
from certctl_core.errors import RejectedError
from certctl_core.issuer import Revoker
from certctl_core.job import JobType
from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.certificates.orders import Order, give_csr, order
from certctl_server.certificates.status import settle
from certctl_server.certificates.versions import deploy
from certctl_server.errors import conflict, invalid
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, lane_of_issuer
from certctl_server.jobs.issue import accept, ordered
from certctl_server.jobs.state import URGENT
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
OPEN_ORDERS = db.Sql(
    """
    SELECT id, type, agent_id, csr_pem FROM job WHERE certificate_id = $1 AND type IN ('Issuance', 'Renewal')
        AND place IS NOT NULL ORDER BY created_at, id
    """
)
ISSUER = db.Sql("SELECT id, type, enabled, status FROM issuer WHERE id = $1")
OPEN_DEPLOYMENTS = db.Sql(
    """
    SELECT id, target_id FROM job WHERE certificate_id = $1 AND type = 'Deployment' AND place IS NOT NULL
        AND version_id = $2 ORDER BY created_at, id
    """
)
MAPPED = db.Sql("SELECT target_id FROM certificate_target WHERE certificate_id = $1")
NEWEST = db.Sql(
    """
    SELECT v.id, v.agent_id, v.not_after, v.revoked_at FROM certificate_version v JOIN (
        SELECT agent_id, max(version) AS version FROM certificate_version WHERE certificate_id = $1 GROUP BY agent_id) n
        ON n.agent_id = v.agent_id AND n.version = v.version
    WHERE v.certificate_id = $1 ORDER BY v.version DESC
    """
)
REVOKE_VERSIONS = db.Sql(
    """
    UPDATE certificate_version SET revoked_at = {now}, revocation_reason = $2
    WHERE certificate_id = $1 AND revoked_at IS NULL AND not_after > {now}
    RETURNING id, issuer_id, serial_number, public_key_sha256
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
OWN_CA = "GenericCA"


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
    existing = await db.fetch(OPEN_ORDERS, row["id"])
    joined = [each["id"] for each in existing if asked.csr_pem and not each["agent_id"] and not each["csr_pem"]]
    issuing = [each["id"] for each in existing if each["type"] == JobType.ISSUANCE]
    if existing and not joined and issuing:
        return issuing
    if existing and not joined:
        raise conflict(f"A renewal is under way: job {existing[0]['id']}")
    csr_pem, csr_sha256 = await _checked(row, asked.csr_pem)
    kind = JobType.RENEWAL if row["version_id"] or row["was_active"] else JobType.ISSUANCE
    asks = Order(type=kind, force=asked.force, csr_pem=csr_pem, csr_sha256=csr_sha256, priority=URGENT)
    async with audited(actor, "renewal_triggered", "certificate", row["id"], {"force": asked.force}):
        if joined:
            await give_csr(joined, csr_pem, csr_sha256)
            return joined
        made = await order([row["id"]], asks, actor)
    return [job.id for job in made]


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
        csr = await accept(csr_pem, row["id"], await ordered(row["id"]))
    except (CsrError, RejectedError) as exc:
        raise invalid({"csr_pem": str(exc)}) from exc
    return csr.pem, csr.sha256


async def redeploy(row: db.Row, target_id: str, actor: Actor) -> list[str]:
    """Send the newest version to its targets again, or to the one given; return the ids of the jobs.

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
    versions = await db.fetch(NEWEST, row["id"])
    if not versions:
        raise conflict("The certificate was never issued")
    alive = [each for each in versions if each["not_after"] > db.now() and each["revoked_at"] is None]
    if not alive:
        raise conflict("The newest version has expired")
    ids = []
    async with audited(actor, "deployment_triggered", "certificate", row["id"], {"target_id": target_id}):
        for version in alive:
            opened = await db.fetch(OPEN_DEPLOYMENTS, row["id"], version["id"])
            ids += [each["id"] for each in opened if target_id in {"", each["target_id"]}]
            made = await deploy(
                row["id"], version["id"], agent_id=version["agent_id"], target_id=target_id, actor=actor
            )
            ids += [job.id for job in made]
        await settle([row["id"]], actor=actor)
    return ids


async def revoke(row: db.Row, reason: str, plugins: Plugins, actor: Actor) -> str:
    """Revoke every version that has not expired; return how far the issuer is told.

    Raises:
        Refused: 409 when there is nothing to revoke.
    """
    if row["revoked_at"] is not None or row["archived_at"] is not None:
        raise conflict(f"The certificate is {'revoked' if row['revoked_at'] else 'archived'} already")
    if row["version_id"] is None:
        raise conflict("The certificate was never issued")
    [issuer] = await db.fetch(ISSUER, row["issuer_id"])
    state = "confirmed" if issuer["type"] == OWN_CA or not _can_tell(plugins, issuer["type"]) else "pending"
    details: dict[str, Any] = {"reason": reason}
    async with audited(actor, "certificate_revoked", "certificate", row["id"], details):
        versions = await db.fetch(REVOKE_VERSIONS, row["id"], reason)
        details["serial_numbers"] = [each["serial_number"] for each in versions]
        await _write_revocations(row["id"], versions, reason, state)
        await db.fetch(REVOKED, row["id"], reason, state)
        if state == "pending":
            await create([_to_tell(row["id"], each, reason) for each in versions], actor)
            bell.ring(lane_of_issuer(row["issuer_id"]))
        await settle([row["id"]], actor=actor)
        told = f"{row['name']} was revoked ({reason})"
        occurrence = f"{row['id']}|{row['serial_number']}"
        await tell(Notice("Revocation", row["id"], "Certificate revoked", told, "warning", occurrence))
    return state


def _can_tell(plugins: Plugins, kind: str) -> bool:
    cls = plugins.issuers.get(kind)
    return cls is not None and issubclass(cls, Revoker)


async def _write_revocations(certificate_id: str, versions: list[db.Row], reason: str, state: str) -> None:
    now = str(db.now())
    rows = [
        {
            "id": new_id("rev"),
            "issuer_id": each["issuer_id"],
            "serial_number": each["serial_number"],
            "certificate_id": certificate_id,
            "version_id": each["id"],
            "reason": reason,
            "revoked_at": now,
            "state": state,
            "confirmed_at": now if state == "confirmed" else None,
        }
        for each in versions
    ]
    await db.fetch(REVOCATIONS, json.dumps(rows))
    if reason == "keyCompromise":
        keys = sorted({each["public_key_sha256"] for each in versions})
        why = f"revoked with certificate {certificate_id}"
        await db.fetch(BLOCK, json.dumps([{"public_key_sha256": k, "reason": why, "created_at": now} for k in keys]))


def _to_tell(certificate_id: str, version: db.Row, reason: str) -> NewJob:
    return NewJob(
        type=JobType.REVOCATION,
        place=f"revoke|{version['issuer_id']}|{version['serial_number']}",
        certificate_id=certificate_id,
        issuer_id=version["issuer_id"],
        version_id=version["id"],
        lane=lane_of_issuer(version["issuer_id"]),
        priority=URGENT,
        due=True,
        max_attempts=10,
        request={"version_id": version["id"], "reason": REASONS[reason]},
    )
