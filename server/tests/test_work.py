import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from certctl_server import db
from certctl_server.certificates.tables import CertificateVersion
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.tables import Job
from certctl_server.targets.tables import Target


async def test_what_is_claimed_is_offered_again_only_after_the_offers_lease(fleet, machine):
    await fleet.certificate("a.example", targets=["tgt"])
    [item] = await machine.work()
    assert datetime.fromisoformat(item["lease_until"]) > datetime.now(UTC)
    assert await machine.work() == []
    await Job.update(offer_at=db.now()).where(Job.id == item["id"])
    [again] = await machine.work()
    job = await fleet.get(f"jobs/{item['id']}")
    assert (again["id"], job["attempts"], job["status"]) == (item["id"], 0, "AwaitingCSR")


async def test_looking_claims_nothing_and_shows_no_secret(fleet, machine):
    await fleet.certificate("a.example", targets=["tgt"])
    for look in ("HEAD", "HEAD"):
        assert (await machine.http.request(look, f"{machine.path}/work")).status_code == 200
    seen = (await fleet.people.get(f"{machine.path}/work")).json()
    assert seen["count"] == 1
    assert len(await machine.work()) == 1


async def test_at_most_twenty_items_come_oldest_first(fleet, machine):
    ids = [await fleet.certificate(f"n{n}.example", targets=["tgt"]) for n in range(23)]
    first, second = await machine.work(), await machine.work()
    assert [item["certificate_id"] for item in first + second] == ids
    assert (len(first), len(second)) == (20, 3)


async def test_every_item_has_a_common_name(fleet, machine):
    await fleet.certificate("10.0.0.1", "b.example", targets=["tgt"])
    await fleet.certificate("10.0.0.2", targets=["tgt"])
    assert [item["common_name"] for item in await machine.work()] == ["b.example", "10.0.0.2"]


@pytest.mark.parametrize(
    "lacks",
    [
        Target.update(enabled=False),
        Target.update(status="incomplete"),
        CertificateVersion.update(revoked_at=db.now()),
        CertificateVersion.update(not_after=db.now()),
    ],
    ids=["target disabled", "target incomplete", "version revoked", "version expired"],
)
async def test_a_deployment_that_could_not_succeed_is_not_offered(fleet, machine, lacks):
    await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    await lacks.where(lacks.table.id.is_not_null())
    assert await machine.work() == []


@pytest.mark.parametrize(
    ("change", "offered"),
    [({"enabled": False}, 0), ({"status": "incomplete"}, 0), ({"status": "failing"}, 1), ({"status": "ready"}, 1)],
    ids=str,
)
async def test_an_order_is_offered_only_if_its_issuer_can_work(fleet, machine, change, offered):
    await fleet.certificate("a.example", targets=["tgt"])
    await Issuer.update(change).where(Issuer.id == "iss-local")
    assert len(await machine.work()) == offered


@pytest.mark.parametrize(
    ("minutes", "offered"), [(-6, ["Deployment"]), (6, ["Deployment"]), (4, ["Deployment", "Issuance"])]
)
async def test_no_order_goes_to_an_agent_whose_clock_is_off(fleet, machine, minutes, offered):
    await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    await fleet.certificate("b.example", targets=["tgt"])
    await machine.beat(local_time=(datetime.now(UTC) + timedelta(minutes=minutes)).isoformat())
    assert sorted(item["type"] for item in await machine.work()) == offered
    assert (await fleet.get("agents/ag-1"))["status"] == ("Degraded" if len(offered) == 1 else "Online")


async def test_an_order_is_offered_only_once_it_is_approved(fleet, machine):
    await fleet.post("renewal-policies", id="rp-ask", name="ask", requires_approval=True)
    id = await fleet.certificate("a.example", targets=["tgt"], renewal_policy_id="rp-ask")
    assert await machine.work() == []
    [job] = await fleet.jobs(id)
    long_ago = db.now() - timedelta(hours=100)
    await Job.update(requested_by="bob", scheduled_at=long_ago, created_at=long_ago).where(Job.id == job["id"])
    await fleet.post(f"jobs/{job['id']}/approve")
    [item] = await machine.work()
    assert item["id"] == job["id"]
    row = await Job.select(Job.scheduled_at).where(Job.id == job["id"]).first()
    # The day that the agent has for its CSR begins now, however long the approval took.
    assert db.now() - row["scheduled_at"] < timedelta(minutes=1)


@pytest.mark.parametrize("wait", ["0", "26", "-1", "x", "1.5"])
async def test_a_wait_is_one_to_twenty_five_whole_seconds(fleet, machine, wait):
    assert (await machine.http.get(f"{machine.path}/work", params={"wait": wait})).status_code == 400


async def test_a_waiting_poll_answers_as_soon_as_there_is_work_and_empty_at_its_end(fleet, machine):
    started = time.monotonic()
    assert await machine.work(wait=1) == []
    assert 0.9 < time.monotonic() - started < 4
    poll = asyncio.create_task(machine.work(wait=20))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    await fleet.certificate("a.example", targets=["tgt"])
    assert len(await poll) == 1
    assert time.monotonic() - started < 4


async def test_a_waiting_poll_answers_when_a_job_becomes_due(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await Job.update(offer_at=db.now() + timedelta(seconds=1)).where(Job.certificate_id == id)
    started = time.monotonic()
    assert len(await machine.work(wait=20)) == 1
    assert 0.5 < time.monotonic() - started < 4
