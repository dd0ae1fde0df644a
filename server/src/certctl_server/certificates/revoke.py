"""Revoke certificates, any number at once: every version that has not expired, at whichever issuer it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certctl_core.issuer import Revoker
from certctl_core.job import ORDERS, JobType
from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.bulk import Objection
from certctl_server.certificates.rollout_state import call_off
from certctl_server.certificates.status import hold, settle
from certctl_server.errors import conflict, invalid
from certctl_server.ids import new_id
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create, lane_of_issuer, revocation_place
from certctl_server.jobs.priorities import FREE
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
# Versions may be of other issuers than the one that the certificate has now.
REVOCABLE = db.Sql(
    """
    SELECT c.id, c.name, c.serial_number, c.archived_at, c.revoked_at, c.version_id,
        EXISTS (SELECT 1 FROM certificate_version v JOIN issuer i ON i.id = v.issuer_id WHERE v.certificate_id = c.id
            AND v.revoked_at IS NULL AND v.not_after > {now} AND i.type = 'ACME') AS at_public_ca
    FROM certificate c WHERE c.id IN ({ids:$1}) ORDER BY c.id
    """
)
REVOKE_VERSIONS = db.Sql(
    """
    UPDATE certificate_version SET revoked_at = {now}, revocation_reason = $2
    WHERE certificate_id IN ({ids:$1}) AND revoked_at IS NULL AND not_after > {now}
    RETURNING id, certificate_id, issuer_id, serial_number, public_key_sha256
    """
)
ISSUERS = db.Sql("SELECT id, type FROM issuer WHERE id IN ({ids:$1})")
STATES = ("confirmed", "pending", "failed")
"""From the best on: a certificate shows the worst of its versions."""
REVOKED = db.update_rows(
    "certificate",
    "id",
    {
        "revocation_reason": "text",
        "revocation_state": "text",
        "revoked_at": "timestamptz",
        "updated_at": "timestamptz",
    },
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
PUBLIC_REASONS = frozenset({"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"})
"""What CAs in browsers' programmes may be told by subscribers (Mozilla Root Store Policy, section 6.1.1)."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What certificates are revoked for, and by whom."""

    reason: str
    plugins: Plugins
    actor: Actor


def unrevocable(row: db.Row, reason: str) -> Objection | None:
    """Return what speaks against revoking a certificate, a row of ``REVOCABLE``."""
    if row["revoked_at"] is not None or row["archived_at"] is not None:
        return Objection(f"The certificate is {'revoked' if row['revoked_at'] else 'archived'} already", settled=True)
    if row["version_id"] is None:
        return Objection("The certificate was never issued", settled=False)
    if row["at_public_ca"] and reason not in PUBLIC_REASONS:
        return Objection(f"a public CA takes {', '.join(sorted(PUBLIC_REASONS))} only", settled=False, field="reason")
    return None


async def revoke(id: str, asked: Revocation) -> str:
    """Revoke a certificate; return how far the issuers of its versions are told.

    Raises:
        Refused: 400, an issuer cannot carry the reason; 409 when there is nothing to revoke.
    """
    async with db.transaction():
        await hold([id])
        rows = await db.fetch(REVOCABLE, json.dumps([id]))
        if found := unrevocable(rows[0], asked.reason):
            raise invalid({found.field: found.why}) if found.field else conflict(found.why)
        return (await revoke_held(rows, asked))[id]


async def revoke_held(rows: Sequence[db.Row], asked: Revocation) -> dict[str, str]:
    """Revoke certificates that are held and can be; return by id how far the issuers of their versions are told."""
    ids = [row["id"] for row in rows]
    await _call_off(ids, asked.actor)
    versions = await db.fetch(REVOKE_VERSIONS, json.dumps(ids), asked.reason)
    told = await _told_states({each["issuer_id"] for each in versions}, asked.plugins)
    by_certificate: dict[str, list[db.Row]] = {id: [] for id in ids}
    for each in versions:
        by_certificate[each["certificate_id"]].append(each)
    states = {
        id: max((told[each["issuer_id"]] for each in some), key=STATES.index, default="confirmed")
        for id, some in by_certificate.items()
    }
    await write_revocations(versions, asked.reason, told)
    await _note(states, asked.reason)
    await _tell_issuers([each for each in versions if told[each["issuer_id"]] == "pending"], asked)
    await settle(ids, actor=asked.actor)
    await record(_event(id, some, asked) for id, some in by_certificate.items())
    await tell(*(_notice(row, asked.reason) for row in rows))
    return states


