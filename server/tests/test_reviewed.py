"""What reviewers proved wrong once."""

import asyncio
import itertools
import sqlite3
from datetime import timedelta

import pytest
from certctl_core import plugins
from certctl_core.config import ConnectorConfig
from certctl_core.errors import RejectedError
from certctl_core.issuer import Issuer
from certctl_core.job import JobType
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db, engine
from certctl_server.agents import work
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates import create as create_module
from certctl_server.certificates.orders import Order, order
from certctl_server.certificates.renewal import scan
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.tables import Certificate, CertificateTarget, CertificateVersion
from certctl_server.issuers.tables import Issuer as IssuerRow
from certctl_server.jobs import bell, issue
from certctl_server.jobs.state import cancel, claim
from certctl_server.jobs.sweeper import Sweeper, time_out
from certctl_server.jobs.tables import Job, Lane
from certctl_server.notices.tables import Notifier
from certctl_server.rules.tables import CertificateProfile
from certctl_server.settings import Job as JobSettings
from server_flow import job_in, ordered, until

DAY = timedelta(days=1)
LEASE = timedelta(seconds=1)
CONFIG = {"cert_path": "/etc/nginx/a.crt", "key_path": "/etc/nginx/a.key"}
LOCAL, SLOW = "issuer:iss-local", "issuer:iss-slow"


class Slow(Issuer):
    """Takes its time, and then refuses."""

    kind = "Slow"
    Config = ConnectorConfig
    seconds = 0.15

    async def issue(self, request, run):
        await asyncio.sleep(self.seconds)
        raise RejectedError("slow")


class Refused(Issuer):
    """Lets an error through that it should have translated."""

    kind = "Refused"
    Config = ConnectorConfig

    async def issue(self, request, run):
        raise ConnectionRefusedError(111, "the vendor's API refused")


@pytest.fixture
async def running(ctx, grounds):
    """A whole engine, with quick leases and the connectors of this file."""
    ctx.plugins = plugins.load()
    ctx.plugins.issuers["Slow"] = Slow
    ctx.settings = ctx.settings.model_copy(update={"job": JobSettings(lease=LEASE)})
    started = await engine.start(ctx)
    yield started
    await engine.stop()


def times():
    return {"created_at": db.now(), "updated_at": db.now()}


async def issuer(id, type):
    await IssuerRow.insert(IssuerRow(id=id, name=id, type=type, status="ready", **times()))


async def facts(id):
    return await Certificate.select().where(Certificate.id == id).first()


def rows(table):
    return db.fetch(db.Sql(f"SELECT * FROM {table}"))


async def test_each_agents_version_is_renewed_in_its_own_time(fleet):
    a, b = await fleet.machine("a"), await fleet.machine("b")
    id = await fleet.served(a)
    start, end = db.now() - 50 * DAY, db.now() + 40 * DAY
    await CertificateVersion.update(not_before=start, not_after=end).where(CertificateVersion.certificate_id == id)
    await CertificateTarget.update(not_before=start, not_after=end).where(CertificateTarget.certificate_id == id)
    await Certificate.update(not_before=start, expires_at=end).where(Certificate.id == id)
    targets = ["tgt-a", await fleet.target("tgt-b", b)]
    assert (await fleet.people.put(f"/api/v1/certificates/{id}", json={"target_ids": targets})).status_code == 200
    assert await b.answer_orders()
    assert await b.deploy_all()
    assert (await facts(id))["renew_due_at"] < end


async def test_a_version_of_a_former_issuer_is_revoked_there(fleet):
    await issuer("iss-former", "VaultPKI")
    id = await fleet.served(await fleet.machine("a"))
    await CertificateVersion.update(issuer_id="iss-former").where(CertificateVersion.certificate_id == id)
    assert (await fleet.post(f"certificates/{id}/revoke")).status_code == 200
    [revocation] = await rows("revocation")
    assert (revocation["issuer_id"], revocation["state"]) == ("iss-former", "pending")
    [job] = await fleet.jobs(id, type="Revocation")
    assert job["issuer_id"] == "iss-former"


