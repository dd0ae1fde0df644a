"""The loop ``notifications``: tell people, threshold by threshold, that certificates come to their end.

What else there is to tell is told where it happens, and what could not be sent is tried again as any job is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.certificates.status import MAPPED, hold, settle
from certctl_server.certificates.warning import Alert, lives, untold
from certctl_server.leader import Leadership
from certctl_server.notices.tell import Notice, tell

BATCH = 1000
CRITICAL_DAYS = 7
"""From this threshold on an alert is critical."""
DUE = db.Sql("SELECT id FROM certificate WHERE alert_due_at <= $1 ORDER BY alert_due_at LIMIT $2")
NEXT = db.Sql("SELECT min(alert_due_at) AS due_at FROM certificate WHERE alert_due_at IS NOT NULL")
FACTS = db.Sql(
    """
    SELECT c.id, c.name, c.alerted, c.version_id, c.not_before, c.expires_at, p.alert_thresholds_days
    FROM certificate c JOIN renewal_policy p ON p.id = c.renewal_policy_id
    WHERE c.id IN ({ids:$1}) AND c.archived_at IS NULL AND c.revoked_at IS NULL
    """
)
ALERTED = db.update_rows("certificate", "id", {"alerted": "text"})


async def scan(leadership: Leadership) -> datetime | None:
    """Tell of every alert that is due, once for each version, threshold and channel; return when the next one is."""
    while True:
        async with leadership.leading():
            now = db.now()
            ids = [row["id"] for row in await db.fetch(DUE, now, BATCH)]
            await _alert(ids, now)
        if len(ids) < BATCH:
            return await db.moment(NEXT)


async def _alert(ids: list[str], now: datetime) -> None:
    if not ids:
        return
    # Whoever settles meanwhile would put the due moment back to an alert that is told here.
    await hold(ids)
    wanted = json.dumps(ids)
    mapped: dict[str, list[db.Row]] = defaultdict(list)
    for row in await db.fetch(MAPPED, wanted):
        mapped[row["certificate_id"]].append(row)
    notices: dict[Notice, Alert] = {}
    alerted = []
    for row in await db.fetch(FACTS, wanted):
        due = [alert for alert in untold(row, mapped[row["id"]]) if alert.at <= now]
        notices.update((_notice(row, alert, now), alert) for alert in due)
        alerted.append({"id": row["id"], "alerted": _told(row, mapped[row["id"]], due)})
    made = await tell(*notices)
    await record(_event(notice, notices[notice]) for notice in made)
    await db.fetch(ALERTED, json.dumps(alerted))
    await settle(ids, now=now)


def _told(row: db.Row, mapped: Iterable[db.Row], due: Iterable[Alert]) -> str:
    """The lowest threshold told by life, of those lives that there still are."""
    before = json.loads(row["alerted"])
    told = {life.key: before[life.key] for life in lives(row, mapped) if life.key in before}
    for alert in due:
        told[alert.life.key] = min(alert.threshold_days, told.get(alert.life.key, alert.threshold_days))
    return json.dumps(told)


def _notice(row: db.Row, alert: Alert, now: datetime) -> Notice:
    end = alert.life.not_after
    over = end <= now
    until = f"{end:%Y-%m-%d %H:%M} UTC"
    return Notice(
        type="ExpirationWarning",
        certificate_id=row["id"],
        subject="Certificate has expired" if over else f"Certificate expires in {_spelt(end - now)}",
        message=f"{row['name']} {'expired' if over else 'expires'} on {until}",
        severity="critical" if over or alert.threshold_days <= CRITICAL_DAYS else "warning",
        # The end is the key of what was made elsewhere: another certificate may have the same one.
        occurrence=f"{row['id']}|{alert.life.key}|{alert.threshold_days}",
    )


def _spelt(left: timedelta) -> str:
    """How long there is, in the largest unit of which there are two."""
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if (number := round(left.total_seconds() / seconds)) > 1:
            return f"{number} {unit}"
    return "a minute"


def _event(notice: Notice, alert: Alert) -> Event:
    details = {
        "threshold_days": alert.threshold_days,
        "version": alert.life.key,
        "expires_at": alert.life.not_after.isoformat(),
    }
    return Event(SYSTEM, "expiration_alert_sent", "certificate", notice.certificate_id, details)
