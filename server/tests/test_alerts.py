import asyncio
import json
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate
from certctl_server.db.migrations import m0002_alerts
from certctl_server.jobs import bell
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.notices import alerts
from certctl_server.notices.tables import Notification, Notifier
from certctl_server.rules.tables import RenewalPolicy
from server_flow import aged

DAY, MINUTE, SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)
THRESHOLDS = [30, 14, 7, 0]


async def notifier(id="nt-1", *events, **more):
    times = {"created_at": db.now(), "updated_at": db.now()}
    row = {"id": id, "name": id, "type": "Webhook", "status": "ready", "events": json.dumps(events), **times, **more}
    await Notifier.insert(Notifier(**row))


async def elsewhere(fleet, life, left, name="a.example"):
    id = await fleet.certificate(name, status="Active")
    await aged(id, life, left)
    return id


async def told(**more):
    """The alerts there are, by threshold and channel."""
    rows = await Notification.select().where(Notification.type == "ExpirationWarning")
    rows = [row for row in rows if all(row[name] == value for name, value in more.items())]
    return sorted((-int(row["occurrence"].split("|")[-2]), row["notifier_id"] or "") for row in rows)


async def due_at(id):
    return (await Certificate.select(Certificate.alert_due_at).where(Certificate.id == id).first())["alert_due_at"]


@pytest.mark.parametrize(
    ("life", "left", "expected", "next_"),
    [
        (398 * DAY, 31 * DAY, [], 30 * DAY),
        (398 * DAY, 29 * DAY, [30], 14 * DAY),
        (90 * DAY, 30 * DAY, [30], 14 * DAY),
        (45 * DAY, 16 * DAY, [], 15 * DAY),
        (45 * DAY, 14 * DAY, [30], 7 * DAY),
        (9 * DAY, 1.3 * DAY, [30, 14], 0.7 * DAY),
        (90 * MINUTE, 10 * MINUTE, [30, 14], 7 * MINUTE),
        (90 * DAY, -SECOND, [30, 14, 7, 0], None),
    ],
    ids=str,
)
async def test_alerts_apply_at_their_days_before_the_end_or_in_proportion(
    fleet, leadership, life, left, expected, next_
):
    await notifier()
    id = await elsewhere(fleet, life, left)
    following = await alerts.scan(leadership)
    assert await told() == [(-days, "nt-1") for days in expected]
    if next_ is None:
        assert following is None
    else:
        assert abs(following - (db.now() + left - next_)) < 20 * SECOND
    assert await due_at(id) == following
    assert await AuditEvent.count().where(AuditEvent.action == "expiration_alert_sent") == len(expected)
    assert await Job.count().where(Job.type == "Notification") == len(expected)


async def test_each_threshold_is_told_once_to_each_subscriber_as_time_goes_by(fleet, leadership):
    await notifier("nt-1")
    await notifier("nt-2", "ExpirationWarning", "Revocation")
    await notifier("nt-3", "Revocation")
    await notifier("nt-4", enabled=False)
    id = await elsewhere(fleet, 90 * DAY, 40 * DAY)
    for left in (40, 30, 29, 20, 14, 10, 7, 3, 1):
        await aged_same_life(id, left * DAY)
        for _ in range(2):
            await alerts.scan(leadership)
    assert await told() == sorted((-days, name) for days in (30, 14, 7) for name in ("nt-1", "nt-2"))
    subjects = [row["subject"] for row in await Notification.select().order_by(Notification.created_at)]
    assert subjects[::2] == [f"Certificate expires in {days} days" for days in (30, 14, 7)]
    severities = [row["severity"] for row in await Notification.select().order_by(Notification.created_at)]
    assert severities[::2] == ["warning", "warning", "critical"]


async def aged_same_life(id, left):
    """Let time go by for one and the same imported life: what was told of it stays told."""
    row = await Certificate.select().where(Certificate.id == id).first()
    told = json.loads(row["alerted"])
    await aged(id, 90 * DAY, left)
    row = await Certificate.select().where(Certificate.id == id).first()
    moved = {row["expires_at"].isoformat(): days for days in told.values()}
    await Certificate.update(alerted=json.dumps(moved)).where(Certificate.id == id)
    await settle([id])


async def test_what_nobody_subscribed_to_is_kept_without_a_channel(fleet, leadership):
    await notifier("nt-1", "Revocation")
    id = await elsewhere(fleet, 90 * DAY, 10 * DAY)
    for _ in range(2):
        await alerts.scan(leadership)
    rows = (await fleet.get(f"notifications?certificate_id={id}"))["data"]
    assert len(rows) == 2
    assert {(row["status"], row["channel"]) for row in rows} == {("failed", "")}
    assert rows[0]["error"] == "no notifier that can send is subscribed to ExpirationWarning"
    assert await Job.count().where(Job.type == "Notification") == 0


async def test_what_is_never_renewed_by_itself_is_told_of_as_well(fleet, leadership):
    await notifier()
    await RenewalPolicy.update(auto_renew=False).where(RenewalPolicy.id == "rp-default")
    await elsewhere(fleet, 90 * DAY, 10 * DAY)
    await alerts.scan(leadership)
    assert await told() == [(-30, "nt-1"), (-14, "nt-1")]


@pytest.mark.parametrize("how", ["revoked", "archived"])
async def test_what_is_put_away_is_told_of_no_more(fleet, leadership, how):
    await notifier("nt-1", "ExpirationWarning")
    id = await fleet.served(await fleet.machine("ag-1"))
    await aged(id, 90 * DAY, 10 * DAY)
    assert await due_at(id) is not None
    if how == "revoked":
        await fleet.post(f"certificates/{id}/revoke")
    else:
        await fleet.people.delete(f"/api/v1/certificates/{id}")
    assert await due_at(id) is None
    assert await alerts.scan(leadership) is None
    assert await told() == []


