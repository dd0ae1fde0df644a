"""What an agent is to do: offers with a lease, and the certificate to deploy."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from certctl_core.config import read
from certctl_core.errors import MisconfiguredError
from certctl_core.job import JobState, JobType
from certctl_core.profile import Profile
from pydantic import SecretStr

from certctl_server import db
from certctl_server.agents.health import is_plain, is_skewed
from certctl_server.connectors.config import hide, unseal
from certctl_server.context import Context
from certctl_server.jobs.bell import Waiter, draining
from certctl_server.rules.profiles import of_row
from certctl_server.sealing import place

ITEMS, P256 = 20, 256
LOOK = timedelta(seconds=5)
"""How often a waiting poll looks although no bell rang: another process may have made the job."""
# A Deployment waits in Pending, a CSR in AwaitingCSR. What could not succeed is not offered.
OFFERABLE = """
    job.agent_id = $1 AND job.offer_at IS NOT NULL AND job.offer_at <= {now} AND (
        (job.status = 'Pending' AND job.type = 'Deployment'
            AND EXISTS (SELECT 1 FROM target t WHERE t.id = job.target_id AND t.enabled AND t.status <> 'incomplete')
            AND EXISTS (SELECT 1 FROM certificate_version v WHERE v.id = job.version_id AND v.revoked_at IS NULL
                AND v.not_after > {now} AND NOT EXISTS (
                    SELECT 1 FROM agent_key k JOIN agent a ON a.id = k.agent_id
                    WHERE k.agent_id = $1 AND k.certificate_id = job.certificate_id
                        AND k.public_key_sha256 <> v.public_key_sha256 AND coalesce(a.capabilities, '[]') = '[]')))
        OR (job.status = 'AwaitingCSR' AND job.csr_sha256 = '' AND $2 <> 'skewed'
            AND EXISTS (SELECT 1 FROM issuer i WHERE i.id = job.issuer_id AND i.enabled AND i.status <> 'incomplete')))
