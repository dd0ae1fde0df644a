"""A database that went back in time is noticed, and nothing is done twice because of it."""

import asyncio
import json
import shutil
import subprocess
import time
from datetime import timedelta

import pytest
from certctl_core import plugins
from certctl_core.issuer import IssueRequest
from certctl_core.x509 import read_certificate, read_csr
from certctl_server import db, restored
from certctl_server.audit import witness
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.audit.sealer import seal_pass
from certctl_server.audit.verify import lines, verify
from certctl_server.auth.keys import Keyring, authenticate_token, create_key, create_token, principal_of
from certctl_server.auth.logins import log_in, logged_in
from certctl_server.certificates.create import create
from certctl_server.certificates.status import TRIES
from certctl_server.certificates.tables import CertificateTarget, CertificateVersion, Rollout
from certctl_server.connectors.run import CallRun, JobRun
from certctl_server.issuers.tables import Issuer as IssuerRow
from certctl_server.jobs import bell, intents
from certctl_server.jobs.state import claim, release
from certctl_server.jobs.tables import Intent, Job, Lane, Lease
from certctl_server.leader import Leadership, NotLeading
from certctl_server.notices.tables import Notification, Notifier
from certctl_server.notices.tell import Notice, tell
from certctl_server.tables import TABLES
from server_flow import ordered, until, wanted

LEASE = timedelta(seconds=30)
LOCAL = "issuer:iss-local"
RESTORES = db.Sql("SELECT details FROM audit_event WHERE action = 'database_restored' ORDER BY number")


class Past:
    """The database as it was once, brought back by copying the file, or with PostgreSQL's tools."""

    def __init__(self, url, place):
        self._url, self._copy = url, place / "saved"

    async def save(self):
        if db.dialect() == "sqlite":
            await db.close()
            shutil.copy(self._url.removeprefix("sqlite://"), self._copy)
            await db.connect(self._url, TABLES, connections=10)
        else:
            self._run("pg_dump", "-Fc", "-f", self._copy, self._url)

    async def come_back(self):
        await db.close()
        if self._url.startswith("sqlite"):
            shutil.copy(self._copy, self._url.removeprefix("sqlite://"))
        else:
            self._run("pg_restore", "--clean", "--if-exists", "-d", self._url, self._copy)
        await db.connect(self._url, TABLES, connections=10)

    def _run(self, *command):
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def past(database, database_url, tmp_path):
    return Past(database_url, tmp_path)


@pytest.fixture
def notice(ctx):
    return lambda: restored.notice(ctx.settings, ctx.cipher)


@pytest.fixture
def seal(ctx):
    """Seal as whoever leads just now."""

    async def sealed():
        leadership = Leadership("test", LEASE, alone=True)
        await leadership.campaign()
        await seal_pass(ctx, leadership)

    return sealed


@pytest.fixture
def happens(seal):
    """Let something happen that the trail tells of."""

    async def happened(count=1):
        await record(Event(SYSTEM, "owner_created", "owner", f"o-{n}") for n in range(count))
        await seal()

    return happened


async def told():
    return [json.loads(row["details"]) for row in await db.fetch(RESTORES)]


async def only(table, **values):
    rows = await table.select()
    [row] = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


async def ended(job_id):
    row = await only(Job, id=job_id)
    return row if row["status"] in {"Completed", "Failed"} else None


async def test_a_database_that_goes_on_where_it_was_left_opens_no_epoch(past, notice, happens):
    for _ in range(3):
        assert not await notice()
        await happens(3)
    assert (await witness.epoch(), await told()) == (1, [])


async def test_a_server_that_last_led_long_ago_notices_nothing(ctx, notice, happens):
    await happens(3)
    path = ctx.settings.data_dir / HEAD_FILE
    old = path.read_text()
    await happens(3)
    path.write_text(old)
    assert not await notice()
    await happens()
    assert witness.read(ctx.settings.data_dir).link.sequence == 7


async def test_a_restore_is_noticed_once_told_and_leaves_a_trail_that_verifies(ctx, past, notice, happens, seal):
    await happens(4)
    before = (await only(Lease))["epoch"]
    await past.save()
    await happens(6)
    seen = witness.read(ctx.settings.data_dir)
    await past.come_back()
    assert await notice()
    assert not await notice()
    [row] = await told()
    assert (row["epoch"], row["sequence"], row["seen_sequence"], row["seen_hash"]) == (2, 4, 10, seen.link.hash)
    assert (await only(Lease))["epoch"] >= max(before, int(time.time()) - 60)
    kept = ctx.settings.data_dir / f"{HEAD_FILE}.epoch-1-10"
    assert json.loads(kept.read_text())["hash"] == seen.link.hash
    await happens(10)
    found = await verify(ctx.settings, ctx.cipher)
    assert (found.faults, found.rows, found.witness) == ([], 15, found.head)
    assert any("goes on after row 4, 10 was seen before" in line for line in lines(found))