async def test_a_new_version_is_told_of_anew_and_only_once_it_is_deployed(fleet, leadership):
    await notifier()
    machine = await fleet.machine("ag-1")
    id = await fleet.served(machine)
    [first] = (await fleet.get(f"certificates/{id}/versions"))["data"]
    await aged(id, 90 * DAY, 10 * DAY)
    await alerts.scan(leadership)
    await fleet.post(f"certificates/{id}/renew")
    await machine.answer_orders()
    assert list(json.loads((await row_of(id))["alerted"])) == [first["id"]]
    assert abs(await due_at(id) - db.now() - 3 * DAY) < MINUTE, "the old version is still in place"
    await machine.deploy_all()
    assert abs(await due_at(id) - db.now() - 60 * DAY) < 2 * DAY
    await aged(id, 90 * DAY, 20 * DAY)
    await alerts.scan(leadership)
    assert await told() == sorted([(-30, "nt-1"), (-14, "nt-1"), (-30, "nt-1")])


async def row_of(id):
    return await Certificate.select().where(Certificate.id == id).first()


async def test_what_one_agent_still_serves_is_told_of_although_another_has_renewed(fleet, leadership):
    await notifier()
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.served(one, two)
    await aged(id, 90 * DAY, 10 * DAY)
    await fleet.post(f"certificates/{id}/renew")
    await one.answer_orders()
    await one.deploy_all()
    await alerts.scan(leadership)
    assert await told() == [(-30, "nt-1"), (-14, "nt-1")], "the second agent's version alone"


async def test_a_policy_that_changes_changes_what_is_told(fleet, leadership):
    await notifier()
    id = await elsewhere(fleet, 398 * DAY, 20 * DAY)
    await alerts.scan(leadership)
    path = "/api/v1/renewal-policies/rp-default"
    assert (await fleet.people.put(path, json={"alert_thresholds_days": [60, 25, 5]})).status_code == 200
    await alerts.scan(leadership)
    assert await told() == [(-30, "nt-1"), (-25, "nt-1")], "60 days are over longer than the 30 that were told"
    assert abs(await due_at(id) - db.now() - 15 * DAY) < MINUTE
    await fleet.people.put(path, json={"alert_thresholds_days": []})
    assert await due_at(id) is None


async def test_two_loops_at_once_tell_everything_exactly_once(fleet, leadership):
    await notifier("nt-1")
    await notifier("nt-2")
    ids = [await elsewhere(fleet, 90 * DAY, 10 * DAY, f"n{n}.example") for n in range(20)]
    another = Leadership(leadership.owner, timedelta(seconds=30), alone=True)
    another.epoch = leadership.epoch
    await asyncio.gather(*(alerts.scan(each) for each in (leadership, another, leadership)))
    assert await Notification.count() == len(ids) * 2 * 2
    assert await Job.count().where(Job.type == "Notification") == len(ids) * 2 * 2
    assert await AuditEvent.count().where(AuditEvent.action == "expiration_alert_sent") == len(ids) * 2


@pytest.mark.parametrize("statement", ["tell", "record", "ALERTED", "settle"])
async def test_a_crash_between_any_two_statements_neither_loses_nor_doubles(fleet, leadership, monkeypatch, statement):
    await notifier()
    await elsewhere(fleet, 90 * DAY, 10 * DAY)

    async def crash(*_, **__):
        raise ConnectionResetError("killed")

    with monkeypatch.context() as patch:
        if statement == "ALERTED":
            patch.setattr(alerts, "ALERTED", db.Sql("SELECT no_such_column FROM certificate WHERE id = $1"))
        else:
            patch.setattr(alerts, statement, crash)
        with pytest.raises(Exception, match=r"killed|no_such_column"):
            await alerts.scan(leadership)
    assert await Notification.count() == 0
    await alerts.scan(leadership)
    assert await told() == [(-30, "nt-1"), (-14, "nt-1")]


async def test_batches_end_when_all_is_told(fleet, leadership, monkeypatch):
    monkeypatch.setattr(alerts, "BATCH", 4)
    for n in range(10):
        await elsewhere(fleet, 90 * DAY, 20 * DAY, f"n{n}.example")
    following = await alerts.scan(leadership)
    assert abs(following - db.now() - 6 * DAY) < MINUTE
    assert await Notification.count() == 10


async def test_what_is_due_soon_wakes_the_loop(fleet, leadership):
    poked = []
    bell.connect(None, lambda *names: poked.extend(names))
    await elsewhere(fleet, 90 * MINUTE, 31 * MINUTE)
    assert "notifications" in poked


async def test_after_the_migration_everything_that_is_kept_is_looked_at_once(fleet, leadership, monkeypatch):
    far, near = await elsewhere(fleet, 90 * DAY, 80 * DAY), await elsewhere(fleet, 90 * DAY, 10 * DAY, "b.example")
    await Certificate.update(alert_due_at=None).where(Certificate.id.is_in([far, near]))
    [backfill] = [text for text in m0002_alerts.statements(db.dialect()) if "UPDATE certificate" in text]
    await db.fetch(db.Sql(backfill))
    await alerts.scan(leadership)
    assert {row["certificate_id"] for row in await Notification.select()} == {near}
    assert abs(await due_at(far) - db.now() - 50 * DAY) < MINUTE
