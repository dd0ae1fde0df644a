import asyncio
import json
import re
from datetime import timedelta

import pytest
from certctl_core.job import JobState
from certctl_server import db
from certctl_server.agents import budget
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates import rollout, rollout_state, windows
from certctl_server.certificates.rollout_state import SILENCE
from certctl_server.certificates.tables import Certificate, CertificateTarget, CertificateVersion, Rollout
from certctl_server.jobs.state import retry_due
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.notices.tables import Notification, Notifier
from certctl_server.targets import service as targets

PLAN = {"waves": [25, 50, 100], "soak_seconds": 60, "max_failures": 0}


@pytest.fixture
async def leader(ctx):
    found = Leadership("test", ctx.settings.job.lease, alone=True)
    assert await found.campaign()
    return found


@pytest.fixture
def go(leader):
    """Let the loop turn until nothing is due; ``soaked``: the time that the wave has to hold is over."""

    async def turn(*, soaked=False):
        if soaked:
            past = db.now() - timedelta(days=1)
            await Rollout.update(passed_at=past, due_at=past).where(Rollout.passed_at.is_not_null())
        return await rollout.advance(leader)

    return turn


class Shop:
    """A certificate on targets, and what is on them."""

    def __init__(self, fleet, id, targets):
        self.fleet, self.id, self.targets = fleet, id, targets

    async def rows(self):
        rows = (await self.fleet.get(f"certificates/{self.id}/deployments"))["data"]
        return {row["id"]: row for row in rows}

    async def at(self):
        """The number of the version on each target, in order; 0 for none."""
        versions = await CertificateVersion.select().where(CertificateVersion.certificate_id == self.id)
        numbers = {row["id"]: row["version"] for row in versions}
        rows = await CertificateTarget.select().where(CertificateTarget.certificate_id == self.id)
        there = {row["target_id"]: numbers.get(row["version_id"], 0) for row in rows}
        return "".join(str(there[target]) for target in self.targets)

    async def open(self):
        """The targets to which a deployment is open."""
        rows = await self.fleet.jobs(self.id, type="Deployment")
        return sorted(row["target_id"] for row in rows if row["place"])

    async def renew(self, *machines):
        answer = await self.fleet.post(f"certificates/{self.id}/renew", force=True)
        assert answer.status_code == 202, answer.text
        for machine in machines:
            assert await machine.answer_orders()

    async def wake(self):
        await Rollout.update(due_at=db.now()).where(Rollout.certificate_id == self.id)

    async def rollout(self):
        return await Rollout.select().where(Rollout.certificate_id == self.id).first()


async def opened(fleet, machines, names, plan):
    """A shop whose first version is on all its targets, and whose policy has had this plan since."""
    await fleet.post("renewal-policies", id="rp", name="rp")
    id = await fleet.certificate("a.example", targets=names, renewal_policy_id="rp")
    for machine in machines:
        await machine.answer_orders()
    for machine in machines:
        await machine.deploy_all()
    assert (await fleet.people.put("/api/v1/renewal-policies/rp", json={"rollout": plan})).status_code == 200
    return Shop(fleet, id, names)


async def chain(fleet, count, plan):
    """A shop with so many agents, of one target each; and its machines."""
    machines = [await fleet.machine(f"ag-{n}") for n in range(count)]
    names = [await fleet.target(f"t{n}", machine) for n, machine in enumerate(machines)]
    return await opened(fleet, machines, names, plan), machines


@pytest.fixture
async def shop(fleet, go):
    """Make a certificate that one agent serves on several targets, all of its first version there."""

    async def make(targets=4, plan=PLAN, capabilities=("verify",)):
        machine = await fleet.machine("ag", capabilities)
        names = [await fleet.target(f"t{n}", machine) for n in range(targets)]
        return await opened(fleet, [machine], names, plan), machine

    return make


async def fail(machine, target, times=3):
    """Let a deployment to a target fail so often, whatever its pace."""
    for _ in range(times):
        past = db.now() - timedelta(seconds=1)
        mine = (Job.target_id == target) & Job.place.is_not_null()
        await Job.update(next_retry_at=past).where(mine & (Job.status == JobState.FAILED))
        await retry_due(db.now())
        await Job.update(offer_at=past).where(mine & (Job.status == JobState.PENDING))
        [item] = [item for item in await machine.work() if item["target_id"] == target]
        assert (await machine.report(item["id"], "Running")).status_code == 200
        assert (await machine.report(item["id"], "Failed", error="nginx said no")).status_code == 200