"""
# Orders whose profile may refuse the only kind of key that a plain agent makes, over the live one.
CHOOSY = db.Sql(
    """
    SELECT j.id AS job_id, f.* FROM job j JOIN certificate c ON c.id = j.certificate_id
        JOIN certificate_profile f ON f.id = c.certificate_profile_id
    WHERE j.agent_id = $1 AND j.status = 'AwaitingCSR' AND j.offer_at <= {now} AND f.allowed_key_algorithms <> '[]'
    """
)
KEEP_BACK = db.Sql(
    "UPDATE job SET offer_at = {after:$2}, last_error = $3 WHERE id IN ({ids:$1}) AND status = 'AwaitingCSR'"
)
KEPT_BACK = timedelta(hours=1)
ONLY_P256 = "the agent makes ECDSA P-256 keys only, which the profile does not allow: it needs a newer agent"
LOOKED = db.Sql(f"SELECT id FROM job WHERE {OFFERABLE} ORDER BY created_at, id LIMIT $3")  # noqa: S608  # ours
OFFER = db.Sql(
    f"""
    UPDATE job SET offer_at = {{after:$4}} WHERE offer_at <= {{now}} AND id IN (
        SELECT id FROM job WHERE {OFFERABLE} ORDER BY created_at, id LIMIT $3) RETURNING id
    """  # noqa: S608  # ours
)
SHOWN = db.Sql(
    """
    SELECT j.id, j.type, j.status, j.certificate_id, j.target_id, j.offer_at, j.traceparent, c.common_name, c.sans,
        t.type AS target_type, t.config, v.fingerprint_sha256, f.allowed_key_algorithms
    FROM job j JOIN certificate c ON c.id = j.certificate_id LEFT JOIN target t ON t.id = j.target_id
        LEFT JOIN certificate_version v ON v.id = j.version_id
        LEFT JOIN certificate_profile f ON f.id = c.certificate_profile_id
    WHERE j.id IN ({ids:$1}) ORDER BY j.created_at, j.id
    """
)
BOOT = db.Sql("SELECT boot_id FROM agent WHERE id = $1")
NEXT_OFFER = db.Sql("SELECT min(offer_at) AS offer_at FROM job WHERE agent_id = $1 AND offer_at > {now}")
# Newest first: the newest version of the agent's own CSR, else the newest of nobody's CSR if it serves it.
CERTIFICATE = db.Sql(
    """
    SELECT v.id, v.pem_chain FROM certificate_version v
    WHERE v.certificate_id = $2 AND (v.agent_id = $1 OR (v.agent_id = '' AND EXISTS (
        SELECT 1 FROM certificate_target m JOIN target t ON t.id = m.target_id
        WHERE m.certificate_id = $2 AND t.agent_id = $1)))
    ORDER BY CASE WHEN v.agent_id = $1 THEN 0 ELSE 1 END, v.version DESC LIMIT 1
    """
)
DEFAULT_KEY = {"algorithm": "ECDSA", "min_size": 256}
SIZES = {"RSA": 2048}


async def offers(ctx: Context, agent: db.Row, *, claims: bool, wait: timedelta) -> list[dict[str, Any]]:
    """Return the work items of an agent, at once if there are any, else when there are or ``wait`` is over.

    ``claims``: the agent's own key asks, so what is returned is offered again only after the offer's lease.
    """
    # Not by the wall clock: one that goes back would keep a poll alive long after its client has gone.
    until = time.monotonic() + wait.total_seconds()
    with Waiter(agent["id"]) as rung:
        while True:
            # A poll whose agent died still waits here; what it took would be lost until its lease ran out.
            [now] = await db.fetch(BOOT, agent["id"])
            if now["boot_id"] != agent["boot_id"]:
                return []
            items = await _look(ctx, agent, claims=claims)
            left = timedelta(seconds=until - time.monotonic())
            if items or left <= timedelta() or draining():
                return items
            due = await db.moment(NEXT_OFFER, agent["id"])
            soon = min(left, LOOK, due - db.now() if due else LOOK)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(soon.total_seconds(), 0.02)):
                    await rung.wait()
            rung.clear()


async def _look(ctx: Context, agent: db.Row, *, claims: bool) -> list[dict[str, Any]]:
    if is_plain(agent):
        await _keep_back(agent["id"])
    skewed = "skewed" if is_skewed(agent["clock_offset_ms"]) else "right"
    if not (rows := await db.fetch(LOOKED, agent["id"], skewed, ITEMS)):
        return []
    if claims:
        rows = await db.fetch(OFFER, agent["id"], skewed, ITEMS, ctx.settings.agent_offer_lease.total_seconds())
    shown = await db.fetch(SHOWN, json.dumps([row["id"] for row in rows]))
    return [_item(ctx, row, secrets=claims) for row in shown]


async def _keep_back(agent_id: str) -> None:
    rows = await db.fetch(CHOOSY, agent_id)
    ids = [row["job_id"] for row in rows if not _allows_p256(of_row(row))]
    if ids:
        await db.fetch(KEEP_BACK, json.dumps(ids), KEPT_BACK.total_seconds(), ONLY_P256)


def _allows_p256(profile: Profile) -> bool:
    return any(rule.algorithm == "ECDSA" and rule.min_size <= P256 for rule in profile.allowed_key_algorithms)


def _item(ctx: Context, row: db.Row, *, secrets: bool) -> dict[str, Any]:
    sans = json.loads(row["sans"])
    item = {
        "id": row["id"],
        "type": row["type"],
        "certificate_id": row["certificate_id"],
        "common_name": row["common_name"] or _first_dns(sans),
        "sans": sans,
        "status": row["status"],
        "lease_until": row["offer_at"],
        "traceparent": row["traceparent"],
    }
    if row["type"] == JobType.DEPLOYMENT:
        item |= {
            "target_id": row["target_id"],
            "target_type": row["target_type"],
            "target_config": _config(ctx, row, secrets=secrets),
            "expected_fingerprint": row["fingerprint_sha256"],
        }
    elif row["status"] == JobState.AWAITING_CSR:
        rule = (json.loads(row["allowed_key_algorithms"] or "[]") or [DEFAULT_KEY])[0]
        item |= {"key_algorithm": rule["algorithm"], "key_size": rule["min_size"] or SIZES.get(rule["algorithm"], 256)}
    return {name: value for name, value in item.items() if value not in (None, "")}


def _first_dns(sans: list[str]) -> str:
    plain = [san for san in sans if "@" not in san and ":" not in san and not san.replace(".", "").isdecimal()]
    return (plain or sans or [""])[0]


def _config(ctx: Context, row: db.Row, *, secrets: bool) -> dict[str, Any]:
    """The target's options with the connector's defaults filled in; secrets only for the agent's own key."""
    cls = next((cls for kind, cls in ctx.plugins.targets.items() if kind == row["target_type"]), None)
    raw = json.loads(row["config"])
    if not secrets:
        return hide(cls.Config if cls else None, raw)
    try:
        opened = unseal(raw, ctx.cipher, place("target", row["target_id"], "config"))
    except MisconfiguredError:
        return hide(cls.Config if cls else None, raw)
    reading = read(cls.Config, opened) if cls else None
    if reading is None or reading.config is None:
        return opened
    filled = reading.config.model_dump(exclude_none=True, mode="python")
    return {**{name: _plain(value) for name, value in filled.items()}, **opened}


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool)) else str(value)


async def certificate_for(agent_id: str, certificate_id: str) -> str | None:
    """Return the chain, leaf first, that an agent is to deploy for a certificate; None if there is none for it."""
    rows = await db.fetch(CERTIFICATE, agent_id, certificate_id)
    return str(rows[0]["pem_chain"]) if rows else None
