from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.tables import CertificateVersion
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.state import move
from certctl_server.jobs.tables import Job


async def test_internal_jobs_are_listed_only_when_their_type_is_asked_for(fleet):
    kinds = [JobType.REVOCATION, JobType.SCAN, JobType.NOTIFICATION, JobType.CRL_BUILD, JobType.VALIDATION]
    await create([NewJob(type=kind, place=kind, lane="none") for kind in kinds], SYSTEM)
    assert [row["type"] for row in (await fleet.get("jobs"))["data"]] == ["Validation"]
    assert (await fleet.get("jobs?type=scan,Validation"))["total"] == 2
    [job] = (await fleet.get("jobs?type=Scan"))["data"]
    assert job["certificate_id"] == ""
    assert (await fleet.people.get("/api/v1/jobs?type=Nonsense")).status_code == 400


async def put(state, **facts):
    [job] = await create([NewJob(type=JobType.VALIDATION, place="x", lane="none")], SYSTEM)
    await Job.update({"status": state, **facts}).where(Job.id == job.id)
    return job.id


LATER = {"next_retry_at": datetime(2100, 1, 1, tzinfo=UTC)}
OVER = {"place": None}


@pytest.mark.parametrize(
    ("act", "state", "facts", "code"),
    [
        *[("cancel", state, {}, 200) for state in ("Pending", "AwaitingCSR", "AwaitingApproval", "Running")],
        ("cancel", "Failed", LATER, 200),
        *[("cancel", state, OVER, 409) for state in ("Failed", "Completed", "Cancelled")],
        *[
            ("reject", state, {}, 409)
            for state in ("Pending", "AwaitingCSR", "Running", "Failed", "Completed", "Cancelled")
        ],
        *[
            ("approve", state, {}, 409)
            for state in ("Pending", "AwaitingCSR", "Running", "Failed", "Completed", "Cancelled")
        ],
        ("reject", "AwaitingApproval", {}, 200),
        *[
            ("retry", state, {}, 409)
            for state in ("Pending", "AwaitingCSR", "AwaitingApproval", "Running", "Completed")
        ],
        ("retry", "Failed", LATER, 200),
        ("retry", "Failed", OVER, 200),
        ("verify", "Running", {}, 403),
    ],
    ids=str,
)
async def test_what_people_may_do_hangs_on_the_state(client, grounds, act, state, facts, code):
    id = await put(state, requested_by="bob", **facts)
    answer = await client.post(
        f"/api/v1/jobs/{id}/{act}",
        json={"target_id": "t", "expected_fingerprint": "a", "verified": False} if act == "verify" else {},
    )
    assert answer.status_code == code, answer.text
    row = await Job.select().where(Job.id == id).first()
    if code == 409 and act in {"approve", "reject"}:
        assert state in answer.json()["message"]
    if code != 200:
        assert row["status"] == state
        return
    after = {"cancel": "Cancelled", "reject": "Cancelled", "retry": "Pending"}[act]
    errors = {"cancel": "cancelled by user", "reject": "rejected by user", "retry": ""}
    assert (row["status"], row["last_error"], row["next_retry_at"]) == (after, errors[act], None)
    assert (row["place"] is None) == (after == "Cancelled")
    assert (row["attempts"], row["failures"]) == (0, 0)


async def test_a_rejection_says_why(client, grounds):
    id = await put("AwaitingApproval")
    assert (await client.post(f"/api/v1/jobs/{id}/reject", json={"reason": "no"})).json() == {"status": "job_rejected"}
    assert (await client.get(f"/api/v1/jobs/{id}")).json()["last_error"] == "rejected: no"
    [row] = await db.fetch(
        db.Sql("SELECT action, actor FROM audit_event WHERE resource_id = $1 ORDER BY number DESC LIMIT 1"), id
    )
    assert (row["action"], row["actor"]) == ("job_rejected", "ada")


