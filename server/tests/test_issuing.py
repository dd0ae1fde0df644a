import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

import pytest
from certctl_core import plugins
from certctl_core.errors import TransientError
from certctl_core.issuer import IssueRequest
from certctl_core.job import JobState, JobType
from certctl_core.run import LeaseLost
from certctl_core.x509 import read_certificate, read_csr
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.create import create
from certctl_server.certificates.orders import Order, give_csr, order
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.connectors.run import CallRun, JobRun
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs import bell, intents
from certctl_server.jobs.state import claim, end, move, release, requeue, save
from certctl_server.jobs.tables import Job
from certctl_server.targets.tables import Target
from cryptography.hazmat.primitives.asymmetric import ec
from server_flow import job_in, ordered, until, wanted


async def test_an_order_becomes_a_stored_certificate(runner):
    id, job_id = await ordered("a.example")
    bell.ring("issuer:iss-local")
    job = await until(lambda: job_in(job_id, "Completed", "Failed"))
    assert (job["status"], job["last_error"]) == ("Completed", "")
    [row] = await db.fetch(db.Sql("SELECT * FROM certificate WHERE id = $1"), id)
    [version] = await db.fetch(db.Sql("SELECT * FROM certificate_version WHERE certificate_id = $1"), id)
    leaf = read_certificate(version["pem_chain"])
    assert [str(san) for san in leaf.sans] == ["a.example"]
    assert row["status"] == "Active"
    assert row["fingerprint"] == leaf.fingerprint_sha256 == version["fingerprint_sha256"]
    assert row["renew_due_at"] is not None
    assert row["flip_at"] is not None
    [intent] = await db.fetch(db.Sql("SELECT * FROM intent WHERE job_id = $1"), job_id)
    assert (intent["status"], intent["version_id"], intent["reason"]) == ("settled", version["id"], "")
    actions = [row["action"] for row in await db.fetch(db.Sql("SELECT action FROM audit_event ORDER BY number"))]
    assert actions == [
        "renewal_job_created",
        "renewal_awaiting_csr",
        "certificate_created",
        "job_running",
        "renewal_job_completed",
        "certificate_issued",
        "certificate_status_changed",
    ]


async def test_a_csr_with_other_names_is_refused_for_good_and_nothing_is_signed(runner):
    id, job_id = await ordered("a.example", csr=csr_pem("b.example"))
    bell.ring("issuer:iss-local")
    job = await until(lambda: job_in(job_id, "Completed", "Failed"))
    assert job["status"] == "Failed"
    assert "b.example" in job["last_error"]
    assert job["place"] is None
    [row] = await db.fetch(db.Sql("SELECT status, last_error FROM certificate WHERE id = $1"), id)
    assert row["status"] == "Failed"
    assert not await db.fetch(db.Sql("SELECT * FROM intent"))


async def test_an_interrupted_order_signs_the_same_bytes_again(runner, ctx):
    id, job_id = await ordered("a.example")
    bell.connect(None, None)
    [job] = await claim("dead", "issuer:iss-local", limit=1, lease=ctx.settings.job.lease)
    csr = read_csr(job.csr_pem)
    await intents.begin(job, csr)
    issuer = await runner.instances.issuer("iss-local")
    run = JobRun(job, db.now(), runner.instances.loop)
    first = await runner.instances.loop.call(lambda: issuer.issue(IssueRequest(csr_pem=csr.pem), run))
    await release(Job.id == job_id, reason="test")
    bell.connect(runner.look, lambda *_: None)
    bell.ring("issuer:iss-local")
    await until(lambda: job_in(job_id, "Completed"))
    [version] = await db.fetch(db.Sql("SELECT pem_chain FROM certificate_version WHERE certificate_id = $1"), id)
    assert read_certificate(version["pem_chain"]).pem == read_certificate(first.cert_pem).pem
    assert len(await db.fetch(db.Sql("SELECT * FROM intent"))) == 1