async def test_each_restore_opens_an_epoch_of_its_own(past, notice, happens):
    await happens()
    await past.save()
    for epoch in (2, 3, 4):
        await happens(5)
        await past.come_back()
        assert await notice()
        assert await witness.epoch() == epoch


async def test_what_another_server_saw_before_a_known_restore_says_nothing(ctx, past, notice, happens):
    await happens()
    await past.save()
    await happens(8)
    theirs = (ctx.settings.data_dir / HEAD_FILE).read_text()
    await past.come_back()
    assert await notice()
    (ctx.settings.data_dir / HEAD_FILE).write_text(theirs)
    assert not await notice()
    assert (await verify(ctx.settings, ctx.cipher)).faults == []
    await happens()
    assert witness.read(ctx.settings.data_dir).epoch == 2


async def test_servers_that_notice_at_once_open_one_epoch(past, notice, happens):
    await happens()
    await past.save()
    await happens(2)
    await past.come_back()
    await asyncio.gather(*(notice() for _ in range(4)))
    assert len(await told()) == 1


async def test_a_leader_under_which_the_database_went_back_leads_no_more(ctx, past, happens):
    await happens()
    await past.save()
    await happens(3)
    await past.come_back()
    leadership = Leadership("leads", LEASE, alone=True)
    assert await leadership.campaign()
    old = leadership.epoch
    with pytest.raises(NotLeading):
        await restored.watch(ctx, leadership)
    assert not await leadership.campaign()
    assert await leadership.campaign()
    assert leadership.epoch > old
    assert await restored.watch(ctx, leadership) is None


async def test_an_operator_can_say_so(ctx, notice, happens):
    await happens()
    assert not await notice()
    opened = await restored.declare(ctx.settings, ctx.cipher, "an operator said so")
    opened.keep(ctx.settings)
    assert (opened.epoch, [row["why"] for row in await told()]) == (2, ["an operator said so"])
    assert not await notice()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_dump_read_into_another_database_is_noticed_without_any_file(ctx, past, notice, happens):
    assert not await notice()
    await happens(3)
    await past.save()
    (ctx.settings.data_dir / HEAD_FILE).unlink()
    await past.come_back()
    assert await notice()
    assert [row["why"] for row in await told()] == [restored.ELSEWHERE]
    assert not await notice()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_database_that_moved_and_lost_nothing_was_not_restored(past, notice, happens):
    assert not await notice()
    await happens(3)
    await past.save()
    await past.come_back()
    assert not await notice()
    assert await told() == []


async def test_a_deployment_of_before_is_not_done_again(fleet, past, notice, happens):
    machine = await fleet.machine("a")
    target = await fleet.target("tgt", machine)
    id = await fleet.certificate("a.example", targets=[target])
    await machine.answer_orders()
    await happens()
    await past.save()
    await machine.deploy_all()
    assert await fleet.status(id) == ("Active", "served")
    await happens()
    await past.come_back()
    fence = (await only(Job, type="Deployment"))["fence"]
    assert await notice()
    assert await machine.work() == []
    job, row = await only(Job, type="Deployment"), await fleet.get(f"certificates/{id}")
    assert (job["status"], job["last_error"]) == ("Cancelled", restored.CALLED_OFF_BY)
    assert job["fence"] > fence
    assert (row["deployment_state"], row["last_error"]) == ("failed", restored.CALLED_OFF_BY)
    assert [each["deployments_called_off"] for each in await told()] == [1]
    assert (await fleet.post(f"certificates/{id}/deploy")).status_code == 202
    await machine.deploy_all()
    assert await fleet.status(id) == ("Active", "served")


async def test_a_rollout_sends_and_puts_back_nothing_more_by_itself(fleet, past, notice, happens):
    machine = await fleet.machine("a")
    plan = {"waves": [50, 100], "soak_seconds": 3600, "max_failures": 0}
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Notifier.insert(Notifier(id="nt", name="nt", type="Webhook", status="ready", **times))
    await Lane.insert(Lane(name="notifier:nt", concurrency=0))
    assert (await fleet.post("renewal-policies", id="rp-waves", name="waves", rollout=plan)).status_code == 201
    targets = [await fleet.target(f"tgt-{n}", machine) for n in range(2)]
    id = await fleet.certificate("a.example", targets=targets, renewal_policy_id="rp-waves")
    await machine.answer_orders()
    await machine.deploy_all()
    assert (await only(Rollout))["status"] == "Running"
    await happens()
    await past.save()
    await happens()
    await past.come_back()
    assert await notice()
    rollout = await only(Rollout)
    assert (rollout["status"], rollout["due_at"], rollout["reason"]) == ("Halted", None, restored.CALLED_OFF_BY)
    assert await machine.work() == []
    assert (await fleet.get(f"certificates/{id}"))["last_error"] == restored.CALLED_OFF_BY
    assert [row["rollouts_halted"] for row in await told()] == [1]
    rows = await CertificateTarget.select()
    assert [(row["state"], row["failures"]) for row in rows] == [("failed", TRIES)] * 2, "held back, not on its way"
    assert (await fleet.status(id))[0] == "Failed"
    [notice_] = await Notification.select().where(Notification.type == "DeploymentFailure")
    assert (notice_["certificate_id"], restored.CALLED_OFF_BY in notice_["message"]) == (id, True)
    assert (notice_["subject"], notice_["status"]) == ("The rollout of a.example was halted", "pending")
    assert [row["status"] for row in await Job.select().where(Job.type == "Notification")] == ["Pending"]