async def actions(id):
    rows = await AuditEvent.select(AuditEvent.action).where(
        (AuditEvent.resource_id == id) & AuditEvent.action.like("rollout_%")
    )
    return [row["action"].removeprefix("rollout_") for row in rows]


async def test_each_wave_waits_until_the_one_before_is_served_and_has_soaked(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    assert await machine.work() == []
    await go()
    assert await shop.open() == ["t0"]
    await machine.deploy_all()
    assert await shop.fleet.status(shop.id) == ("RenewalInProgress", "pending")
    due = await go()
    assert timedelta(seconds=50) < due - db.now() <= timedelta(seconds=60)
    assert await shop.open() == []
    await go(soaked=True)
    assert await shop.open() == ["t1"]
    await machine.deploy_all()
    await go()
    await go(soaked=True)
    assert await shop.open() == ["t2", "t3"]
    rows = await shop.rows()
    assert rows["t1"]["rollout"] == {"status": "Running", "held": False, "waves": [25, 50, 100], "wave": 2}
    await machine.deploy_all()
    await go()
    assert await shop.at() == "2222"
    assert await shop.rollout() is None
    assert await shop.fleet.status(shop.id) == ("Active", "served")
    assert await actions(shop.id) == ["started", *["wave_started"] * 3, "completed"]


async def test_a_first_issue_goes_in_waves_as_well_and_has_nothing_to_put_back(fleet, go):
    machine = await fleet.machine("ag")
    names = [await fleet.target(f"t{n}", machine) for n in range(4)]
    await fleet.post("renewal-policies", id="rp", name="rp", rollout=PLAN)
    shop = Shop(fleet, await fleet.certificate("a.example", targets=names, renewal_policy_id="rp"), names)
    await machine.answer_orders()
    await go()
    assert await shop.open() == ["t0"]
    assert (await shop.rows())["t3"]["rollout"]["held"] is True
    await fail(machine, "t0")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    assert (await shop.open(), await shop.at()) == ([], "0000")
    assert (await fleet.status(shop.id))[0] == "Failed"


async def test_too_many_failures_halt_the_rollout_and_put_its_wave_back(shop, go):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Notifier.insert(Notifier(id="nt", name="nt", type="Webhook", status="ready", **times))
    shop, machine = await shop(plan={"waves": [75, 100], "soak_seconds": 0, "max_failures": 0})
    await shop.renew(machine)
    await go()
    for item in await machine.work():
        if item["target_id"] == "t0":
            await machine.report(item["id"], "Running")
            await machine.verify(item)
            await machine.report(item["id"], "Completed")
        elif item["target_id"] == "t1":
            await machine.report(item["id"], "Running")
    await fail(machine, "t2")
    await go()
    row = await shop.rollout()
    assert (row["status"], row["due_at"]) == ("Halted", None)
    assert row["reason"] == "the rollout was halted in wave 1: t2 failed"
    # t0 has it, t1 may have it by now, t2 put itself back, t3 never began.
    assert await shop.open() == ["t0", "t1"]
    items = {item["target_id"]: item for item in await machine.work()}
    old, new = await CertificateVersion.select().order_by(CertificateVersion.version)
    assert {item["expected_fingerprint"] for item in items.values()} == {old["fingerprint_sha256"]}
    for item in items.values():
        await machine.report(item["id"], "Running")
        chain = (await machine.http.get(f"{machine.path}/certificates/{shop.id}")).json()["certificate_pem"]
        assert chain == old["pem_chain"] != new["pem_chain"]
        await machine.verify(item)
        assert (await machine.report(item["id"], "Completed")).status_code == 200
    assert await shop.at() == "1111"
    rows = await shop.rows()
    assert {rows[name]["served_fingerprint"] for name in ("t0", "t1")} == {old["fingerprint_sha256"]}
    assert {row["rollout"]["status"] for row in rows.values()} == {"Halted"}
    assert (await shop.fleet.status(shop.id))[0] == "Failed"
    assert (await shop.fleet.get(f"certificates/{shop.id}"))["last_error"] == row["reason"]
    told = [each["subject"] for each in await Notification.select() if each["type"] == "DeploymentFailure"]
    assert "The rollout of a.example was halted" in told
    [event] = await AuditEvent.select().where(AuditEvent.action == "rollout_halted")
    details = json.loads(event["details"])
    assert (details["failed"], details["put_back"], details["not_put_back"]) == (["t2"], ["t0", "t1"], [])
    await go()
    assert await shop.open() == []


async def test_waves_that_passed_keep_what_they_have(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await machine.deploy_all()
    await go()
    await go(soaked=True)
    await fail(machine, "t1")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    assert (await shop.open(), await shop.at()) == ([], "2111")


async def test_one_failed_try_is_tried_again_and_halts_nothing(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await fail(machine, "t0", times=2)
    await go()
    assert (await shop.rollout())["status"] == "Running"
    [job] = [row for row in await shop.fleet.jobs(shop.id, status="Failed") if row["place"]]
    assert job["next_retry_at"] is not None
    await shop.fleet.post(f"jobs/{job['id']}/retry")
    await machine.deploy_all()
    await go()
    assert (await shop.rollout())["passed_at"] is not None


async def test_tolerated_failures_do_not_stop_the_waves(shop, go):
    shop, machine = await shop(plan={**PLAN, "max_failures": 1, "soak_seconds": 0})
    await shop.renew(machine)
    await go()
    await fail(machine, "t0")
    await go()
    assert "t1" in await shop.open()
    await machine.deploy_all()
    await go()
    await machine.deploy_all()
    await go()
    assert await shop.rollout() is None
    assert await shop.at() == "1222"
    assert await shop.open() == ["t0"]


async def test_a_dead_agent_counts_as_failed_after_the_time_of_three_tries(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await machine.work()
    past = db.now() - SILENCE
    await Job.update(scheduled_at=past + timedelta(minutes=1)).where(Job.place.is_not_null())
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Running"
    await Job.update(scheduled_at=past).where(Job.place.is_not_null())
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    assert (await shop.fleet.status(shop.id))[0] == "Failed"


async def late(target, by=SILENCE):
    """Let the open deployment to a target have been made so long ago."""
    past = db.now() - by
    await Job.update(scheduled_at=past, offer_at=past).where((Job.target_id == target) & Job.place.is_not_null())


async def far_window(shop):
    """Let changes be made in one hour of the day, most of a day away."""
    start, end = ((db.now() + timedelta(hours=each)).strftime("%H:%M") for each in (20, 21))
    every = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    body = {"maintenance_windows": [{"days": every, "start": start, "end": end, "timezone": "UTC"}]}
    assert (await shop.fleet.people.put("/api/v1/renewal-policies/rp", json=body)).is_success


async def test_an_agent_that_finds_no_room_in_its_group_is_not_silent(shop, go):
    shop, machine = await shop()
    other = await shop.fleet.machine("busy")
    await shop.fleet.certificate("b.example", targets=[await shop.fleet.target("tgt-b", other)])
    await other.answer_orders()
    for each in (machine, other):
        await each.beat(os="linux")
    group = {"id": "edge", "name": "edge", "match_os": "linux", "max_concurrent_deployments": 1}
    assert (await shop.fleet.post("agent-groups", **group)).status_code == 201
    assert len(await other.work()) == 1
    await shop.renew(machine)
    await go()
    await late("t0")
    assert await machine.work() == []
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Running"
    await late("t0")
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Halted", "who does not even ask is"


async def test_an_agent_is_waited_for_from_when_its_target_is_enabled_again(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    path = "/api/v1/targets/t0"
    assert (await shop.fleet.people.put(path, json={"enabled": False})).is_success
    await late("t0")
    assert (await shop.fleet.people.put(path, json={"enabled": True})).is_success
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Running"


async def test_what_an_agent_had_begun_before_it_started_again_is_waited_for_anew(shop, go):
    shop, machine = await shop()
    await machine.beat(boot_id="one")
    await shop.renew(machine)
    await go()
    await late("t0")
    [item] = await machine.work()
    assert (await machine.report(item["id"], "Running")).status_code == 200
    await Job.update(started_at=db.now() - SILENCE).where(Job.id == item["id"])
    await machine.beat(boot_id="two")
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Running"
    await late("t0")
    await shop.wake()
    await go()
    assert (await shop.rollout())["status"] == "Halted"


@pytest.mark.parametrize("missed", ["whole", "part", "disabled"])
async def test_a_window_that_closed_over_a_deployment_that_nobody_began_counts_as_failed(shop, go, leader, missed):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await far_window(shop)
    [job] = [row for row in await shop.fleet.jobs(shop.id, target_id="t0") if row["place"]]
    # Half an hour was open, and is over.
    opened, closed = db.now() - timedelta(minutes=40), db.now() - timedelta(minutes=10)
    began = opened + timedelta(minutes=5 if missed == "part" else 0)
    await Job.update(opens_at=opened, window_at=closed, scheduled_at=began, offer_at=began).where(Job.id == job["id"])
    if missed == "disabled":
        assert (await shop.fleet.people.put("/api/v1/targets/t0", json={"enabled": False})).is_success
    await windows.look(leader)
    if missed == "disabled":
        assert (await shop.fleet.people.put("/api/v1/targets/t0", json={"enabled": True})).is_success
    await go()
    assert (await shop.rollout())["status"] == ("Halted" if missed == "whole" else "Running")


async def test_what_a_halted_rollout_puts_back_stays_free_of_windows_that_change(shop, go):
    shop, machine = await shop(plan={"waves": [50, 100], "soak_seconds": 0, "max_failures": 0})
    await shop.renew(machine)
    await go()
    item = next(item for item in await machine.work() if item["target_id"] == "t0")
    await machine.report(item["id"], "Running")
    await machine.verify(item)
    await machine.report(item["id"], "Completed")
    await fail(machine, "t1")
    await go()
    await far_window(shop)
    assert [item["target_id"] for item in await machine.deploy_all()] == ["t0"]
    assert await shop.at() == "1111"


async def test_what_a_halted_rollout_held_back_is_not_sent_by_the_next_one(fleet, go):
    shop, machines = await chain(fleet, 2, {"waves": [50, 100], "soak_seconds": 0, "max_failures": 0})
    await shop.renew(*machines)
    await go()
    await fail(machines[0], "t0")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    await shop.renew(machines[0])
    await go()
    assert await shop.open() == ["t0"]
    await machines[0].deploy_all()
    await go()
    await go(soaked=True)
    assert await shop.open() == [], "its version is the one that was halted"
    await machines[1].answer_orders()
    await go()
    assert await shop.open() == ["t1"]
    await machines[1].deploy_all()
    await go()
    assert (await shop.rollout(), await shop.at()) == (None, "56")


async def test_a_halted_rollout_that_goes_on_tries_what_was_tolerated_before_anew(shop, go):
    shop, machine = await shop(plan={"waves": [25, 50, 100], "soak_seconds": 0, "max_failures": 1})
    await shop.renew(machine)
    await go()
    await fail(machine, "t0")
    await go()
    await fail(machine, "t1")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    assert (await shop.fleet.post(f"certificates/{shop.id}/deploy")).status_code == 202
    rows = [row for row in await shop.fleet.jobs(shop.id, type="Deployment") if row["place"]]
    assert {(row["target_id"], row["status"], row["failures"]) for row in rows} == {
        ("t0", "Pending", 0),
        ("t1", "Pending", 0),
    }
    assert sorted(item["target_id"] for item in await machine.deploy_all()) == ["t0", "t1"]
    await go()
    assert await shop.open() == ["t2", "t3"]


async def test_a_halted_rollout_goes_on_when_a_person_deploys(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await fail(machine, "t0")
    await go()
    answer = await shop.fleet.post(f"certificates/{shop.id}/deploy")
    assert answer.status_code == 202, answer.text
    assert await shop.open() == ["t0"]
    [job] = [row for row in await shop.fleet.jobs(shop.id, target_id="t0") if row["place"]]
    assert answer.json()["job_ids"] == [job["id"]]
    row = await shop.rollout()
    assert (row["status"], row["reason"], row["wave"]) == ("Running", "", 0)
    await machine.deploy_all()
    await go()
    await go(soaked=True)
    assert await shop.open() == ["t1"]
    assert (await actions(shop.id))[-3:] == ["resumed", "wave_started", "wave_started"]


@pytest.mark.parametrize("way", ["deploy", "retry"])
async def test_one_target_of_a_halted_rollout_can_be_tried_alone(shop, go, way):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await fail(machine, "t0")
    await go()
    if way == "deploy":
        answer = await shop.fleet.post(f"certificates/{shop.id}/deploy", target_id="t0")
    else:
        [job] = [row for row in await shop.fleet.jobs(shop.id, target_id="t0") if row["status"] == "Cancelled"]
        answer = await shop.fleet.post(f"jobs/{job['id']}/retry")
    assert answer.is_success, answer.text
    assert (await shop.open(), (await shop.rollout())["status"]) == (["t0"], "Halted")
    await machine.deploy_all()
    assert await shop.at() == "2111"


async def test_deploying_while_waves_roll_sends_nobody_ahead_but_the_target_that_is_named(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    answer = await shop.fleet.post(f"certificates/{shop.id}/deploy")
    assert (answer.status_code, "wave" in answer.json()["message"]) == (409, True)
    await go()
    assert len((await shop.fleet.post(f"certificates/{shop.id}/deploy")).json()["job_ids"]) == 1
    await shop.fleet.post(f"certificates/{shop.id}/deploy", target_id="t3")
    assert await shop.open() == ["t0", "t3"]


async def test_a_newer_version_begins_a_new_rollout(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    await machine.deploy_all()
    await go()
    await shop.renew(machine)
    await go()
    assert await shop.open() == ["t0"]
    await fail(machine, "t0")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    await shop.renew(machine)
    await go()
    assert (await shop.rollout())["status"] == "Running"
    for _ in range(6):
        await machine.deploy_all()
        await go(soaked=True)
    assert await shop.at() == "4444"
    assert await shop.rollout() is None


@pytest.mark.parametrize("way", ["revoke", "archive"])
async def test_revoking_or_archiving_ends_the_rollout(shop, go, way):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    if way == "revoke":
        assert (await shop.fleet.post(f"certificates/{shop.id}/revoke")).is_success
    else:
        assert (await shop.fleet.people.delete(f"/api/v1/certificates/{shop.id}")).is_success
    assert (await shop.rollout(), await shop.open()) == (None, [])
    await go()
    assert await machine.work() == []


@pytest.mark.parametrize("way", ["unmapped", "disabled", "removed"])
async def test_a_target_that_is_gone_holds_up_no_wave(shop, go, way):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    if way == "unmapped":
        change = {"target_ids": ["t1", "t2", "t3"]}
        assert (await shop.fleet.people.put(f"/api/v1/certificates/{shop.id}", json=change)).is_success
    elif way == "disabled":
        assert (await shop.fleet.people.put("/api/v1/targets/t0", json={"enabled": False})).is_success
    else:
        assert (await shop.fleet.people.delete("/api/v1/targets/t0")).is_success
    await go()
    assert "t1" in await shop.open()


async def test_a_cancelled_deployment_counts_as_failed(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    [job] = [row for row in await shop.fleet.jobs(shop.id, target_id="t0") if row["place"]]
    await shop.fleet.post(f"jobs/{job['id']}/cancel")
    await go()
    assert (await shop.rollout())["status"] == "Halted"


async def test_the_waves_count_targets_of_all_agents_whose_versions_come_one_by_one(fleet, go):
    shop, machines = await chain(fleet, 4, {"waves": [50, 100], "soak_seconds": 60, "max_failures": 0})
    await shop.renew(machines[3], machines[1])
    await go()
    await shop.fleet.jobs(shop.id)
    assert await shop.open() == ["t1", "t3"]
    await machines[0].answer_orders()
    await go()
    assert await shop.open() == ["t1", "t3"]
    for machine in machines[1], machines[3]:
        await machine.deploy_all()
    await go()
    await go(soaked=True)
    assert await shop.open() == ["t0"]
    await machines[2].answer_orders()
    await go()
    assert await shop.open() == ["t0", "t2"]
    for machine in machines:
        await machine.deploy_all()
    await go()
    assert await shop.rollout() is None
    assert await fleet.status(shop.id) == ("Active", "served")


async def test_what_expires_does_not_wait_for_its_wave(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await go()
    life = {"not_before": db.now() - timedelta(days=88), "not_after": db.now() + timedelta(hours=47)}
    await CertificateTarget.update(life).where(CertificateTarget.target_id == "t2")
    await shop.wake()
    await go()
    assert await shop.open() == ["t0", "t1", "t2", "t3"]
    assert "overridden" in await actions(shop.id)


async def test_agents_that_see_nothing_pass_a_wave_when_they_are_presumed_deployed(shop, go):
    shop, machine = await shop(capabilities=())
    await shop.renew(machine)
    await go()
    [item] = [item for item in await machine.work() if item["type"] == "Deployment"]
    await machine.report(item["id"], "Completed")
    await go()
    assert (await shop.rollout())["passed_at"] is not None


async def test_a_plain_agent_whose_key_file_was_replaced_is_not_put_back(shop, go):
    shop, machine = await shop(capabilities=(), plan={"waves": [50, 100], "soak_seconds": 0, "max_failures": 0})
    await shop.renew(machine)
    await go()
    item = next(item for item in await machine.work() if item["target_id"] == "t0")
    await machine.report(item["id"], "Completed")
    await fail(machine, "t1")
    await go()
    assert (await shop.rollout())["status"] == "Halted"
    assert (await shop.open(), await shop.at()) == ([], "2111")
    [event] = await AuditEvent.select().where(AuditEvent.action == "rollout_halted")
    assert json.loads(event["details"])["not_put_back"] == ["t0"]


async def test_two_leaders_and_a_report_at_once_send_a_wave_once(shop, go, leader):
    shop, machine = await shop()
    await shop.renew(machine)
    await asyncio.gather(*(rollout.advance(leader) for _ in range(4)))
    assert await shop.open() == ["t0"]
    assert (await actions(shop.id)).count("wave_started") == 1


async def test_the_next_step_is_written_down_and_found_after_a_crash(shop, go, leader, monkeypatch):
    shop, machine = await shop()
    await shop.renew(machine)

    async def crash(*_, **__):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "settle", crash)
        with pytest.raises(RuntimeError):
            await rollout.advance(leader)
    assert await shop.open() == []
    await go()
    assert await shop.open() == ["t0"]


@pytest.mark.parametrize(
    ("sql", "args"),
    [
        (rollout.DUE, (200,)),
        (rollout.NEXT, ()),
        (rollout_state.TARGETS, ('["mc"]',)),
        (rollout_state.POKE, ('["mc"]',)),
        (budget.OPEN, ('["g"]',)),
        (budget.NOT_SILENT, ("ag", -300.0)),
        (targets.REACHABLE, ("tgt",)),
    ],
    ids=["due", "next", "targets", "poke", "open changes", "not silent", "reachable"],
)
async def test_no_statement_walks_through_jobs_or_rollouts(database, sql, args):
    explained = db.Sql(postgres=f"EXPLAIN {sql.postgres}", sqlite=f"EXPLAIN QUERY PLAN {sql.sqlite}")
    async with db.transaction():
        if database == "postgres":
            await db.fetch(db.Sql("SET LOCAL enable_seqscan = off"))
        plan = [str(list(row.values())[-1]) for row in await db.fetch(explained, *args)]
    big = r"(SCAN (j|o|m|job|rollout|certificate_target|certificate_version)\b(?!.*INDEX)|Seq Scan on)"
    # Of an empty table PostgreSQL knows no better.
    big += r"|job_status_created" if database == "sqlite" else ""
    small = ("agent_group", "agent", "json")
    assert [line for line in plan if re.search(big, line) and not any(word in line for word in small)] == []


async def test_many_certificates_are_moved_on_by_the_same_statements(fleet, go, monkeypatch):
    machine = await fleet.machine("ag")
    await fleet.target("t0", machine)
    await fleet.target("t1", machine)
    await fleet.post("renewal-policies", id="rp", name="rp", rollout={**PLAN, "waves": [50, 100]})
    counted, inner, ours = [], db.fetch, asyncio.current_task()

    async def heard(sql, *args):
        if asyncio.current_task() is ours:
            counted.append(sql)
        return await inner(sql, *args)

    found = []
    for many in (1, 9):
        for n in range(many):
            await fleet.certificate(f"{many}-{n}.example", targets=["t0", "t1"], renewal_policy_id="rp")
        await machine.answer_orders()
        with monkeypatch.context() as patch:
            patch.setattr(db, "fetch", heard)
            counted.clear()
            await go()
            found.append(len(counted))
    assert found[1] == found[0]
    assert len([row for row in await Job.select() if row["type"] == "Deployment"]) == 10


async def test_a_policy_without_a_rollout_sends_everywhere_at_once(shop, go):
    shop, machine = await shop(plan=None)
    await shop.renew(machine)
    assert await shop.open() == shop.targets
    assert await shop.rollout() is None
    assert await Certificate.exists().where(Certificate.id == shop.id)


async def test_taking_the_plan_away_frees_what_waits_with_the_next_version(shop, go):
    shop, machine = await shop()
    await shop.renew(machine)
    await shop.fleet.people.put("/api/v1/renewal-policies/rp", json={"rollout": None})
    await shop.renew(machine)
    await go()
    assert await shop.open() == shop.targets