class Forgetful(plugins.load().issuers["GenericCA"]):
    """A CA that can be asked what it signed, and of which the first order gets no answer."""

    kind = "Forgetful"
    saves_first = False
    signed: ClassVar[dict] = {}
    asked = 0
    makes = True

    async def issue(self, request, run):
        type(self).asked += 1
        outcome = await super().issue(request, CallRun(f"outside-{self.asked}", run.deadline))
        if self.asked == 1:
            if self.makes:
                self.signed[request.csr_pem] = outcome
            raise TransientError("no answer")
        return outcome

    async def find(self, request, run):
        return self.signed.get(request.csr_pem)


@pytest.mark.parametrize(
    ("how", "makes", "then", "orders", "first"),
    [
        ("retry", True, "a.example", 1, "settled"),
        ("renew", True, "a.example", 1, "settled"),
        ("renew", False, "a.example", 2, "failed"),
        ("renew", True, "b.example", 2, "settled"),
    ],
    ids=["retried", "renewed", "the CA never made it", "what the CA signed has other names"],
)
async def test_a_fresh_job_asks_first_what_the_order_of_the_one_before_came_to(
    runner, ctx, client, monkeypatch, how, makes, then, orders, first
):
    ctx.plugins.issuers["Forgetful"] = Forgetful
    for name, value in {"signed": {}, "asked": 0, "makes": makes}.items():
        monkeypatch.setattr(Forgetful, name, value)
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Issuer.insert(Issuer(id="iss-f", name="f", type="Forgetful", status="ready", **times))
    key = ec.generate_private_key(ec.SECP256R1())
    id, old = await ordered("a.example", issuer="iss-f", csr=csr_pem("a.example", key=key), max_attempts=1)
    bell.ring("issuer:iss-f")
    await until(lambda: job_in(old, "Failed"))
    await Certificate.update(sans=json.dumps([then])).where(Certificate.id == id)
    csr = csr_pem(then, key=key)
    if how == "renew":
        answer = await client.post(f"/api/v1/certificates/{id}/renew", json={"csr_pem": csr})
        assert answer.status_code == 202, answer.text
    else:
        # As a person's retry of a cancelled job has it: a job of its own with the same CSR.
        await Job.update(status="Cancelled").where(Job.id == old)
        answer = await client.post(f"/api/v1/jobs/{old}/retry")
        assert answer.status_code == 200, answer.text
    [new] = await Job.select().where(Job.id != old)
    await until(lambda: job_in(new["id"], "Completed"))
    assert Forgetful.asked == orders
    [version] = await CertificateVersion.select().where(CertificateVersion.certificate_id == id)
    lost = [read_certificate(each.cert_pem).fingerprint_sha256 for each in Forgetful.signed.values()]
    assert (version["fingerprint_sha256"] in lost) == (orders == 1)
    known = db.Sql("SELECT status FROM intent WHERE job_id = $1 AND status = $2")
    await until(lambda: db.fetch(known, old, first))


async def test_what_is_valid_later_only_is_ordered_again(runner, ctx):
    issuer = await runner.instances.issuer("iss-local")
    await issuer.trust_chain(None)  # its root is made by the right time
    right = issuer.host
    issuer.host = replace(right, clock=lambda: db.now() + timedelta(hours=2))
    id, job_id = await ordered("a.example")
    bell.ring("issuer:iss-local")
    job = await until(lambda: job_in(job_id, "Failed"))
    assert "not valid before" in job["last_error"]
    assert job["next_retry_at"] is not None
    assert not await CertificateVersion.select().where(CertificateVersion.certificate_id == id)
    issuer.host = right
    await requeue(Job.id == job_id)
    bell.ring("issuer:iss-local")
    await until(lambda: job_in(job_id, "Completed"))
    [version] = await CertificateVersion.select().where(CertificateVersion.certificate_id == id)
    assert version["not_before"] <= db.now()
    states = await db.fetch(db.Sql("SELECT status FROM intent WHERE job_id = $1 ORDER BY number"), job_id)
    assert [row["status"] for row in states] == ["failed", "settled"]


