"""What an agent is to do: offers with a lease, and the certificate to deploy."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NotRequired, TypedDict, cast

from certctl_core.config import read
from certctl_core.errors import MisconfiguredError
from certctl_core.job import JobState, JobType
from certctl_core.policy import Act
from certctl_core.profile import Profile
from pydantic import SecretStr

from certctl_server import db
from certctl_server.agents.budget import room
from certctl_server.agents.health import is_plain, is_skewed
from certctl_server.agents.tables import Agent
from certctl_server.agents.waiting import keep_looking
from certctl_server.auth.principal import Principal, visible
from certctl_server.body import Time
from certctl_server.connectors.config import hide, unseal
from certctl_server.context import Context
from certctl_server.errors import not_found
from certctl_server.jobs.bell import Waiter, draining
from certctl_server.policies.judge import FORBIDDEN, forbidden, refusal
from certctl_server.rules.profiles import of_row
from certctl_server.sealing import place

ITEMS, P256 = 20, 256
# A Deployment waits in Pending, a CSR in AwaitingCSR. What could not succeed is not offered.
OFFERABLE = """
    job.agent_id = $1 AND job.offer_at IS NOT NULL AND job.offer_at <= {now}
    AND (job.window_at IS NULL OR (job.opens_at <= {now} AND job.window_at > {now})) AND (
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
FORBID = db.with_rows(
    {"id": "text", "why": "text"},
    """
    UPDATE job SET offer_at = {after:$2}, last_error = row.why FROM {row}
    WHERE job.id = row.id AND job.status IN ('AwaitingCSR', 'Pending') AND job.offer_at IS NOT NULL
    """,
)
KEPT_BACK, FORBIDDEN_FOR = timedelta(hours=1), timedelta(minutes=5)
ONLY_P256 = "the agent makes ECDSA P-256 keys only, which the profile does not allow: it needs a newer agent"
LOOKED = db.Sql(f"SELECT id, type, certificate_id FROM job WHERE {OFFERABLE} ORDER BY created_at, id LIMIT $3")  # noqa: S608  # ours
OFFER = db.Sql(
    f"""
    UPDATE job SET offer_at = {{after:$4}}, offered_until = CASE WHEN type = 'Deployment' THEN {{after:$4}} END,
        last_error = CASE WHEN last_error LIKE '{FORBIDDEN}:%' THEN '' ELSE last_error END
    WHERE id IN ({{ids:$3}}) AND {OFFERABLE} RETURNING id
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
SEEN = db.Sql(
    """
    SELECT a.*, EXISTS (SELECT 1 FROM job j WHERE j.agent_id = a.id AND j.offer_at <= {now}) AS offered
    FROM agent a WHERE a.id IN ({ids:$1})
    """
)
# What it deploys at the moment; a rollout may have put that back to an older version. Else the newest version of the
# agent's own CSR, else the newest of nobody's CSR if it serves it.
CERTIFICATE = db.Sql(
    """
    SELECT v.id, v.pem_chain FROM certificate_version v
    WHERE v.certificate_id = $2 AND (v.agent_id = $1 OR (v.agent_id = '' AND EXISTS (
        SELECT 1 FROM certificate_target m JOIN target t ON t.id = m.target_id
        WHERE m.certificate_id = $2 AND t.agent_id = $1)))
    ORDER BY CASE WHEN EXISTS (SELECT 1 FROM job j WHERE j.certificate_id = $2 AND j.agent_id = $1
            AND j.version_id = v.id AND j.type = 'Deployment' AND j.status = 'Running') THEN 0
        WHEN v.agent_id = $1 THEN 1 ELSE 2 END, v.version DESC LIMIT 1
    """
)


class WorkItem(TypedDict):
    """One thing that an agent is to do."""

    id: str
    type: JobType
    certificate_id: str
    common_name: NotRequired[str]
    sans: list[str]
    status: JobState
    lease_until: NotRequired[Time]
    traceparent: NotRequired[str]
    target_id: NotRequired[str]
    target_type: NotRequired[str]
    target_config: NotRequired[dict[str, Any]]
    expected_fingerprint: NotRequired[str]
    key_algorithm: NotRequired[str]
    key_size: NotRequired[int]


DEFAULT_KEY = {"algorithm": "ECDSA", "min_size": 256}
SIZES = {"RSA": 2048}


async def _seen_all(ids: list[str]) -> list[db.Row | None]:
    found = {row["id"]: row for row in await db.fetch(SEEN, json.dumps(list(set(ids))))}
    return [found.get(id) for id in ids]


_seen = db.Together(_seen_all)


async def seen(id: str, principal: Principal) -> db.Row:
    """Return the agent that ``principal`` may see, and whether there may be work for it (``offered``).

    Raises:
        Refused: 404, there is none.
    """
    where = visible(principal, Agent)
    row = await _seen(id) if where is None or where.args == (id,) else None
    if row is None:
        raise not_found("Agent")
    return row


async def offers(ctx: Context, agent: db.Row, *, claims: bool, wait: timedelta) -> list[WorkItem]:
    """Return the work items of an agent, at once if there are any, else when there are or ``wait`` is over.

    ``claims``: the agent's own key asks, so what is returned is offered again only after the offer's lease.
    """
    # Not by the wall clock: one that goes back would keep a poll alive long after its client has gone.
    until = time.monotonic() + wait.total_seconds()
    with Waiter(agent["id"]) as rung:
        # What was made before the bell could be heard is seen now.
        now = await _seen(agent["id"]) if wait else agent
        # A poll whose agent died still waits here; what it took would be lost until its lease ran out.
        while now is not None and now["boot_id"] == agent["boot_id"]:
            items = await _look(ctx, now, claims=claims) if now["offered"] else []
            left = until - time.monotonic()
            if items or left <= 0 or draining():
                return items
            keep_looking()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await rung.wait()
            rung.clear()
            now = await _seen(agent["id"])
        return []


async def _look(ctx: Context, agent: db.Row, *, claims: bool) -> list[WorkItem]:
    if is_plain(agent):
        await _keep_back(agent["id"])
    skewed = "skewed" if is_skewed(agent["clock_offset_ms"]) else "right"
    if not (rows := await _allowed(await db.fetch(LOOKED, agent["id"], skewed, ITEMS))):
        return []
    if claims:
        rows = await _offer(agent["id"], skewed, rows, ctx.settings.agent_offer_lease)
    shown = await db.fetch(SHOWN, json.dumps([row["id"] for row in rows]))
    return [_item(ctx, row, secrets=claims) for row in shown]


async def _allowed(rows: list[db.Row]) -> list[db.Row]:
    """Those of ``rows`` that no policy forbids; the others are looked at again in a while, and say why."""
    barred: dict[str, str] = {}
    for act, deploys in ((Act.ORDER, False), (Act.DEPLOY, True)):
        some = [row for row in rows if (row["type"] == JobType.DEPLOYMENT) == deploys]
        found = await forbidden(act, {row["certificate_id"] for row in some}) if some else {}
        barred |= {row["id"]: refusal(found[row["certificate_id"]]) for row in some if row["certificate_id"] in found}
    if barred:
        told = [{"id": id, "why": why} for id, why in barred.items()]
        await db.fetch(FORBID, json.dumps(told), FORBIDDEN_FOR.total_seconds())
    return [row for row in rows if row["id"] not in barred]


async def _offer(agent_id: str, skewed: str, rows: list[db.Row], lease: timedelta) -> list[db.Row]:
    """Give the agent what it may have of ``rows``: every order, and as many deployments as its groups have room for."""
    deployments = [row["id"] for row in rows if row["type"] == JobType.DEPLOYMENT]
    async with db.transaction():
        places = await room(agent_id, len(deployments)) if deployments else 0
        barred = set(deployments[places:])
        ids = [row["id"] for row in rows if row["id"] not in barred]
        return await db.fetch(OFFER, agent_id, skewed, json.dumps(ids), lease.total_seconds()) if ids else []


async def _keep_back(agent_id: str) -> None:
    rows = await db.fetch(CHOOSY, agent_id)
    ids = [row["job_id"] for row in rows if not _allows_p256(of_row(row))]
    if ids:
        await db.fetch(KEEP_BACK, json.dumps(ids), KEPT_BACK.total_seconds(), ONLY_P256)


def _allows_p256(profile: Profile) -> bool:
    return any(rule.algorithm == "ECDSA" and rule.min_size <= P256 for rule in profile.allowed_key_algorithms)


def _item(ctx: Context, row: db.Row, *, secrets: bool) -> WorkItem:
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
    return cast(WorkItem, {name: value for name, value in item.items() if value not in (None, "")})


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