async def test_what_is_imported_after_its_end_is_expired_and_due(fleet):
    id = await fleet.certificate("a.example", status="Active", expires_at="2026-01-01T00:00:00Z")
    row = await facts(id)
    assert row["status"] == "Expired"
    assert row["renew_due_at"] <= db.now()


async def test_changes_of_one_certificate_at_once_both_survive(fleet):
    id = await fleet.certificate("a.example", common_name="a.example")
    for n in range(5):
        common_name, sans = f"n{n}.example", [f"n{n}.example", f"m{n}.example"]
        answers = await asyncio.gather(
            fleet.people.put(f"/api/v1/certificates/{id}", json={"common_name": common_name}),
            fleet.people.put(f"/api/v1/certificates/{id}", json={"sans": sans}),
        )
        assert [answer.status_code for answer in answers] == [200, 200]
        found = await fleet.get(f"certificates/{id}")
        assert (found["common_name"], sorted(found["sans"])) == (common_name, sorted(sans))


async def test_an_order_follows_its_target_to_another_agent(fleet):
    a, b = await fleet.machine("a"), await fleet.machine("b")
    id = await fleet.certificate("a.example", targets=[await fleet.target("t1", a)])
    assert (await fleet.people.put("/api/v1/targets/t1", json={"agent_id": "b", "config": CONFIG})).status_code == 200
    assert await a.work() == []
    assert await b.answer_orders()
    assert len(await b.deploy_all()) == 1
    assert (await fleet.status(id))[0] == "Active"


async def test_a_target_that_moves_gets_a_version_of_its_new_agent(fleet):
    a, b = await fleet.machine("a"), await fleet.machine("b")
    id = await fleet.served(a)
    moved = await fleet.people.put("/api/v1/targets/tgt-a", json={"agent_id": "b", "config": CONFIG})
    assert moved.status_code == 200
    assert (await fleet.status(id))[0] != "Active"
    assert await b.answer_orders()
    assert len(await b.deploy_all()) == 1
    assert (await fleet.status(id))[0] == "Active"


async def test_what_is_revoked_while_the_scan_runs_is_not_renewed(fleet):
    id = await fleet.served(await fleet.machine("a"))
    assert (await fleet.post(f"certificates/{id}/revoke")).status_code == 200
    assert await order([id], Order(type=JobType.RENEWAL), SYSTEM) == []
    assert (await facts(id))["revoked_at"] is not None


async def test_no_task_of_the_engine_dies_of_what_the_database_raises(running, monkeypatch):
    monkeypatch.setattr(Slow, "seconds", LEASE.total_seconds() * 1.5)
    await issuer("iss-slow", "Slow")
    (_, slow), (_, quick) = await ordered("s.example", issuer="iss-slow"), await ordered("a.example")
    bell.ring(SLOW)
    await until(lambda: rows("intent"))
    names = ("claims", "lease beats", "leadership", "loop ")
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(names)]
    errors, raised = itertools.cycle([sqlite3.OperationalError, RuntimeError, KeyError]), []

    async def broken(*_):
        raised.append(next(errors)("disk full"))
        raise raised[-1]

    with monkeypatch.context() as patch:
        patch.setattr(db, "fetch", broken)
        for _ in range(3):
            running.runner.look(LOCAL)
            running.loops.poke("renewal", "jobs", "job retry", "job timeouts", "status flips")
            await asyncio.sleep(LEASE.total_seconds() / 3)
    assert len(raised) > len(tasks)
    assert [task.get_name() for task in tasks if task.done()] == []
    assert len(tasks) > len(names)
    bell.ring(LOCAL)
    await until(lambda: job_in(quick, "Completed"))
    assert (await until(lambda: job_in(slow, "Failed")))["last_error"] == "slow"


