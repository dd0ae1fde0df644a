import asyncio
import json
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates import windows
from certctl_server.certificates.renewal import scan
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate
from certctl_server.jobs.state import retry_due
from certctl_server.jobs.sweeper import time_out
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.notices.tables import Notification
from certctl_server.rules.tables import RenewalPolicy
from server_flow import aged, job_in, until

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
POLICY = "/api/v1/renewal-policies/rp-default"
EVERY_DAY = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def window(begins, ends):
    """One that begins and ends so long from now, every day."""
    start, end = ((db.now() + each).strftime("%H:%M") for each in (begins, ends))
    return {"days": EVERY_DAY, "start": start, "end": end, "timezone": "UTC"}


OPEN, CLOSED = (-HOUR, HOUR), (2 * HOUR, 3 * HOUR)


async def put(fleet, *given):
    answer = await fleet.people.put(POLICY, json={"maintenance_windows": [window(*each) for each in given]})
    assert answer.status_code == 200, answer.text


async def quietly(*given):
    """Let other windows be there without anybody having been told."""
    text = json.dumps([window(*each) for each in given])
    await RenewalPolicy.update(maintenance_windows=text).where(RenewalPolicy.id == "rp-default")


async def time_goes_by(job_id):
    """Let the moment come at which the windows of a job are looked at again."""
    row = await Job.select().where(Job.id == job_id).first()
    past = db.now() - timedelta(seconds=1)
    opens_at = min(row["opens_at"], past)
    offer_at = past if row["offer_at"] else None
    await Job.update(opens_at=opens_at, window_at=past, offer_at=offer_at).where(Job.id == job_id)


async def deploying(fleet, given):
    """A machine, and the id of a new certificate whose deployment to it was ordered under such a window."""
    machine = await fleet.machine("ag-1")
    await put(fleet, given)
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    return machine, id


async def serving(fleet, given):
    """A machine, and the id of the certificate that it serves; such a window came afterwards."""
    machine = await fleet.machine("ag-1")
    id = await fleet.served(machine)
    await put(fleet, given)
    return machine, id


async def one(fleet, id, type_, **more):
    [job] = await fleet.jobs(id, type=type_, **more)
    return job


def soon(moment, after):
    return abs(moment - db.now() - after) < MINUTE + timedelta(seconds=20)


async def test_a_deployment_waits_in_pending_for_the_next_window_and_is_done_in_it(fleet, leadership):
    machine, id = await deploying(fleet, CLOSED)
    job = await one(fleet, id, "Deployment")
    assert (job["status"], await machine.work()) == ("Pending", [])
    assert soon(job["scheduled_at"], 2 * HOUR)
    assert job["offer_at"] == job["opens_at"] == job["scheduled_at"]
    assert soon(await windows.look(leadership), 3 * HOUR)
    assert await machine.work() == []
    await quietly(OPEN)
    await time_goes_by(job["id"])
    assert await machine.work() == [], "not before the loop has looked"
    assert soon(await windows.look(leadership), HOUR)
    assert len(await machine.deploy_all()) == 1
    assert await fleet.status(id) == ("Active", "served")
    job = await one(fleet, id, "Deployment")
    assert (job["opens_at"], job["window_at"]) == (None, None)
    assert await windows.look(leadership) is None


async def test_what_nobody_fetched_in_its_window_waits_for_the_next(fleet, leadership):
    machine, id = await deploying(fleet, OPEN)
    job = await one(fleet, id, "Deployment")
    assert soon(job["window_at"], HOUR)
    await quietly(CLOSED)
    await time_goes_by(job["id"])
    assert await machine.work() == []
    await windows.look(leadership)
    job = await one(fleet, id, "Deployment")
    assert (job["status"], soon(job["scheduled_at"], 2 * HOUR)) == ("Pending", True)
    assert await machine.work() == []


async def test_a_deployment_that_fails_is_not_tried_again_outside_of_its_window(fleet, leadership):
    machine, id = await deploying(fleet, OPEN)
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await quietly(CLOSED)
    await time_goes_by(item["id"])
    await windows.look(leadership)
    assert (await one(fleet, id, "Deployment"))["status"] == "Running", "what has begun goes on"
    await machine.report(item["id"], "Failed", error="no")
    await Job.update(next_retry_at=db.now() - MINUTE).where(Job.id == item["id"])
    await retry_due(db.now())
    job = await one(fleet, id, "Deployment")
    assert (job["status"], soon(job["scheduled_at"], 2 * HOUR), await machine.work()) == ("Pending", True, [])
    await machine.beat(boot_id="a", capabilities=["verify"])
    await machine.beat(boot_id="b", capabilities=["verify"])
    assert await machine.work() == [], "an agent that starts again is offered nothing either"


