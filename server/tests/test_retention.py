"""What is over long enough is forgotten, but for what somebody still reads."""

import json
from datetime import timedelta

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, Revocation
from certctl_server.jobs import retention
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.retention import forget
from certctl_server.jobs.state import move, requeue
from certctl_server.jobs.tables import Intent, Job, LoopBeat
from certctl_server.leader import Leadership, NotLeading
from certctl_server.settings import read

DAY, LEASE = timedelta(days=1), timedelta(seconds=30)
KEPT = 90 * DAY
INTENT = db.Sql(
    """
    INSERT INTO intent (
        job_id, number, issuer_id, certificate_id, csr_sha256, public_key_sha256, status, created_at)
    VALUES ($1, 1, 'iss-local', $2, '', '', $3, $4)
    """
)
PASSED = db.Sql("UPDATE kept_csr SET until = {now} WHERE csr_sha256 = (SELECT min(csr_sha256) FROM kept_csr)")
APPLIED = db.Sql("SELECT details FROM audit_event WHERE action = 'retention_applied' ORDER BY number")


@pytest.fixture
def aged():
    """Let everything that is over be over for a time."""
    text = "UPDATE job SET kept_since = $1, completed_at = $1 WHERE kept_since IS NOT NULL"
    return lambda age: db.fetch(db.Sql(text), db.now() - age)


async def over(type=JobType.SCAN, end=JobState.COMPLETED, **more):
    """A job that came to its end; its id."""
    new = NewJob(type=type, place=f"{type}|{db.now().isoformat()}", **more)
    await create([new], SYSTEM)
    if end is not JobState.CANCELLED:
        await move(Job.id == new.id, JobState.PENDING, JobState.RUNNING)
    before = JobState.PENDING if end is JobState.CANCELLED else JobState.RUNNING
    await move(Job.id == new.id, before, end)
    return new.id


async def left():
    return {row["id"] for row in await Job.select(Job.id)}


async def told():
    return [json.loads(row["details"]) for row in await db.fetch(APPLIED)]


async def test_finished_jobs_are_forgotten_when_their_time_is_over(leadership, aged):
    gone = {await over(), await over(end=JobState.CANCELLED), await over(end=JobState.FAILED)}
    await aged(KEPT - DAY)
    await forget(leadership, KEPT)
    assert (await left(), await told()) == (gone, [])
    await aged(KEPT + DAY)
    await forget(leadership, KEPT)
    assert await left() == set()
    assert [row["jobs"] for row in await told()] == [3]


async def test_what_is_open_is_never_forgotten_however_old(leadership, aged):
    waiting = NewJob(type=JobType.SCAN, place="one", due=True)
    await create([waiting], SYSTEM)
    retried = await over(end=JobState.FAILED)
    await aged(KEPT + DAY)
    await requeue(Job.id == retried)
    await Job.update(created_at=db.now() - 9 * KEPT, scheduled_at=db.now() - 9 * KEPT, force=True)
    await forget(leadership, KEPT)
    assert await left() == {waiting.id, retried}


async def test_zero_keeps_jobs_for_ever(leadership, aged):
    kept = await over()
    await aged(9999 * DAY)
    await forget(leadership, timedelta())
    assert await left() == {kept}


async def test_a_pass_is_bounded_and_asks_for_the_next(leadership, aged, monkeypatch):
    monkeypatch.setattr(retention, "PASS", 3)
    for _ in range(7):
        await over()
    await aged(KEPT + DAY)
    assert await forget(leadership, KEPT) is not None
    assert await forget(leadership, KEPT) is not None
    assert await forget(leadership, KEPT) is None
    assert (await left(), [row["jobs"] for row in await told()]) == (set(), [3, 3, 1])


async def test_who_does_not_lead_forgets_nothing(leadership, aged):
    kept = await over()
    await aged(KEPT + DAY)
    with pytest.raises(NotLeading):
        await forget(Leadership("other", LEASE, alone=False), KEPT)
    assert await left() == {kept}