@pytest.mark.parametrize("act", ["", "/cancel", "/approve", "/reject", "/retry", "/verify", "/verification"])
async def test_a_job_that_is_not_there_is_404(client, grounds, act):
    method = "GET" if act in {"", "/verification"} else "POST"
    assert (await client.request(method, f"/api/v1/jobs/none{act}", json={})).status_code == 404


ALL = list(JobState)


@pytest.mark.parametrize("old", ALL, ids=str)
async def test_a_move_is_a_compare_and_set_with_an_audit_row(database, old):
    [job] = await create([NewJob(type=JobType.VALIDATION, place="x", lane="none")], SYSTEM)
    await Job.update(status=JobState.PENDING if old is not JobState.PENDING else JobState.RUNNING).where(
        Job.id == job.id
    )
    assert await move(Job.id == job.id, JobState.AWAITING_CSR, JobState.RUNNING) == []
    await Job.update(status=JobState.RUNNING).where(Job.id == job.id)
    assert len(await move(Job.id == job.id, JobState.RUNNING, JobState.FAILED, last_error="x")) == 1
    assert await move(Job.id == job.id, JobState.RUNNING, JobState.FAILED) == []
    rows = await db.fetch(
        db.Sql("SELECT action, details FROM audit_event WHERE resource_id = $1 ORDER BY number"), job.id
    )
    assert [row["action"] for row in rows] == ["job_created", "job_failed"]


@pytest.mark.parametrize(
    ("reports", "codes", "status"),
    [
        (["Running", "Running", "Completed", "Completed"], [200, 200, 200, 200], "Completed"),
        (["Completed"], [200], "Completed"),
        (["Failed", "Failed"], [200, 200], "Failed"),
        (["Running", "Failed", "Completed"], [200, 200, 409], "Failed"),
        (["Completed", "Running"], [200, 409], "Completed"),
        (["Completed", "Failed"], [200, 409], "Completed"),
        (["Pending"], [400], "Pending"),
        (["Cancelled"], [400], "Pending"),
    ],
    ids=str,
)
async def test_an_agent_reports_a_deployment(fleet, machine, reports, codes, status):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [item] = await machine.work()
    assert [(await machine.report(item["id"], each)).status_code for each in reports] == codes
    job = await fleet.get(f"jobs/{item['id']}")
    assert job["status"] == status
    assert job["attempts"] == (0 if status == "Pending" else 1)
    assert len(await fleet.jobs(id, type="Deployment")) == 1


@pytest.mark.parametrize(("status", "code"), [("Running", 409), ("Completed", 409), ("Failed", 200)])
async def test_an_agent_reports_an_order_it_has_no_csr_for(fleet, machine, status, code):
    id = await fleet.certificate("a.example", targets=["tgt"])
    [item] = await machine.work()
    answer = await machine.report(item["id"], status, error="no entropy", error_kind="transient")
    assert answer.status_code == code
    [job] = await fleet.jobs(id)
    assert job["status"] == ("Failed" if code == 200 else "AwaitingCSR")
    assert (job["next_retry_at"] is not None) == (code == 200)


@pytest.mark.parametrize("kind", ["rejected", "misconfigured"])
async def test_an_order_that_an_agent_cannot_do_ends_at_once_and_is_tried_again_a_day_later(fleet, machine, kind):
    id = await fleet.certificate("a.example", targets=["tgt"])
    [item] = await machine.work()
    await machine.report(item["id"], "Failed", error="no such key type", error_kind=kind)
    [job] = await fleet.jobs(id)
    assert (job["next_retry_at"], job["place"]) == (None, None)
    found = await fleet.get(f"certificates/{id}")
    assert (found["status"], found["last_error"]) == ("Failed", "no such key type")
    [row] = await db.fetch(db.Sql("SELECT renew_due_at FROM certificate"))
    assert row["renew_due_at"] == job["completed_at"] + timedelta(hours=24)


