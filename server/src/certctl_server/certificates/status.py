"""The one place that writes ``certificate.status``: it follows from facts and the clock, for any set of rows at once.

Whoever changes a fact (a job, a version, a mapping, a policy, an issuer) calls ``settle`` in the same
transaction. ``flip`` is called by the clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from certctl_core.certificate import (
    AGEING,
    DeploymentState,
    Facts,
    Order,
    Situation,
    Status,
    check,
    decided,
    deployment_state,
    status_at,
)
from certctl_core.renewal import renew_due_at

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record

TRIES = 3
AGAIN = timedelta(hours=24)
"""After an order has failed for good, a fresh one follows at this pace while the certificate is due."""
FLIPS = 2000

FACTS = db.Sql(
    """
    SELECT c.id, c.status, c.decided, c.archived_at, c.revoked_at, c.version_id, c.was_active, c.not_before,
        c.expires_at, c.issued_at, p.auto_renew, p.renewal_window_days, i.enabled AS issuer_enabled,
        (SELECT count(*) FROM job o WHERE o.certificate_id = c.id AND o.type IN ('Issuance', 'Renewal')
            AND o.place IS NOT NULL) AS open_orders
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id JOIN issuer i ON i.id = c.issuer_id
    WHERE c.id IN ({ids:$1})
    """
)
LAST_ORDERS = db.Sql(
    """
    SELECT certificate_id, agent_id, status, completed_at FROM (
        SELECT certificate_id, agent_id, status, completed_at,
            row_number() OVER (PARTITION BY certificate_id, agent_id ORDER BY created_at DESC, id DESC) AS newest
        FROM job WHERE certificate_id IN ({ids:$1}) AND type IN ('Issuance', 'Renewal') AND status <> 'Cancelled') o
    WHERE newest = 1 AND status = 'Failed'
    """
)
MAPPED = db.Sql(
    """
    SELECT m.certificate_id, m.state, m.failures, m.not_before, m.not_after
    FROM certificate_target m JOIN target t ON t.id = m.target_id
    WHERE m.certificate_id IN ({ids:$1}) AND t.enabled
    """
)
WRITE = db.update_rows(
    "certificate",
    "id",
    {
        "status": "text",
        "decided": "text",
        "flip_at": "timestamptz",
        "renew_due_at": "timestamptz",
        "deployment_state": "text",
        "was_active": "boolean",
        "updated_at": "timestamptz",
    },
)
CHUNK = 2000
REFERRING = {
    column: db.Sql(f"SELECT id FROM certificate WHERE {column} = $1 AND id > $2 ORDER BY id LIMIT $3")  # noqa: S608  # ours
    for column in ("issuer_id", "renewal_policy_id")
}
FLIPPING = db.Sql("SELECT id FROM certificate WHERE flip_at <= $1 ORDER BY flip_at LIMIT $2")


async def settle(ids: Iterable[str], *, now: datetime | None = None, actor: Actor = SYSTEM) -> None:
    """Bring status, its next flip, the due moment and the deployment state of certificates up to their facts.

    Raises:
        IllegalTransition: the facts ask for a move that no event may make; a bug, and nothing is written.
    """
    now = now or datetime.now(UTC)
    if not (wanted := json.dumps(sorted(set(ids)))) or wanted == "[]":
        return
    async with db.transaction():
        facts = await db.fetch(FACTS, wanted)
        failed, mapped = defaultdict(list), defaultdict(list)
        for row in await db.fetch(LAST_ORDERS, wanted):
            failed[row["certificate_id"]].append(row)
        for row in await db.fetch(MAPPED, wanted):
            mapped[row["certificate_id"]].append(row)
        settled = [_settled(row, failed[row["id"]], mapped[row["id"]], now) for row in facts]
        await db.fetch(WRITE, json.dumps(settled, default=str))
        await record(_told(old, new, actor) for old, new in zip(facts, settled, strict=True) if _moved(old, new))


def _settled(row: db.Row, failed: list[db.Row], mapped: list[db.Row], now: datetime) -> dict[str, Any]:
    """Return the columns to write for one certificate; pure."""
    where = deployment_state(DeploymentState(each["state"]) for each in mapped)
    order = Order.OPEN if row["open_orders"] else Order.FAILED if failed else Order.NONE
    situation = Situation(
        archived=row["archived_at"] is not None,
        revoked=row["revoked_at"] is not None,
        order=order,
        # What was Active without a version of ours was made elsewhere and imported.
        has_version=row["version_id"] is not None or row["was_active"],
        was_active=row["was_active"],
        deployment=where,
        tries_exhausted=any(each["failures"] >= TRIES for each in mapped),
    )
    became = decided(situation)
    start, end = _oldest(row, mapped)
    shown, flip_at = status_at(Facts(decided=became, not_before=start, not_after=end), now)
    _check_move(Status(row["decided"]), became)
    return {
        "id": row["id"],
        "status": shown,
        "decided": became,
        "flip_at": flip_at,
        "renew_due_at": _due(row, order, failed),
        "deployment_state": where,
        "was_active": row["was_active"] or became in AGEING,
        "updated_at": now,
    }


def _check_move(old: Status, new: Status) -> None:
    if old is not new and not (old in AGEING and new in AGEING):
        check(old, new)


def _oldest(row: db.Row, mapped: list[db.Row]) -> tuple[datetime | None, datetime | None]:
    """The life of the certificate that will run out first: the oldest one deployed, else the newest version's."""
    deployed = [(each["not_before"], each["not_after"]) for each in mapped if each["not_after"] is not None]
    if deployed:
        return min(deployed, key=lambda life: life[1])
    return row["not_before"], row["expires_at"]


def _due(row: db.Row, order: Order, failed: list[db.Row]) -> datetime | None:
    """When the scheduler is to renew; None whenever it must not."""
    barred = not row["auto_renew"] or not row["issuer_enabled"] or row["archived_at"] or row["revoked_at"]
    if barred or order is Order.OPEN or row["expires_at"] is None or row["not_before"] is None:
        return None
    due = renew_due_at(row["not_before"], row["expires_at"], window_days=row["renewal_window_days"])
    fresh: list[datetime] = [each["completed_at"] + AGAIN for each in failed if each["completed_at"]]
    return max([due, *fresh])


def _moved(old: db.Row, new: dict[str, Any]) -> bool:
    return bool(old["status"] != new["status"])


def _told(old: db.Row, new: dict[str, Any], actor: Actor) -> Event:
    details = {"from": old["status"], "to": str(new["status"])}
    return Event(actor, "certificate_status_changed", "certificate", old["id"], details)


async def flip(now: datetime) -> int:
    """Settle the certificates whose status the clock alone has changed; return how many."""
    ids = [row["id"] for row in await db.fetch(FLIPPING, now, FLIPS)]
    await settle(ids, now=now)
    return len(ids)


async def settle_referring(column: str, id: str, *, actor: Actor = SYSTEM) -> None:
    """Settle every certificate whose ``column`` (``issuer_id``, ``renewal_policy_id``) refers to a row that changed."""
    last = ""
    while rows := await db.fetch(REFERRING[column], id, last, CHUNK):
        last = rows[-1]["id"]
        await settle([row["id"] for row in rows], actor=actor)