async def test_an_automatic_renewal_waits_in_pending_and_the_scan_does_not_spin(fleet, leadership):
    machine, id = await serving(fleet, CLOSED)
    await aged(id, 90 * DAY, 20 * DAY)
    assert await scan(leadership) is None
    job = await one(fleet, id, "Renewal")
    assert (job["status"], soon(job["scheduled_at"], 2 * HOUR)) == ("Pending", True)
    assert await machine.work() == []
    assert (await fleet.status(id))[0] == "RenewalInProgress"
    following = await windows.look(leadership)
    assert soon(following, 2 * HOUR)
    assert await scan(leadership) is None
    await quietly(OPEN)
    await time_goes_by(job["id"])
    await windows.look(leadership)
    assert (await one(fleet, id, "Renewal"))["status"] == "AwaitingCSR"
    await machine.answer_orders()
    await machine.deploy_all()
    assert await fleet.status(id) == ("Active", "served")


async def test_a_renewal_that_its_agent_did_not_answer_in_the_window_is_not_offered_after_it(fleet, leadership):
    machine, id = await serving(fleet, OPEN)
    await aged(id, 90 * DAY, 20 * DAY)
    await scan(leadership)
    job = await one(fleet, id, "Renewal")
    assert (job["status"], soon(job["window_at"], HOUR)) == ("AwaitingCSR", True)
    await quietly(CLOSED)
    await time_goes_by(job["id"])
    assert await machine.work() == []
    await windows.look(leadership)
    assert await machine.work() == []
    await Job.update(scheduled_at=db.now() - 25 * HOUR).where(Job.id == job["id"])
    await time_out(leadership, 24 * HOUR, 168 * HOUR)
    assert (await one(fleet, id, "Renewal"))["status"] == "Failed", "silence ends as it does without windows"


async def test_a_renewal_that_waits_for_approval_waits_for_its_window_afterwards(fleet, leadership, connect):
    _, id = await serving(fleet, CLOSED)
    await fleet.people.put(POLICY, json={"requires_approval": True})
    await aged(id, 90 * DAY, 20 * DAY)
    await scan(leadership)
    job = await one(fleet, id, "Renewal")
    assert (job["status"], soon(job["scheduled_at"], timedelta())) == ("AwaitingApproval", True)
    assert (await fleet.post(f"jobs/{job['id']}/approve", reason="yes")).status_code == 200
    job = await one(fleet, id, "Renewal")
    assert (job["status"], soon(job["scheduled_at"], 2 * HOUR)) == ("Pending", True)


async def test_a_person_renews_at_once_and_the_deployment_still_waits(fleet, leadership):
    machine, id = await serving(fleet, CLOSED)
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202
    await machine.answer_orders()
    assert await machine.work() == []
    job = await one(fleet, id, "Deployment", status="Pending")
    assert soon(job["scheduled_at"], 2 * HOUR)


async def test_a_person_can_begin_a_renewal_that_waits(fleet, leadership):
    machine, id = await serving(fleet, CLOSED)
    await aged(id, 90 * DAY, 20 * DAY)
    await scan(leadership)
    job = await one(fleet, id, "Renewal")
    assert job["urgent_at"]
    assert (await fleet.post(f"certificates/{id}/renew", force=True)).status_code == 409
    answer = await fleet.post(f"certificates/{id}/renew")
    assert (answer.status_code, answer.json()["job_ids"]) == (202, [job["id"]])
    assert [item["id"] for item in await machine.work()] == [job["id"]]
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 409
    begun = await one(fleet, id, "Renewal")
    await machine.csr(id, "a.example")
    await until(lambda: job_in(job["id"], "Completed"))
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202
    fresh = await one(fleet, id, "Renewal", status="AwaitingCSR")
    alike = ("priority", "urgency", "urgent_at", "requested_by", "request", "opens_at", "window_at", "status")
    assert [begun[name] for name in alike] == [fresh[name] for name in alike]


async def overridden():
    rows = await AuditEvent.select().where(AuditEvent.action == "maintenance_windows_overridden")
    told = await Notification.select().where(Notification.subject == "Maintenance windows are overridden")
    return len(rows), len(told)


@pytest.mark.parametrize(("left", "waits"), [(49 * HOUR, True), (47 * HOUR, False), (-HOUR, False)], ids=str)
async def test_an_expiry_within_two_days_overrides_and_is_said_loudly_once_per_version(fleet, leadership, left, waits):
    one_, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.served(one_, two)
    await put(fleet, (10 * HOUR, 11 * HOUR))
    await aged(id, 90 * DAY, left)
    await scan(leadership)
    assert {job["status"] for job in await fleet.jobs(id, type="Renewal")} == {"Pending" if waits else "AwaitingCSR"}
    if waits:
        assert await overridden() == (0, 0)
        [job, _] = await fleet.jobs(id, type="Renewal")
        assert soon(job["scheduled_at"], HOUR), "when the expiry is 48 hours away, before the window begins"
        return
    assert await overridden() == (2, 2), "two agents, a version each"
    for machine in (one_, two):
        await machine.answer_orders()
        await machine.deploy_all()
    assert await fleet.status(id) == ("Active", "served")
    assert await overridden() == (4, 2), "the deployments replace the same versions"


