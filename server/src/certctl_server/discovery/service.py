"""Certificates that nobody told us about: keep what agents report, and let people decide what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from certctl_core.certificate import Status

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.principal import Principal
from certctl_server.certificates.create import Wanted, adopt
from certctl_server.certificates.tables import Certificate
from certctl_server.crud import exists, one
from certctl_server.discovery.report import Found, Reported
from certctl_server.discovery.tables import DiscoveredCertificate, DiscoveryScan
from certctl_server.errors import Refused, conflict, invalid
from certctl_server.ids import new_id

UNMANAGED, MANAGED, DISMISSED = STATUSES = ("Unmanaged", "Managed", "Dismissed")
LONGEST_MS = 30 * 86_400_000
KIND = "Discovered certificate"

COLUMNS = {
    **dict.fromkeys(
        (
            *("id", "fingerprint_sha256", "common_name", "sans", "serial_number", "issuer_dn", "subject_dn"),
            *("key_algorithm", "pem_data", "source_path", "source_format", "agent_id", "discovery_scan_id", "status"),
        ),
        "text",
    ),
    **dict.fromkeys(("first_seen_at", "last_seen_at", "created_at", "updated_at", "not_before"), "timestamptz"),
    "not_after": "timestamptz",
    "key_size": "bigint",
    "is_ca": "boolean",
}
UPSERT = db.insert_rows(
    "discovered_certificate",
    COLUMNS,
    "ON CONFLICT (fingerprint_sha256, agent_id, source_path) DO UPDATE SET last_seen_at = excluded.last_seen_at"
    " RETURNING id, fingerprint_sha256, status",
)
# A version of ours, or a certificate that somebody has claimed elsewhere.
OURS = db.Sql(
    """
    SELECT fingerprint_sha256, certificate_id FROM certificate_version WHERE fingerprint_sha256 IN ({ids:$1})
    UNION
    SELECT fingerprint_sha256, managed_certificate_id FROM discovered_certificate
    WHERE fingerprint_sha256 IN ({ids:$1}) AND status = 'Managed'
    """
)
LINK = db.update_rows(
    "discovered_certificate", "id", {"status": "text", "managed_certificate_id": "text", "updated_at": "timestamptz"}
)
SUMMARY = db.Sql(
    "SELECT value AS status, CAST(sum(n) AS BIGINT) AS n FROM tally_now"
    " WHERE dimension = 'discovered_certificate' GROUP BY value"
)


async def take(agent_id: str, report: Reported, actor: Actor) -> DiscoveryScan:
    """Keep one report whole and return its scan."""
    now = db.now()
    duration_ms = max(0, min(report.duration_ms, LONGEST_MS))
    scan = DiscoveryScan(
        id=new_id("ds"),
        agent_id=agent_id,
        directories=json.dumps(report.directories, ensure_ascii=False),
        certificates_found=len(report.found),
        errors_count=report.errors,
        scan_duration_ms=duration_ms,
        started_at=now - timedelta(milliseconds=duration_ms),
        completed_at=now,
    )
    rows = [_row(each, agent_id, str(scan.id), db.text_of(now)) for each in report.found]
    told: dict[str, Any] = {"agent_id": agent_id, "found": len(report.found), "errors": report.errors}
    async with audited(actor, "discovery_scan_completed", "discovery_scan", str(scan.id), told):
        stored = await db.fetch(UPSERT, json.dumps(rows)) if rows else []
        ours = {row["id"] for row in rows}
        scan.certificates_new = told["new"] = sum(row["id"] in ours for row in stored)
        await _link([row for row in stored if row["status"] == UNMANAGED], db.text_of(now))
        await DiscoveryScan.insert(scan)
    return scan


def _row(found: Found, agent_id: str, scan_id: str, now: str) -> dict[str, Any]:
    return {
        **asdict(found),
        "id": new_id("dc"),
        "agent_id": agent_id,
        "discovery_scan_id": scan_id,
        "status": UNMANAGED,
        **dict.fromkeys(("first_seen_at", "last_seen_at", "created_at", "updated_at"), now),
    }


async def _link(rows: Sequence[db.Row], now: str) -> None:
    fingerprints = sorted({row["fingerprint_sha256"] for row in rows})
    known = await db.fetch(OURS, json.dumps(fingerprints)) if fingerprints else []
    owner = {row["fingerprint_sha256"]: row["certificate_id"] for row in known}
    linked = [
        {"id": row["id"], "status": MANAGED, "managed_certificate_id": owner[row["fingerprint_sha256"]]}
        for row in rows
        if row["fingerprint_sha256"] in owner
    ]
    if linked:
        await db.fetch(LINK, json.dumps([{**each, "updated_at": now} for each in linked]))


async def claim(row_id: str, certificate_id: str, principal: Principal, actor: Actor) -> None:
    """Say that a certificate is the one of ``certificate_id``; the same again is a success.

    Raises:
        Refused: 400, there is no such certificate; 404; 409, another one has it.
    """
    async with db.transaction():
        row = await one(DiscoveredCertificate, row_id, principal, KIND, lock=True)
        if not await exists(Certificate, certificate_id, principal):
            raise invalid({"managed_certificate_id": "no such id"})
        if row["status"] == MANAGED and row["managed_certificate_id"] != certificate_id:
            raise _claimed(row)
        if row["status"] != MANAGED:
            await _claim(row, certificate_id, actor)


async def claim_as_new(row_id: str, owners: Mapping[str, str], principal: Principal, actor: Actor) -> str:
    """Make a managed certificate of one that was found, and return its id.

    ``owners`` holds owner_id, team_id and issuer_id.

    Raises:
        Refused: 400, one of them does not exist, or the certificate has no name; 404; 409, it is claimed already.
    """
    async with db.transaction():
        row = await one(DiscoveredCertificate, row_id, principal, KIND, lock=True)
        if row["status"] == MANAGED:
            raise _claimed(row)
        if row["is_ca"]:
            raise conflict("A CA certificate cannot be managed")
        if row["not_after"] is None:
            raise conflict("It is not known when the certificate ends")
        certificate_id = await adopt(_wanted(row, owners), actor)
        await _claim(row, certificate_id, actor)
    return certificate_id


def _wanted(row: db.Row, owners: Mapping[str, str]) -> Wanted:
    return Wanted(
        common_name=row["common_name"],
        sans=tuple(json.loads(row["sans"])),
        owner_id=owners["owner_id"],
        team_id=owners["team_id"],
        issuer_id=owners["issuer_id"],
        status=Status.ACTIVE,
        not_before=row["not_before"],
        expires_at=row["not_after"],
        serial_number=row["serial_number"],
        fingerprint=row["fingerprint_sha256"],
    )


def _claimed(row: db.Row) -> Refused:
    return Refused(HTTPStatus.CONFLICT, f"It is managed already, as {row['managed_certificate_id']}")


async def _claim(row: db.Row, certificate_id: str, actor: Actor) -> None:
    told = {"certificate_id": certificate_id, "fingerprint": row["fingerprint_sha256"]}
    async with audited(actor, "discovery_cert_claimed", "discovered_certificate", row["id"], told):
        await _decide(row["id"], {"status": MANAGED, "managed_certificate_id": certificate_id, "dismissed_at": None})


async def dismiss(row_id: str, reason: str, principal: Principal, actor: Actor) -> None:
    """Say that a certificate is of no interest; twice is a success.

    Raises:
        Refused: 404; 409, it is managed.
    """
    async with db.transaction():
        row = await one(DiscoveredCertificate, row_id, principal, KIND, lock=True)
        if row["status"] == MANAGED:
            raise _claimed(row)
        if row["status"] != DISMISSED:
            told = {"reason": reason} if reason else {}
            async with audited(actor, "discovery_cert_dismissed", "discovered_certificate", row_id, told):
                await _decide(row_id, {"status": DISMISSED, "dismissed_at": db.now()})


async def _decide(row_id: str, values: dict[str, Any]) -> None:
    # Piccolo's types know no mapping of names.
    await DiscoveredCertificate.update(**values, updated_at=db.now()).where(DiscoveredCertificate.id == row_id)


async def summary() -> dict[str, int]:
    """Return how many there are of each status."""
    return dict.fromkeys(STATUSES, 0) | {row["status"]: row["n"] for row in await db.fetch(SUMMARY)}
