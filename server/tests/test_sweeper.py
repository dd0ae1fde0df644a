import asyncio
import socket
from datetime import timedelta

import pytest
from certctl_core.job import JobState, JobType
from certctl_server import db, engine
from certctl_server.audit.record import SYSTEM
from certctl_server.db import clock
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.state import beat, claim
from certctl_server.jobs.sweeper import Sweeper, time_out
from certctl_server.jobs.tables import Job

LEASE = timedelta(seconds=30)
AHEAD = db.Sql("UPDATE job SET lease_until = {after:7200} WHERE lease_until IS NOT NULL")
OVER = db.Sql("UPDATE job SET lease_until = {after:-7200} WHERE lease_until IS NOT NULL")


class Monotonic:
    """A process's own clock, in the hand of a test."""

    now = 1000.0

    def __call__(self):
        return self.now


def runs(*job_ids):
    """As much of the workers as a sweeper asks: whether they run a job."""
    return job_ids.__contains__


@pytest.fixture
def monotonic():
    return Monotonic()


@pytest.fixture
async def sweeper(database, monotonic):
    return Sweeper(runs(), LEASE, alone=False, monotonic=monotonic)


@pytest.fixture
def rung():
    lanes = []
    bell.connect(lanes.append, lambda *_: None)
    yield lanes
    bell.connect(None, None)


async def claimed(owner="worker"):
    new = NewJob(type=JobType.SCAN, place=owner, lane="lane", due=True)
    await create([new], SYSTEM)
    [job] = await claim(owner, "lane", limit=1, lease=LEASE)
    return job


async def state(job):
    row = await Job.select().where(Job.id == job.id).first()
    return row["status"], row["crashes"], row["owner"]


async def test_a_lease_is_taken_over_when_both_clocks_agree(sweeper, leadership, monotonic, rung):
    job = await claimed()
    await db.fetch(OVER)
    await sweeper.sweep(leadership)
    monotonic.now += 29
    await sweeper.sweep(leadership)
    assert await state(job) == ("Running", 0, "worker")
    monotonic.now += 1
    await sweeper.sweep(leadership)
    assert await state(job) == ("Pending", 1, "")
    assert "lane" in rung


async def test_a_jumped_clock_takes_nothing_from_a_worker_that_beats(sweeper, leadership, monotonic):
    job = await claimed()
    for _ in range(10):
        await beat("worker", [job.id], lease=LEASE)
        await db.fetch(OVER)
        await sweeper.sweep(leadership)
        monotonic.now += 15
    assert await state(job) == ("Running", 0, "worker")


async def test_a_lease_that_is_not_over_is_left_alone_however_still_it_stands(sweeper, leadership, monotonic):
    job = await claimed()
    for _ in range(3):
        await sweeper.sweep(leadership)
        monotonic.now += 1000
    assert await state(job) == ("Running", 0, "worker")


async def test_a_process_never_takes_over_what_it_runs_itself(leadership, monotonic):
    job = await claimed()
    sweeper = Sweeper(runs(job.id), LEASE, alone=False, monotonic=monotonic)
    await db.fetch(OVER)
    for _ in range(3):
        await sweeper.sweep(leadership)
        monotonic.now += 100
    assert await state(job) == ("Running", 0, "worker")


async def test_the_only_process_takes_back_at_its_start_what_workers_held(database):
    job = await claimed()
    agents = await claimed("agent:ag-1")
    await Sweeper(runs(), LEASE, alone=True).first()
    assert await state(job) == ("Pending", 1, "")
    assert await state(agents) == ("Running", 0, "agent:ag-1")


async def test_a_worker_is_never_taken_for_an_agent_whatever_its_machine_is_called(ctx, grounds, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "agent")
    owner = (await engine.start(ctx, engine.Part.WORKERS)).runner.owner
    await engine.stop()
    job = await claimed(owner)
    await Sweeper(runs(), LEASE, alone=True).first()
    assert await state(job) == ("Pending", 1, "")


async def test_one_of_many_is_not_the_only_process(sweeper):
    job = await claimed()
    await sweeper.first()
    assert await state(job) == ("Running", 0, "worker")