async def test_what_lives_for_minutes_wakes_the_renewal_loop(fleet, runner, leadership):
    profile = {"id": "p", "name": "p", "max_ttl_seconds": 600, "allow_short_lived": True}
    keys = '[{"algorithm": "ECDSA", "min_size": 256}]'
    profile |= {"allowed_key_algorithms": keys, "allowed_ekus": "[]", "required_san_patterns": "[]"}
    await CertificateProfile.insert(CertificateProfile(**profile, **times()))
    machine, poked = await fleet.machine("a"), []
    bell.connect(runner.look, lambda *names: poked.extend(names))
    id = await fleet.certificate("a.example", targets=[await fleet.target("t1", machine)], certificate_profile_id="p")
    assert "renewal" not in poked
    await machine.answer_orders()
    await until(lambda: Certificate.exists().where(Certificate.id == id, Certificate.version_id.is_not_null()))
    assert "renewal" in poked
    row = await facts(id)
    assert await scan(leadership) == row["renew_due_at"] < row["expires_at"] < db.now() + timedelta(minutes=11)


async def test_a_slow_issuer_keeps_no_other_waiting(runner, ctx):
    ctx.settings = ctx.settings.model_copy(update={"renewal_concurrency": 1})
    ctx.plugins.issuers["Slow"] = Slow
    await issuer("iss-slow", "Slow")
    for n in range(24):
        await ordered(f"s{n}.example", issuer="iss-slow")
    await Lane.update(concurrency=25).where(Lane.name == SLOW)
    _, quick = await ordered("a.example")
    bell.ring(SLOW)
    await until(lambda: Job.exists().where(Job.lane == SLOW, Job.status == "Running"))
    bell.ring(LOCAL)
    await until(lambda: job_in(quick, "Completed"))
    assert await Job.exists().where(Job.lane == SLOW, Job.attempts == 0)


async def test_an_issuer_without_limits_runs_as_many_jobs_at_once_as_the_setting_says(runner, ctx, monkeypatch):
    monkeypatch.setattr(Slow, "seconds", 2)
    ctx.settings = ctx.settings.model_copy(update={"renewal_concurrency": 2})
    ctx.plugins.issuers["Slow"] = Slow
    await issuer("iss-slow", "Slow")
    for n in range(6):
        await ordered(f"s{n}.example", issuer="iss-slow")
    bell.ring(SLOW)
    running = (Job.lane == SLOW) & (Job.status == "Running")
    await until(lambda: Job.count().where(running))
    for _ in range(10):
        bell.ring(SLOW)
        await asyncio.sleep(0.05)
    assert await Job.count().where(running) == 2


async def test_an_error_of_the_system_in_a_connector_is_the_connectors_bug(runner, ctx):
    ctx.plugins.issuers["Refused"] = Refused
    await issuer("iss-refused", "Refused")
    _, job_id = await ordered("a.example", issuer="iss-refused")
    bell.ring("issuer:iss-refused")
    job = await until(lambda: job_in(job_id, "Failed"))
    assert "the vendor's API refused" in job["last_error"]


async def test_the_scan_rests_although_an_order_of_nobody_failed(fleet, leadership):
    a, b = await fleet.machine("a"), await fleet.machine("b")
    id = await fleet.served(a)
    targets = ["tgt-a", await fleet.target("tgt-b", b)]
    assert (await fleet.people.put("/api/v1/targets/tgt-b", json={"enabled": False})).status_code == 200
    assert (await fleet.people.put(f"/api/v1/certificates/{id}", json={"target_ids": targets})).status_code == 200
    bell.connect(None, None)
    renewal = (await fleet.post(f"certificates/{id}/renew", csr_pem=csr_pem("a.example"))).json()["job_id"]
    ended = {"status": "Failed", "place": None, "due_at": None, "completed_at": db.now() - timedelta(hours=25)}
    await Job.update(ended).where(Job.id == renewal)
    await settle([id])
    assert (await facts(id))["renew_due_at"] < db.now()
    following = await scan(leadership)
    assert following is None or following > db.now()
    assert [job["agent_id"] for job in await fleet.jobs(id, type="Renewal")] == [None, "a"]