@pytest.fixture
def run_out(employ):
    """Let workers that come for it run a job to its end, and go: no process runs on through a restore."""

    async def run(job_id, lane=LOCAL):
        runner = employ(timedelta(hours=1))
        bell.ring(lane)
        row = await until(lambda: ended(job_id))
        await runner.stop()
        assert row["status"] == "Completed", row["last_error"]
        return await only(CertificateVersion, job_id=job_id)

    return run


async def test_an_order_that_may_have_been_signed_is_repeated_with_a_reason_only(run_out, past, notice, happens):
    _, job_id = await ordered("a.example")
    await happens()
    await past.save()
    await run_out(job_id)
    await happens()
    await past.come_back()
    assert await notice()
    await run_out(job_id)
    first, second = await Intent.select().where(Intent.job_id == job_id).order_by(Intent.number)
    assert (first["status"], second["status"]) == ("unresolved", "settled")
    assert first["reason"] == second["reason"] == intents.RESTORED
    assert [row["orders_in_doubt"] for row in await told()] == [1]
    repeated = db.Sql("SELECT resource_id FROM audit_event WHERE action = 'order_repeated'")
    assert [row["resource_id"] for row in await db.fetch(repeated)] == [job_id]


async def test_an_order_that_was_being_signed_signs_the_same_bytes_again(runner, run_out, past, notice, happens):
    _, job_id = await ordered("a.example")
    bell.connect(None, None)
    [job] = await claim("dead", LOCAL, limit=1, lease=LEASE)
    await intents.begin(job, read_csr(job.csr_pem))
    issuer = await runner.instances.issuer("iss-local")
    run, asked = JobRun(job, db.now(), runner.instances.loop), IssueRequest(csr_pem=job.csr_pem)
    signed = await runner.instances.loop.call(lambda: issuer.issue(asked, run))
    await happens()
    await past.save()
    await happens()
    await past.come_back()
    assert await notice()
    await release(Job.id == job_id, reason="test")
    version = await run_out(job_id)
    assert read_certificate(version["pem_chain"]).pem == read_certificate(signed.cert_pem).pem
    assert len(await Intent.select()) == 1


SIGNED = {}


class Asked(plugins.load().issuers["GenericCA"]):
    """A CA outside, which remembers what it signed, whatever became of our database."""

    kind = "Asked"
    saves_first = False

    async def issue(self, request, run):
        assert request.csr_pem not in SIGNED, "the same CSR was sent twice"
        SIGNED[request.csr_pem] = await super().issue(request, CallRun("outside", run.deadline))
        return SIGNED[request.csr_pem]

    async def find(self, request, run):
        return SIGNED.get(request.csr_pem)


async def test_a_ca_that_can_be_asked_is_asked_before_anything_is_ordered_again(run_out, ctx, past, notice, happens):
    ctx.plugins.issuers["Asked"] = Asked
    times = {"created_at": db.now(), "updated_at": db.now()}
    await IssuerRow.insert(IssuerRow(id="iss-asked", name="asked", type="Asked", status="ready", **times))
    _, job_id = await ordered("a.example", issuer="iss-asked")
    await happens()
    await past.save()
    lost = await run_out(job_id, "issuer:iss-asked")
    await happens()
    await past.come_back()
    assert await notice()
    again = await run_out(job_id, "issuer:iss-asked")
    assert again["fingerprint_sha256"] == lost["fingerprint_sha256"]
    assert [row["status"] for row in await Intent.select()] == ["settled"]


async def test_tokens_and_messages_of_before_are_good_for_nothing_more(ctx, grounds, past, notice, happens):
    times = {"created_at": db.now(), "updated_at": db.now()}
    config = {"config": "{}", "events": '["RenewalFailure"]'}
    await Notifier.insert(Notifier(id="nt", name="nt", type="Webhook", status="ready", **config, **times))
    id, _ = await create(wanted("a.example"), SYSTEM)
    await tell(Notice("RenewalFailure", id, "s", "m", "critical", "once"))
    _, secret = await create_token(name="one", created_by="ada")
    row, key = await create_key("ada", "admin")
    login = await log_in(principal_of(row.to_dict()), key, db.now(), life=timedelta(hours=1))
    await happens()
    await past.save()
    await happens()
    await past.come_back()
    assert await authenticate_token(secret, db.now())
    assert await notice()
    assert not await authenticate_token(secret, db.now())
    assert (await only(Job, type="Notification"))["status"] == "Cancelled"
    assert (await only(Notification))["status"] == "dead"
    [row] = await told()
    assert (row["tokens_ended"], row["logins_ended"], row["messages_called_off"]) == (1, 1, 1)
    assert await logged_in(login.cookie, Keyring(()), db.now()) is None