async def test_the_status_of_a_certificate_outlives_its_jobs(fleet, leadership, aged):
    a, b = await fleet.machine("a"), await fleet.machine("b")
    id = await fleet.served(a, b)
    for _ in range(2):
        assert (await fleet.post(f"certificates/{id}/renew", force=False)).status_code == 202
        for machine in (a, b):
            await machine.answer_orders()
        for machine in (a, b):
            await machine.deploy_all()
    facts = await Certificate.select().where(Certificate.id == id).first()
    deployments = await fleet.get(f"certificates/{id}/deployments")
    before = await fleet.jobs(id)
    await aged(KEPT + DAY)
    await forget(leadership, KEPT)
    await settle([id])
    after = await fleet.jobs(id)
    newest = {(row["type"] == "Deployment", row["agent_id"]): row["id"] for row in before}
    assert {row["id"] for row in after} == set(newest.values())
    assert len(before) > len(after) == 4
    assert {row["job_id"] for row in await Intent.select()} == {row["id"] for row in after if not row["target_id"]}
    again = await Certificate.select().where(Certificate.id == id).first()
    changing = ("updated_at",)
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in facts.items() if k not in changing
    }
    assert await fleet.get(f"certificates/{id}/deployments") == deployments


async def test_a_failure_that_a_status_stands_for_is_not_forgotten(fleet, leadership, aged):
    machine = await fleet.machine("a")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    [item] = await machine.work()
    await machine.report(item["id"], "Failed", error="no key", error_kind="rejected")
    status = await fleet.status(id)
    await aged(KEPT + DAY)
    await forget(leadership, KEPT)
    await settle([id])
    assert (await fleet.status(id))[0] == status[0] == "Failed"


async def test_what_nobody_can_say_any_more_is_kept(grounds, fleet, leadership, aged):
    id = await fleet.certificate("a.example")
    order = await over(JobType.RENEWAL, JobState.CANCELLED, certificate_id=id, issuer_id="iss-local")
    untold = await over(JobType.REVOCATION, JobState.FAILED, certificate_id=id, issuer_id="iss-local")
    unsaid = await over(JobType.REVOCATION, JobState.CANCELLED, certificate_id=id, issuer_id="iss-local")
    known = await fleet.certificate("b.example")
    said = await over(JobType.REVOCATION, JobState.CANCELLED, certificate_id=known, issuer_id="iss-local")
    for each, state in ((id, "pending"), (known, "confirmed")):
        more = {"issuer_id": "iss-local", "serial_number": each, "certificate_id": each}
        await Revocation.insert(Revocation(id=each, state=state, revoked_at=db.now(), **more))
    settled = await over(JobType.RENEWAL, JobState.CANCELLED, certificate_id=id, issuer_id="iss-local")
    for job_id, status in ((order, "unresolved"), (settled, "failed")):
        await db.fetch(INTENT, job_id, id, status, db.now())
    await aged(KEPT + DAY)
    await forget(leadership, KEPT)
    assert {order, untold, unsaid} <= await left()
    assert not {settled, said} & await left()


async def test_what_stays_does_not_stand_before_what_goes(fleet, leadership, aged, monkeypatch):
    monkeypatch.setattr(retention, "PASS", 2)
    await fleet.served(await fleet.machine("a"))
    stays = await left()
    await aged(KEPT + 2 * DAY)
    goes = await over()
    text = "UPDATE job SET kept_since = $2 WHERE id = $1"
    await db.fetch(db.Sql(text), goes, db.now() - KEPT - DAY)
    for _ in range(3):
        await forget(leadership, KEPT)
    assert await left() == stays


async def test_csrs_that_nobody_came_for_and_loops_that_are_no_more_are_forgotten(fleet, leadership):
    machine = await fleet.machine("a")
    for name in ("a.example", "b.example"):
        assert (await machine.csr("", name)).status_code == 202
    await db.fetch(
        db.Sql("UPDATE kept_csr SET until = {now} WHERE csr_sha256 = (SELECT min(csr_sha256) FROM kept_csr)")
    )
    for name, late in (("old", db.now() - 8 * DAY), ("present", db.now())):
        await LoopBeat.insert(LoopBeat(name=name, late_at=late))
    await forget(leadership, KEPT)
    assert len(await db.fetch(db.Sql("SELECT * FROM kept_csr"))) == 1
    assert [row["name"] for row in await LoopBeat.select()] == ["present"]
    assert [(row["csrs"], row["loops"]) for row in await told()] == [(1, 1)]


def test_the_setting_is_read_and_the_audit_trail_is_not_shortened():
    assert read({"CERTCTL_JOB_RETENTION": "48h"}).job.retention == 2 * DAY
    assert read({"CERTCTL_JOB_RETENTION": "0"}).job.retention == timedelta()
    with pytest.raises(MisconfiguredError, match=r"CERTCTL_CALL_LOG_RETENTION: .*audit trail"):
        read({"CERTCTL_CALL_LOG_RETENTION": "24h"})