@pytest.mark.parametrize(
    ("kind", "minutes"), [("transient", 1), ("rejected", 1), ("deployment", 1), ("", 1), ("misconfigured", 360)]
)
async def test_a_deployment_is_retried_whatever_the_error(fleet, machine, kind, minutes):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [item] = await machine.work()
    await machine.report(item["id"], "Failed", error="x", error_kind=kind)
    [job] = await fleet.jobs(id, type="Deployment")
    assert (job["next_retry_at"] - db.now()) / timedelta(minutes=1) == pytest.approx(minutes, rel=0.15)
    assert job["place"] is not None


async def test_a_cancelled_deployment_leaves_its_target_without_the_version_until_it_is_retried(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [job] = await fleet.jobs(id, type="Deployment")
    await fleet.post(f"jobs/{job['id']}/cancel")
    assert await fleet.status(id) == ("Pending", "failed")
    retried = (await fleet.post(f"jobs/{job['id']}/retry")).json()
    assert retried["job_id"] != job["id"]
    assert (await fleet.post(f"jobs/{job['id']}/retry")).status_code == 409
    assert [item["id"] for item in await machine.deploy_all()] == [retried["job_id"]]
    assert await fleet.status(id) == ("Active", "served")


async def test_a_cancelled_order_is_made_anew_for_its_agent_alone(fleet, machine):
    other = await fleet.machine("ag-2")
    id = await fleet.certificate("a.example", targets=["tgt", await fleet.target("tgt-2", other)])
    for job in await fleet.jobs(id):
        await fleet.post(f"jobs/{job['id']}/cancel")
    [old] = await fleet.jobs(id, agent_id="ag-1")
    new = (await fleet.post(f"jobs/{old['id']}/retry")).json()["job_id"]
    assert [job["id"] for job in await fleet.jobs(id, status="AwaitingCSR")] == [new]


@pytest.mark.parametrize("why", ["archived", "revoked", "expired"])
async def test_what_could_not_succeed_is_not_retried(fleet, machine, why):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [job] = await fleet.jobs(id, type="Deployment")
    await fleet.post(f"jobs/{job['id']}/cancel")
    if why == "archived":
        await fleet.people.delete(f"/api/v1/certificates/{id}")
    elif why == "revoked":
        await fleet.post(f"certificates/{id}/revoke")
    else:
        await CertificateVersion.update(not_after=db.now()).where(CertificateVersion.certificate_id == id)
    assert (await fleet.post(f"jobs/{job['id']}/retry")).status_code == 409


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ({}, 200, "success"),
        ({"expected_fingerprint": "sha256:" + "AB" * 32, "actual_fingerprint": ":".join(["ab"] * 32)}, 200, "success"),
        ({"actual_fingerprint": "cd" * 32}, 200, "failed"),
        ({"verified": False, "actual_fingerprint": "", "error": "refused"}, 200, "failed"),
        ({"target_id": "other"}, 400, "pending"),
        ({"expected_fingerprint": ""}, 400, "pending"),
        ({"expected_fingerprint": "xyz"}, 400, "pending"),
    ],
    ids=["same", "spelt otherwise", "claimed but different", "not seen", "another target", "missing", "no fingerprint"],
)
async def test_the_server_compares_what_is_served(fleet, machine, body, code, status):
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [item] = await machine.work()
    sent = {"target_id": "tgt", "expected_fingerprint": "ab" * 32, "actual_fingerprint": "ab" * 32, "verified": True}
    answer = await machine.http.post(f"/api/v1/jobs/{item['id']}/verify", json=sent | body)
    assert answer.status_code == code, answer.text
    found = await fleet.get(f"jobs/{item['id']}/verification")
    assert (found["verification_status"], found["verified"]) == (status, status == "success")
    if status != "pending":
        actions = await db.fetch(db.Sql("SELECT action FROM audit_event WHERE action LIKE 'job_verification%'"))
        assert actions == [{"action": f"job_verification_{status}"}]
        assert len(found["expected_fingerprint"]) == 64
    [order] = await fleet.jobs(id, type="Issuance")
    assert (await machine.http.post(f"/api/v1/jobs/{order['id']}/verify", json=sent)).status_code == 409
