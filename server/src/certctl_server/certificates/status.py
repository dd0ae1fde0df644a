"""The one place that writes ``certificate.status``: it follows from facts and the clock, for any set of rows at once.

Whoever changes a fact (a job, a version, a mapping, a policy, an issuer) calls ``settle`` in the same
transaction. ``flip`` is called by the clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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
from certctl_core.profile import SHORT_LIVED
from certctl_core.renewal import renew_due_at, spread_of
from piccolo.custom_types import Combinable

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.warning import born, untold
from certctl_server.jobs import bell
from certctl_server.jobs.tables import Job

TRIES = 3
AGAIN = timedelta(hours=24)
"""After an order has failed for good, a fresh one follows at this pace while the certificate is due."""
AGAIN_LOOK = timedelta(hours=1)
FLIPS = 2000

FACTS = db.Sql(
    """
    SELECT c.id, c.status, c.decided, c.archived_at, c.revoked_at, c.version_id, c.was_active, c.not_before,
        c.expires_at, c.issued_at, c.alerted, p.auto_renew, p.renewal_window_days, p.alert_thresholds_days,
        i.enabled AS issuer_enabled,
        (SELECT count(*) FROM job o WHERE o.certificate_id = c.id AND o.type IN ('Issuance', 'Renewal')
            AND coalesce(o.place, '') <> '') AS open_orders
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id JOIN issuer i ON i.id = c.issuer_id
    WHERE c.id IN ({ids:$1})
    """
)
# With what each agent has. Nothing is held back by an agent that serves none of the certificate's targets any more,
# nor by an order that had no agent once another one followed it.
_LAST_ORDERS = """
    SELECT o.certificate_id, o.completed_at, v.id AS version_id, v.not_before, v.not_after FROM (
        SELECT certificate_id, agent_id, status, completed_at, created_at,
            row_number() OVER (PARTITION BY certificate_id, agent_id ORDER BY created_at DESC, id DESC) AS newest
        FROM job WHERE certificate_id IN ({ids:$1}) AND type IN ('Issuance', 'Renewal') AND status <> 'Cancelled') o
    LEFT JOIN certificate_version v ON v.certificate_id = o.certificate_id AND v.version = (
        SELECT max(version) FROM certificate_version n
        WHERE n.certificate_id = o.certificate_id AND n.agent_id = coalesce(o.agent_id, ''))
    WHERE o.newest = 1 AND o.status = 'Failed' AND CASE
        WHEN o.agent_id IS NULL THEN NOT EXISTS (SELECT 1 FROM job later WHERE later.certificate_id = o.certificate_id
            AND later.created_at > o.created_at AND later.type IN ('Issuance', 'Renewal')
            AND later.status <> 'Cancelled')
        ELSE EXISTS (SELECT 1 FROM certificate_target m JOIN target t ON t.id = m.target_id
            WHERE m.certificate_id = o.certificate_id AND t.agent_id = o.agent_id AND t.enabled) END
    """
# The plus takes the index on type out of SQLite's choice: without statistics it would walk all orders there are.
LAST_ORDERS = db.Sql(postgres=_LAST_ORDERS, sqlite=_LAST_ORDERS.replace("AND type", "AND +type"))
# What is served, or is to be: the newest version of each agent that serves, the newest of all, and what is in place.
LIVES = db.Sql(
    """
    SELECT v.id, v.certificate_id, v.not_before, v.not_after FROM certificate_version v
    WHERE v.certificate_id IN ({ids:$1}) AND v.revoked_at IS NULL AND v.version = (
            SELECT max(n.version) FROM certificate_version n
            WHERE n.certificate_id = v.certificate_id AND n.agent_id = v.agent_id)
        AND (EXISTS (SELECT 1 FROM certificate_target m JOIN target t ON t.id = m.target_id
                WHERE m.certificate_id = v.certificate_id AND t.enabled
                    AND (t.agent_id = v.agent_id OR m.version_id = v.id))
            OR EXISTS (SELECT 1 FROM certificate c WHERE c.id = v.certificate_id AND c.version_id = v.id))
    """
)
MAPPED = db.Sql(
    """
    SELECT m.certificate_id, m.state, m.failures, m.version_id, m.not_before, m.not_after
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
        "alert_due_at": "timestamptz",
        "deployment_state": "text",
        "was_active": "boolean",
        "updated_at": "timestamptz",
    },
)
HOLD = db.Sql("SELECT id FROM certificate WHERE id IN ({ids:$1}) ORDER BY id FOR NO KEY UPDATE")
SOON = timedelta(hours=1)
"""The loops look at least this often by themselves; what is due sooner wakes them."""
DUE = {"renew_due_at": "renewal", "alert_due_at": "notifications"}
"""Due moments, and the loop that each wakes."""
POSTPONE = db.Sql("UPDATE certificate SET renew_due_at = {after:$3} WHERE id IN ({ids:$1}) AND renew_due_at <= $2")
FLIPPING = db.Sql("SELECT id FROM certificate WHERE flip_at <= $1 ORDER BY flip_at LIMIT $2")


async def hold(ids: Iterable[str]) -> None:
    """Let nobody else change or settle these certificates until the transaction ends; take it before their jobs."""
    if db.dialect() == "postgres":
        await db.fetch(HOLD, json.dumps(sorted(set(ids))))