async def _call_off(ids: list[str], actor: Actor) -> None:
    """What is revoked is deployed nowhere, and an order that was under way does not undo the revocation."""
    theirs = Job.certificate_id.is_in(ids) & Job.type.is_in([JobType.DEPLOYMENT, *ORDERS])
    await call_off(ids)
    await cancel(theirs, actor=actor, reason="the certificate was revoked")


async def _told_states(issuer_ids: Iterable[str], plugins: Plugins) -> dict[str, str]:
    rows = await db.fetch(ISSUERS, json.dumps(sorted(issuer_ids)))
    return {row["id"]: told_state(plugins, row["type"]) for row in rows}


def told_state(plugins: Plugins, kind: str) -> str:
    """Return how far an issuer of this kind knows of a revocation at first.

    Our own CA does at once; one that cannot be told never will; of a missing connector the job finds out.
    """
    if kind == OWN_CA:
        return "confirmed"
    cls = plugins.issuers.get(kind)
    return "pending" if cls is None or issubclass(cls, Revoker) else "failed"


async def write_revocations(versions: Sequence[Mapping[str, Any]], reason: str, told: Mapping[str, str]) -> None:
    """Note that versions are revoked, and how far each issuer knows of it; a compromised key is never taken again."""
    now = db.text_of(db.now())
    rows = [
        {
            "id": new_id("rev"),
            "issuer_id": each["issuer_id"],
            "serial_number": each["serial_number"],
            "certificate_id": each["certificate_id"],
            "version_id": each["id"],
            "reason": reason,
            "revoked_at": now,
            "state": told[each["issuer_id"]],
            "confirmed_at": now if told[each["issuer_id"]] == "confirmed" else None,
        }
        for each in versions
    ]
    await db.fetch(REVOCATIONS, json.dumps(rows))
    if reason == "keyCompromise":
        keys = {each["public_key_sha256"]: f"revoked with certificate {each['certificate_id']}" for each in versions}
        blocked = [{"public_key_sha256": key, "reason": why, "created_at": now} for key, why in sorted(keys.items())]
        await db.fetch(BLOCK, json.dumps(blocked))


async def _note(states: Mapping[str, str], reason: str) -> None:
    now = db.text_of(db.now())
    same = {"revocation_reason": reason, "revoked_at": now, "updated_at": now}
    await db.fetch(REVOKED, json.dumps([{"id": id, "revocation_state": state, **same} for id, state in states.items()]))


async def _tell_issuers(versions: Sequence[db.Row], asked: Revocation) -> None:
    jobs = [_to_tell(each, asked.reason) for each in versions]
    await create(jobs, asked.actor)
    for lane in {job.lane for job in jobs}:
        bell.ring(lane)


def _to_tell(version: db.Row, reason: str) -> NewJob:
    serial = version["serial_number"]
    request = {"version_id": version["id"], "serial_number": serial, "reason": REASONS[reason]}
    return revocation_job(version["certificate_id"], version["issuer_id"], serial, request)


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


def _event(id: str, versions: Sequence[db.Row], asked: Revocation) -> Event:
    details = {"reason": asked.reason, "serial_numbers": [each["serial_number"] for each in versions]}
    return Event(asked.actor, "certificate_revoked", "certificate", id, details)


def _notice(row: db.Row, reason: str) -> Notice:
    told = f"{row['name']} was revoked ({reason})"
    return Notice(
        "Revocation", row["id"], "Certificate revoked", told, "warning", f"{row['id']}|{row['serial_number']}"
    )