@pytest.mark.parametrize("waits", [False, True], ids=["offered", "failed, to be tried again"])
async def test_a_newer_version_calls_off_the_deployment_of_the_older_one(runner, waits):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Agent.insert(Agent(id="ag", name="ag", registered_at=db.now(), **times))
    await Target.insert(Target(id="tgt", name="tgt", type="NGINX", status="ready", agent_id="ag", **times))
    id, job_id = await create(wanted("a.example", target_ids=("tgt",)), SYSTEM)
    for _ in range(2):
        csr = read_csr(csr_pem("a.example"))
        await give_csr([job_id], csr.pem, csr.sha256)
        await until(lambda job_id=job_id: job_in(job_id, "Completed"))
        if waits:
            await tried_in_vain()
        [renewal] = await order([id], Order(type=JobType.RENEWAL), SYSTEM)
        job_id = renewal.id
    deployments = await Job.select().where(Job.type == "Deployment").order_by(Job.created_at)
    old, new = [(job["status"], job["last_error"]) for job in deployments]
    assert old == ("Cancelled", "superseded by a newer version")
    assert new == (("Failed", "in vain") if waits else ("Pending", ""))


async def tried_in_vain():
    deploys = Job.type == "Deployment"
    await move(deploys, JobState.PENDING, JobState.RUNNING)
    later = db.now() + timedelta(hours=1)
    await move(deploys, JobState.RUNNING, JobState.FAILED, last_error="in vain", next_retry_at=later)


async def test_one_place_takes_one_open_order_however_often_it_is_asked(runner):
    id, _ = await create(wanted("a.example"), SYSTEM)
    made = await asyncio.gather(*(order([id], Order(type=JobType.RENEWAL), SYSTEM) for _ in range(5)))
    assert [len(jobs) for jobs in made] == [0] * 5
    await settle([id])
    assert await Job.count() == 1


async def test_a_lane_takes_no_more_than_it_has_room_for_and_urgent_work_goes_first(runner, ctx):
    bell.connect(None, None)
    jobs = [(await ordered(f"{n}.example"))[1] for n in range(5)]
    await Job.update(priority=5).where(Job.id != jobs[3])
    await db.fetch(db.Sql("UPDATE lane SET concurrency = 3"))
    lease = ctx.settings.job.lease
    one = await claim("one", "issuer:iss-local", limit=2, lease=lease)
    assert one[0].id == jobs[3]
    two = await claim("two", "issuer:iss-local", limit=25, lease=lease)
    assert (len(one), len(two)) == (2, 1)
    assert await claim("three", "issuer:iss-local", limit=25, lease=lease) == []
    rate = '[{"count": 1, "per_seconds": 3600, "scope": "account"}]'
    await db.fetch(db.Sql("UPDATE lane SET concurrency = 10, rates = $1"), rate)
    assert len(await claim("three", "issuer:iss-local", limit=25, lease=lease)) == 1
    assert await claim("three", "issuer:iss-local", limit=25, lease=lease) == []


async def test_a_job_that_loses_its_owner_three_times_fails_as_crashed(runner, ctx):
    bell.connect(None, None)
    _, job_id = await ordered("a.example")
    for _ in range(3):
        assert len(await claim("dead", "issuer:iss-local", limit=1, lease=ctx.settings.job.lease)) == 1
        await release(Job.id == job_id, reason="test")
    job = await Job.select().where(Job.id == job_id).first()
    assert (job["status"], job["last_error"], job["attempts"]) == (JobState.FAILED, "crashed its worker", 3)


async def test_a_stale_owner_can_neither_save_nor_finish(grounds, ctx):
    bell.connect(None, None)
    _, job_id = await ordered("a.example")
    lease = ctx.settings.job.lease
    [old] = await claim("old", "issuer:iss-local", limit=1, lease=lease)
    await release(Job.id == job_id, reason="test")
    [new] = await claim("new", "issuer:iss-local", limit=1, lease=lease)
    with pytest.raises(LeaseLost):
        await save(old, {"a": 1})
    with pytest.raises(LeaseLost):
        await end(old, JobState.COMPLETED)
    await save(new, {"a": 2})
    row = await Job.select(Job.run_state, Job.status).where(Job.id == job_id).first()
    assert (json.loads(row["run_state"]), row["status"]) == ({"a": 2}, "Running")
    assert replace(new, fence=old.fence) != new