async def test_what_was_made_elsewhere_and_ends_at_the_same_moment_is_told_one_by_one(fleet, leadership):
    machine = await fleet.machine("ag-1")
    target = await fleet.target("tgt", machine)
    ids = [await fleet.certificate(f"n{n}.example", status="Active", targets=[target]) for n in range(2)]
    await put(fleet, (10 * HOUR, 11 * HOUR))
    end = db.now() + 47 * HOUR
    await Certificate.update(not_before=end - 90 * DAY, expires_at=end).where(Certificate.id.is_in(ids))
    await settle(ids)
    await scan(leadership)
    assert await overridden() == (2, 2)
    told = await Notification.select().where(Notification.subject == "Maintenance windows are overridden")
    assert {row["certificate_id"] for row in told} == set(ids)


async def test_an_expiry_that_comes_near_while_a_deployment_waits_overrides(fleet, leadership):
    machine, id = await serving(fleet, (10 * HOUR, 11 * HOUR))
    await aged(id, 90 * DAY, 50 * HOUR)
    await fleet.post(f"certificates/{id}/renew")
    await machine.answer_orders()
    job = await one(fleet, id, "Deployment", status="Pending")
    assert soon(job["scheduled_at"], 2 * HOUR)
    assert await machine.work() == []
    await db.fetch(db.Sql("UPDATE certificate_target SET not_after = $1"), db.now() + 47 * HOUR)
    await time_goes_by(job["id"])
    await windows.look(leadership)
    assert await overridden() == (1, 1)
    assert len(await machine.deploy_all()) == 1


async def test_windows_that_change_or_go_time_anew_what_waits(fleet, leadership):
    machine, renewing = await serving(fleet, CLOSED)
    id = await fleet.certificate("b.example", targets=[await fleet.target("tgt-b", machine)])
    await machine.answer_orders()
    await aged(renewing, 90 * DAY, 20 * DAY)
    await scan(leadership)
    await put(fleet, (5 * HOUR, 6 * HOUR))
    for each, kind in ((id, "Deployment"), (renewing, "Renewal")):
        job = await one(fleet, each, kind, status="Pending")
        assert soon(job["scheduled_at"], 5 * HOUR)
    assert await machine.work() == []
    await put(fleet)
    assert sorted(item["type"] for item in await machine.work()) == ["Deployment", "Renewal"]
    assert await windows.look(leadership) is None


async def test_windows_that_are_added_hold_deployments_that_wait(fleet):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    await put(fleet, CLOSED)
    assert await machine.work() == []
    assert soon((await one(fleet, id, "Deployment"))["scheduled_at"], 2 * HOUR)


async def test_a_certificate_that_gets_another_policy_follows_its_windows(fleet):
    machine, id = await deploying(fleet, CLOSED)
    await fleet.people.post("/api/v1/renewal-policies", json={"id": "rp-free", "name": "free"})
    assert await machine.work() == []
    answer = await fleet.people.put(f"/api/v1/certificates/{id}", json={"renewal_policy_id": "rp-free"})
    assert answer.status_code == 200, answer.text
    assert [item["type"] for item in await machine.work()] == ["Deployment"]


async def test_two_loops_at_once_begin_everything_once(fleet, leadership, monkeypatch):
    monkeypatch.setattr(windows, "BATCH", 3)
    machine = await fleet.machine("ag-1")
    target = await fleet.target("tgt", machine)
    ids = [await fleet.certificate(f"n{n}.example", status="Active", targets=[target]) for n in range(8)]
    await put(fleet, CLOSED)
    for id in ids:
        await aged(id, 90 * DAY, 20 * DAY)
    await scan(leadership)
    await quietly(OPEN)
    for id in ids:
        await time_goes_by((await one(fleet, id, "Renewal"))["id"])
    another = Leadership(leadership.owner, timedelta(seconds=30), alone=True)
    another.epoch = leadership.epoch
    await asyncio.gather(windows.look(leadership), windows.look(another))
    assert {(await one(fleet, id, "Renewal"))["status"] for id in ids} == {"AwaitingCSR"}
    assert await AuditEvent.count().where(AuditEvent.action == "renewal_awaiting_csr") == len(ids)
