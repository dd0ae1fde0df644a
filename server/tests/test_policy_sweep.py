import asyncio
import json
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.create import create
from certctl_server.jobs import bell
from certctl_server.leader import NotLeading
from certctl_server.notices.tables import Notification
from certctl_server.policies import sweep as sweeping
from certctl_server.policies.sweep import LOOP, sweep
from certctl_server.policies.tables import PolicyRule, PolicyViolation
from server_flow import aged, wanted

PATH = "/api/v1/policies"
DAY = timedelta(days=1)


@pytest.fixture
async def some(ctx, grounds):
    """Certificates that nobody was told of."""
    bell.connect(None, None)
    return [(await create(wanted(f"{n}.example", environment=f"e{n % 2}"), SYSTEM))[0] for n in range(30)]


async def rule(client, **more):
    body = {"id": "pr", "name": "rule", "type": "AllowedEnvironments", "config": {"allowed": ["e0"]}, **more}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 201, answer.text


async def open_ones():
    rows = await PolicyViolation.select().where(PolicyViolation.resolved_at.is_null())
    return sorted(row["certificate_id"] for row in rows)


async def test_a_new_rule_wakes_the_sweep_and_so_does_a_change(client, some):
    poked = []
    bell.connect(None, lambda *loops: poked.extend(loops))
    await rule(client)
    assert poked == [LOOP]
    await client.put(f"{PATH}/pr", json={"enabled": False})
    assert poked == [LOOP, LOOP]
    bell.connect(None, None)


async def test_a_sweep_finds_what_a_new_rule_forbids_once(client, some, leadership, monkeypatch):
    monkeypatch.setattr(sweeping, "CHUNK", 7)
    await rule(client, severity="Error")
    for _ in range(2):
        await sweep(leadership)
        assert await open_ones() == sorted(some[1::2])
        assert await PolicyViolation.count() == 15
    events = db.Sql("SELECT actor, details FROM audit_event WHERE action = 'policy_violation_detected'")
    rows = await db.fetch(events)
    assert (len(rows), {row["actor"] for row in rows}) == (15, {"system"})
    assert {json.loads(row["details"])["rule_id"] for row in rows} == {"pr"}


async def test_of_many_breaches_of_one_rule_people_are_told_once(client, some, leadership):
    await rule(client, severity="Critical")
    await sweep(leadership)
    [told] = await Notification.select()
    assert (told["type"], told["severity"], told["certificate_id"] or "") == ("PolicyViolation", "critical", "")
    assert "pr" in told["message"]
    assert (await client.get("/api/v1/notifications")).json()["total"] == 1


async def test_of_few_breaches_people_are_told_one_by_one(client, some, leadership):
    await rule(client, type="AllowedDomains", config={"denied_domains": ["1.example", "2.example"]})
    await sweep(leadership)
    told = await Notification.select()
    assert sorted(each["certificate_id"] for each in told) == sorted(some[1:3])
    assert all("violates the policy rule: " in each["message"] for each in told)


@pytest.mark.parametrize(
    "change",
    [{"enabled": False}, {"config": {"allowed": ["e0", "e1"]}}, None],
    ids=["disabled", "milder", "fixed unnoticed"],
)
async def test_what_breaks_a_rule_no_more_is_resolved(client, some, leadership, change):
    await rule(client)
    await sweep(leadership)
    if change:
        await client.put(f"{PATH}/pr", json=change)
    else:
        await db.fetch(db.Sql("UPDATE certificate SET environment = 'e0'"))
    await sweep(leadership)
    assert await open_ones() == []
    found = (await client.get(f"{PATH}/pr/violations?resolved=true&per_page=500")).json()
    assert found["total"] == 15
    assert all(each["resolved_at"] for each in found["data"])


async def test_time_alone_makes_a_certificate_late(client, some, leadership):
    await rule(client, type="RenewalLeadTime", config={"lead_time_days": 14}, severity="Critical")
    await aged(some[0], 90 * DAY, 20 * DAY)
    await aged(some[1], 90 * DAY, 10 * DAY)
    await aged(some[2], 90 * DAY, 10 * DAY)
    await db.fetch(db.Sql("UPDATE certificate SET revoked_at = {now} WHERE id = $1"), some[2])
    await sweep(leadership)
    assert await open_ones() == [some[1]]


async def test_a_rule_that_cannot_be_read_is_broken_by_all(client, some, leadership):
    await rule(client)
    await PolicyRule.update({PolicyRule.type: "CertificateLifetime"}, force=True)
    await sweep(leadership)
    assert await open_ones() == sorted(some)


async def test_whoever_leads_no_more_writes_nothing(client, some, leadership):
    await rule(client)
    leadership.epoch = leadership.epoch + 1
    with pytest.raises(NotLeading):
        await sweep(leadership)
    assert await PolicyViolation.count() == 0


async def test_a_sweep_beside_changes_ends_with_the_truth(client, some, leadership):
    await rule(client)
    paths = [f"/api/v1/certificates/{id}" for id in some]
    for environment in ("e0", "e1", "e0"):
        await asyncio.gather(sweep(leadership), *(client.put(p, json={"environment": environment}) for p in paths))
        assert await open_ones() == ([] if environment == "e0" else sorted(some))


async def test_a_sweep_that_finds_nothing_new_reads_and_writes_nothing(client, some, leadership, monkeypatch):
    await rule(client)
    await sweep(leadership)
    asked = []
    inner = db.session.engine().run

    async def run(text, args):
        asked.append(text)
        return await inner(text, args)

    monkeypatch.setattr(db.session.engine(), "run", run)
    await sweep(leadership)
    assert len(asked) <= 3
    assert not [text for text in asked if not text.lstrip().startswith("SELECT")]