async def test_archiving_and_cancelling_at_once_do_not_wait_for_each_other(fleet, monkeypatch):
    id = await fleet.certificate("a.example", targets=[await fleet.target("t1", await fleet.machine("a"))])
    [job] = await fleet.jobs(id)
    held = asyncio.Event()

    async def slowly(ids):
        await hold(ids)
        held.set()
        await asyncio.sleep(0.3)

    monkeypatch.setattr(create_module, "hold", slowly)
    archiving = asyncio.create_task(fleet.people.delete(f"/api/v1/certificates/{id}"))
    await held.wait()
    cancelled = await fleet.post(f"jobs/{job['id']}/cancel")
    assert ((await archiving).is_success, cancelled.status_code) == (True, 409)


async def test_a_poll_ends_although_the_clock_is_set_back(fleet, ctx, monkeypatch):
    await fleet.machine("a")
    [agent] = await rows("agent")
    monkeypatch.setattr(db, "now", ctx.clock)
    ctx.clock.ahead = timedelta(hours=1)
    poll = asyncio.create_task(work.offers(ctx, agent, claims=True, wait=timedelta(seconds=2)))
    await asyncio.sleep(0.2)
    ctx.clock.ahead = timedelta()
    async with asyncio.timeout(4):
        assert await poll == []


async def test_an_order_whose_workers_died_is_told(ctx, grounds):
    await Notifier.insert(Notifier(id="nt", name="n", type="Webhook", status="ready", **times()))
    await ordered("a.example")
    sweeper = Sweeper(lambda _: False, LEASE, alone=True)
    for _ in range(3):
        assert await claim("dead", LOCAL, limit=1, lease=LEASE)
        await sweeper.first()
    [certificate], [notice] = await rows("certificate"), await rows("notification")
    assert certificate["last_error"]
    assert notice["type"] == "RenewalFailure"


async def test_what_was_signed_for_an_order_that_was_called_off_is_revoked(runner, monkeypatch):
    _, job_id = await ordered("a.example")
    signed, store = [], issue.store

    async def late(job, csr, issued, reference):
        signed.append(issued.leaf.serial_number)
        await cancel(Job.id == job_id, actor=SYSTEM, reason="cancelled by user")
        return await store(job, csr, issued, reference)

    monkeypatch.setattr(issue, "store", late)
    bell.ring(LOCAL)
    [revocation] = await until(lambda: rows("revocation"))
    assert [revocation["serial_number"]] == signed
    assert await rows("certificate_version") == []
    [intent] = await rows("intent")
    assert intent["status"] == "unresolved"


async def test_a_failure_of_a_clock_that_was_ahead_holds_no_renewal_back(fleet, leadership):
    id = await fleet.certificate("a.example", targets=[await fleet.target("t1", await fleet.machine("a"))])
    await Job.update(scheduled_at=db.now() - 2 * DAY).where(Job.certificate_id == id)
    await time_out(leadership, DAY, 7 * DAY)
    await Job.update(completed_at=db.now() + 365 * DAY).where(Job.certificate_id == id)
    await settle([id])
    assert (await facts(id))["renew_due_at"] < db.now() + 2 * DAY


async def test_polls_of_one_agent_at_once_share_its_work(fleet):
    machine = await fleet.machine("a")
    target = await fleet.target("t1", machine)
    for n in range(5):
        await fleet.certificate(f"a{n}.example", targets=[target])
    offered = await asyncio.gather(*(machine.work() for _ in range(4)))
    ids = [item["id"] for items in offered for item in items]
    assert len(ids) == len(set(ids)) == 5
