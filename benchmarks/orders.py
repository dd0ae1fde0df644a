"""Orders whose CSRs are there: what workers have to do, and how fast they did it."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta

from certctl_core.csr import read_csr
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.jobs.create import lane_of_issuer, order_place

CHUNK = 1000
PATIENCE_SECONDS = 60.0
CERTIFICATE = {
    **dict.fromkeys(("id", "name", "common_name", "sans", "owner_id", "team_id"), "text"),
    **dict.fromkeys(("issuer_id", "renewal_policy_id", "status", "decided"), "text"),
    **dict.fromkeys(("created_at", "updated_at"), "timestamptz"),
}
JOB = {
    **dict.fromkeys(("id", "type", "certificate_id", "issuer_id", "lane", "status", "place"), "text"),
    **dict.fromkeys(("csr_pem", "csr_sha256"), "text"),
    **dict.fromkeys(("due_at", "scheduled_at", "created_at"), "timestamptz"),
}
PUT_CERTIFICATES, PUT_JOBS = db.insert_rows("certificate", CERTIFICATE), db.insert_rows("job", JOB)
PUT_ISSUER = db.Sql(
    """
    INSERT INTO issuer (id, name, type, config, status, created_at, updated_at)
    VALUES ($1, $1, $2, $3, 'ready', {now}, {now})
    """
)
PUT_LANE = db.Sql("INSERT INTO lane (name) VALUES ($1)")
DONE = db.Sql(
    """
    SELECT count(*) AS jobs, min(started_at) AS began, max(completed_at) AS ended FROM job
    WHERE lane = $1 AND status = 'Completed'
    """
)
STORED = db.Sql(
    """
    SELECT count(*) AS versions FROM certificate_version v JOIN certificate c ON c.version_id = v.id
    WHERE v.issuer_id = $1 AND c.status = 'Active'
    """
)


def names(issuer_id: str, count: int) -> list[str]:
    """Return the names that ``put`` orders."""
    return [f"{issuer_id}-{number}.example.com" for number in range(count)]


def csrs(issuer_id: str, count: int) -> list[str]:
    """Return a CSR for each of the names that ``put`` orders."""
    return [csr_pem(name) for name in names(issuer_id, count)]


async def issuer(issuer_id: str, kind: str, config: dict[str, str]) -> None:
    """Put an issuer into the open database."""
    await db.fetch(PUT_ISSUER, issuer_id, kind, json.dumps(config))
    await db.fetch(PUT_LANE, lane_of_issuer(issuer_id))


async def put(issuer_id: str, pems: list[str]) -> None:
    """Order a certificate for each CSR, as if their agents had just answered; owners and policy are the inventory's."""
    now = str(datetime.now(UTC))
    rows = [_rows(issuer_id, number, pem, now) for number, pem in enumerate(pems)]
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        await db.fetch(PUT_CERTIFICATES, json.dumps([certificate for certificate, _ in some]))
        await db.fetch(PUT_JOBS, json.dumps([job for _, job in some]))


def _rows(issuer_id: str, number: int, pem: str, now: str) -> tuple[dict[str, str], dict[str, str]]:
    name, id = f"{issuer_id}-{number}.example.com", f"mc-{issuer_id}-{number}"
    times = {"created_at": now, "updated_at": now}
    refers = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": issuer_id, "renewal_policy_id": "rp-plenty"}
    status = {"status": "Pending", "decided": "Pending"}
    certificate = {"id": id, "name": name, "common_name": name, "sans": json.dumps([name]), **refers, **status, **times}
    job = {
        "id": f"job-{issuer_id}-{number}",
        "type": "Issuance",
        "certificate_id": id,
        "issuer_id": issuer_id,
        "lane": lane_of_issuer(issuer_id),
        "status": "Pending",
        "place": order_place(id, None),
        "csr_pem": pem,
        "csr_sha256": read_csr(pem).sha256,
        **dict.fromkeys(("due_at", "scheduled_at", "created_at"), now),
    }
    return certificate, job


async def done(issuer_id: str, count: int) -> float:
    """Wait until all are stored; return the seconds from the first claim to the last end.

    Raises:
        RuntimeError: they were not in time.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        [row] = await db.fetch(DONE, lane_of_issuer(issuer_id))
        if row["jobs"] == count:
            break
        if time.monotonic() > until:
            raise RuntimeError(f"{row['jobs']} of {count} orders of {issuer_id} were done in time")
        await asyncio.sleep(0.1)
    [stored] = await db.fetch(STORED, issuer_id)
    if stored["versions"] != count:
        raise RuntimeError(f"{stored['versions']} of {count} certificates of {issuer_id} were stored")
    began, ended = (_moment(row[name]) for name in ("began", "ended"))
    return (ended - began) / timedelta(seconds=1)


def _moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