async def hold_of(jobs: Combinable) -> None:
    """``hold`` the certificates of the jobs that match: whoever moves jobs and then settles takes these first."""
    rows = await Job.select(Job.certificate_id).where(jobs)
    await hold(row["certificate_id"] for row in rows if row["certificate_id"])


async def settle(ids: Iterable[str], *, now: datetime | None = None, actor: Actor = SYSTEM, held: bool = False) -> None:
    """Bring status, its next flip, the due moment and the deployment state of certificates up to their facts.

    ``held`` says that the caller's transaction holds them.

    Raises:
        IllegalTransition: the facts ask for a move that no event may make; a bug, and nothing is written.
    """
    now, ids = now or db.now(), sorted(set(ids))
    if not ids:
        return
    wanted = json.dumps(ids)
    async with db.transaction():
        # Two orders of one certificate that end at once would else each see the other one open.
        if not held:
            await hold(ids)
        facts = await db.fetch(FACTS, wanted)
        around: dict[str, Around] = defaultdict(Around)
        for row in await db.fetch(LAST_ORDERS, wanted):
            around[row["certificate_id"]].failed.append(row)
        for row in await db.fetch(MAPPED, wanted):
            around[row["certificate_id"]].mapped.append(row)
        for row in await db.fetch(LIVES, wanted):
            around[row["certificate_id"]].lives.append(row)
        settled = [derived(row, around[row["id"]], now) for row in facts]
        await db.fetch(WRITE, json.dumps(settled, default=str))
        for column, loop in DUE.items():
            if any(each[column] and each[column] - now < SOON for each in settled):
                bell.poke(loop)
        moved = [(old, new) for old, new in zip(facts, settled, strict=True) if _moved(old, new)]
        await record(event for old, new in moved for event in _told(old, new, actor))


@dataclass(slots=True)
class Around:
    """What else there is of one certificate: orders that failed for good, targets, versions that count."""

    failed: list[db.Row] = field(default_factory=list)
    mapped: list[db.Row] = field(default_factory=list)
    lives: list[db.Row] = field(default_factory=list)


def derived(row: db.Row, around: Around, now: datetime) -> dict[str, Any]:
    """Return the columns to write for one certificate; pure."""
    failed, mapped = around.failed, around.mapped
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
        "renew_due_at": _due(row, order, around, now),
        "alert_due_at": _alert_due(row, mapped),
        "deployment_state": where,
        # What was revoked is past its first issue as well: what follows is a renewal.
        "was_active": row["was_active"] or became in AGEING or became is Status.REVOKED,
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
    return born(row), row["expires_at"]


def _due(row: db.Row, order: Order, around: Around, now: datetime) -> datetime | None:
    """When the scheduler is to renew; None whenever it must not."""
    barred = not row["auto_renew"] or not row["issuer_enabled"] or row["archived_at"] or row["revoked_at"]
    if barred or order is Order.OPEN:
        return None
    window_days, spread = row["renewal_window_days"], spread_of(row["id"])
    moments = [_again(each, window_days, spread, now) for each in around.failed]
    failed = {each["version_id"] for each in around.failed}
    lives = [(each["not_before"], each["not_after"]) for each in around.lives if each["id"] not in failed]
    if row["version_id"] is None and row["expires_at"] is not None:
        lives.append((born(row), row["expires_at"]))
    moments += [renew_due_at(start, end, window_days=window_days, spread=spread) for start, end in lives]
    return min(moments, default=None)


def _alert_due(row: db.Row, mapped: list[db.Row]) -> datetime | None:
    """When people are to be told next that it expires, whether or not it is renewed by itself."""
    if row["archived_at"] or row["revoked_at"]:
        return None
    return min((alert.at for alert in untold(row, mapped)), default=None)


def _again(failed: db.Row, window_days: int, spread: float, now: datetime) -> datetime:
    """When a fresh order follows one that failed for good: after a day, and not before what its agent has is due."""
    # A clock that was ahead for a moment must not put it off for as long.
    fresh: datetime = min(failed["completed_at"], now) + AGAIN
    if failed["not_after"] is None:
        return fresh
    due_at = renew_due_at(failed["not_before"], failed["not_after"], window_days=window_days, spread=spread)
    return max(fresh, due_at)


def _moved(old: db.Row, new: dict[str, Any]) -> bool:
    return bool(old["status"] != new["status"])


def _told(old: db.Row, new: dict[str, Any], actor: Actor) -> Iterator[Event]:
    details = {"from": old["status"], "to": str(new["status"])}
    yield Event(actor, "certificate_status_changed", "certificate", old["id"], details)
    start = born(old)
    if new["status"] == Status.EXPIRED and start and old["expires_at"] - start < SHORT_LIVED:
        told = {"version_id": old["version_id"], "expires_at": old["expires_at"]}
        yield Event(actor, "short_lived_cert_expired", "certificate", old["id"], told)


async def postpone(ids: Iterable[str], now: datetime) -> None:
    """Look again later at certificates that are due, and for which nothing could be ordered."""
    await db.fetch(POSTPONE, json.dumps(sorted(set(ids))), now, AGAIN_LOOK.total_seconds())


async def flip(now: datetime) -> int:
    """Settle the certificates whose status the clock alone has changed; return how many."""
    ids = [row["id"] for row in await db.fetch(FLIPPING, now, FLIPS)]
    await settle(ids, now=now)
    return len(ids)