async def test_workers_find_what_nobody_rang_for(employ):
    employ(timedelta(seconds=1))
    bell.connect(None, None)
    asked = {"notification_id": "gone"}
    new = NewJob(type=JobType.NOTIFICATION, place="n", lane="notifier:n", due=True, request=asked)
    [job] = await create([new], SYSTEM)
    async with asyncio.timeout(10):
        while (await state(job))[0] != "Failed":
            await asyncio.sleep(0.05)


async def test_a_lease_from_before_a_clock_was_set_back_is_shortened(sweeper, leadership):
    job = await claimed()
    await db.fetch(AHEAD)
    await sweeper.sweep(leadership)
    [row] = await Job.select(Job.lease_until).where(Job.id == job.id)
    assert row["lease_until"] < db.now() + timedelta(minutes=11)
    assert (await state(job))[0] == "Running"


async def test_after_the_clock_was_set_agents_keep_their_work_for_a_lease(sweeper, leadership, monotonic, monkeypatch):
    job = await claimed("agent:ag-1")
    await sweeper.sweep(leadership)
    await db.fetch(OVER)
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + timedelta(hours=2))
    monotonic.now += 5
    await sweeper.sweep(leadership)
    assert (await state(job))[0] == "Running"
    monotonic.now += 601
    await sweeper.sweep(leadership)
    assert (await state(job))[0] == "Pending"


async def test_a_failed_job_comes_back_when_its_time_has_come(sweeper, leadership, rung):
    job = await claimed()
    at = db.now() + timedelta(hours=1)
    await Job.update(status=JobState.FAILED, next_retry_at=at, lease_until=None).where(Job.id == job.id)
    due = await sweeper.retry(leadership)
    assert abs(due - at) < timedelta(seconds=1)
    assert (await state(job))[0] == "Failed"
    await Job.update(next_retry_at=db.now()).where(Job.id == job.id)
    assert await sweeper.retry(leadership) is None
    assert ((await state(job))[0], rung) == ("Pending", ["lane"])


@pytest.mark.parametrize(("hours", "after"), [(23, "AwaitingCSR"), (25, "Failed")])
async def test_a_csr_that_never_comes_ends_the_order(fleet, leadership, hours, after):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await Job.update(scheduled_at=db.now() - timedelta(hours=hours)).where(Job.certificate_id == id)
    await time_out(leadership, timedelta(hours=24), timedelta(hours=168))
    [job] = await fleet.jobs(id)
    assert job["status"] == after
    assert (await fleet.status(id))[0] == ("Failed" if hours > 24 else "Pending")


@pytest.mark.parametrize(("hours", "after"), [(167, "AwaitingApproval"), (169, "Cancelled")])
async def test_an_approval_that_nobody_gives_calls_the_order_off(fleet, leadership, hours, after):
    await fleet.post("renewal-policies", id="rp-ask", name="ask", requires_approval=True)
    id = await fleet.certificate("a.example", renewal_policy_id="rp-ask")
    await Job.update(scheduled_at=db.now() - timedelta(hours=hours)).where(Job.certificate_id == id)
    await time_out(leadership, timedelta(hours=24), timedelta(hours=168))
    assert [job["status"] for job in await fleet.jobs(id)] == [after]


async def test_a_deployment_ends_when_its_version_has_expired(fleet, leadership):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    [item] = await machine.work()
    await machine.report(item["id"], "Failed", error="x")
    await db.fetch(db.Sql("UPDATE certificate_version SET not_after = {now}"))
    await time_out(leadership, timedelta(hours=24), timedelta(hours=168))
    [job] = await fleet.jobs(id, type="Deployment")
    assert (job["status"], job["next_retry_at"], job["last_error"]) == ("Cancelled", None, "the version has expired")


async def test_an_agents_lease_needs_no_beats_and_its_job_is_offered_again_at_once(fleet, sweeper, leadership):
    machine = await fleet.machine("ag-1")
    await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await sweeper.sweep(leadership)
    assert await machine.work() == []
    await db.fetch(OVER)
    await sweeper.sweep(leadership)
    assert [each["id"] for each in await machine.work()] == [item["id"]]
    # It may as well go on where it was.
    assert (await machine.report(item["id"], "Completed")).status_code == 200
