from datetime import timedelta

import pytest
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.certificates.tables import BlockedKey, CertificateVersion
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.tables import Job
from certctl_server.people.tables import Owner, Team
from cryptography.hazmat.primitives.asymmetric import ec

NAMED = {"owner_id": "o", "team_id": "t", "issuer_id": "iss-local"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "common_name"),
        ({"common_name": "a..example"}, "common_name"),
        ({"common_name": "-a.example"}, "common_name"),
        ({"common_name": "a.*.example"}, "common_name"),
        ({"common_name": "x" * 254}, "common_name"),
        ({"sans": ["a.example", "b_ d"]}, "sans[1]"),
        ({"sans": ["a.example"], "owner_id": ""}, "owner_id"),
        ({"sans": ["a.example"], "team_id": "gone"}, "team_id"),
        ({"sans": ["a.example"], "issuer_id": "gone"}, "issuer_id"),
        ({"sans": ["a.example"], "renewal_policy_id": "gone"}, "renewal_policy_id"),
        ({"sans": ["a.example"], "certificate_profile_id": "gone"}, "certificate_profile_id"),
        ({"sans": ["a.example"], "profile_id": "gone"}, "certificate_profile_id"),
        ({"sans": ["a.example"], "target_ids": ["gone"]}, "target_ids"),
        ({"sans": ["a.example"], "environment": "e" * 51}, "environment"),
        ({"sans": ["a.example"], "tags": {"": "x"}}, "tags"),
        ({"sans": ["a.example"], "tags": {"k": "x" * 257}}, "tags"),
        ({"sans": ["a.example"], "status": "Expired"}, "status"),
        ({"sans": ["a.example"], "id": "../etc"}, "id"),
    ],
)
async def test_what_is_wrong_with_a_new_certificate_is_named(client, grounds, body, field):
    answer = await client.post("/api/v1/certificates", json=NAMED | body)
    assert answer.status_code == 400, answer.text
    assert [each["field"].startswith(field) for each in answer.json()["details"]] == [True]


async def test_a_new_certificate_is_pending_and_says_which_job_gets_it(fleet):
    answer = await fleet.post("certificates", **NAMED, common_name="Bücher.example", sans=["10.0.0.1", "10.0.0.1"])
    found = answer.json()
    assert (answer.status_code, found["status"], found["deployment_state"]) == (201, "Pending", "none")
    assert (found["common_name"], found["name"]) == ("xn--bcher-kva.example", "xn--bcher-kva.example")
    assert (found["sans"], found["target_ids"], found["tags"]) == (["10.0.0.1"], [], {})
    assert (found["renewal_policy_id"], found["expires_at"]) == ("rp-default", "0001-01-01T00:00:00Z")
    [job] = await fleet.jobs(found["id"])
    assert (found["job_id"], job["type"], job["status"]) == (job["id"], "Issuance", "AwaitingCSR")
    assert "map a target" in job["last_error"]


async def test_default_names_count_on_and_explicit_ones_are_unique(fleet):
    made = [await fleet.post("certificates", **NAMED, common_name="a_b.example") for _ in range(3)]
    names = [answer.json()["name"] for answer in made]
    assert names == ["a_b.example", "a_b.example (2)", "a_b.example (3)"]
    assert (await fleet.post("certificates", **NAMED, sans=["x.example"], name="a_b.example")).status_code == 409
    first = await fleet.post("certificates", **NAMED, sans=["x.example"], id="mc-x")
    assert (first.status_code, first.json()["id"]) == (201, "mc-x")
    assert (await fleet.post("certificates", **NAMED, sans=["x.example"], id="mc-x")).status_code == 409


@pytest.mark.parametrize("more", [{}, {"expires_at": "2031-01-01T00:00:00Z"}], ids=["as the CLI", "with its end"])
async def test_an_import_is_active_orders_nothing_and_needs_no_owner(fleet, more):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Team.insert(Team(id="t-unassigned", name="u", **times))
    await Owner.insert(Owner(id="o-unassigned", name="u", team_id="t-unassigned", **times))
    body = {"common_name": "a.example", "sans": ["a.example"], "issuer_id": "iss-local", "environment": "imported"}
    answer = await fleet.post("certificates", **body, status="Active", serial_number="0A:0b", **more)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["status"], found["owner_id"], found["team_id"]) == ("Active", "o-unassigned", "t-unassigned")
    assert "job_id" not in found
    assert await fleet.jobs(found["id"]) == []
    renewed = await fleet.post(f"certificates/{found['id']}/renew")
    assert renewed.status_code == 202
    assert (await fleet.status(found["id"]))[0] == "RenewalInProgress"


async def test_a_change_merges_and_an_archived_certificate_takes_none(fleet):
    id = await fleet.certificate("a.example", tags={"a": "1"}, environment="e")
    answer = await fleet.people.put(f"/api/v1/certificates/{id}", json={"tags": {}, "environment": None, "sans": None})
    assert (answer.status_code, answer.json()["tags"], answer.json()["sans"]) == (200, {}, ["a.example"])
    assert (await fleet.people.delete(f"/api/v1/certificates/{id}")).status_code == 204
    assert (await fleet.people.delete(f"/api/v1/certificates/{id}")).status_code == 204
    assert (await fleet.people.put(f"/api/v1/certificates/{id}", json={"environment": "f"})).status_code == 409
    [job] = await fleet.jobs(id)
    assert (job["status"], job["place"]) == ("Cancelled", None)
    listed = (await fleet.get("certificates?status=archived"))["data"]
    assert [row["id"] for row in listed] == [id]


@pytest.mark.parametrize("act", ["renew", "deploy", "revoke"])
async def test_nothing_can_be_done_with_an_archived_or_missing_certificate(fleet, act):
    id = await fleet.certificate("a.example")
    await fleet.people.delete(f"/api/v1/certificates/{id}")
    assert (await fleet.post(f"certificates/{id}/{act}")).status_code == 409
    assert (await fleet.post(f"certificates/none/{act}")).status_code == 404


async def test_two_agents_have_a_job_a_key_and_a_version_each(fleet):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.served(one, two)
    assert await fleet.status(id) == ("Active", "served")
    versions = (await fleet.get(f"certificates/{id}/versions"))["data"]
    assert [row["agent_id"] for row in versions] == ["ag-2", "ag-1"]
    found = await fleet.get(f"certificates/{id}")
    assert (found["expires_at"], found["fingerprint"]) == (versions[0]["not_after"], versions[0]["fingerprint_sha256"])
    for machine, version in ((one, versions[1]), (two, versions[0])):
        answer = await machine.http.get(f"{machine.path}/certificates/{id}")
        assert answer.json()["certificate_pem"] == version["pem_chain"]
    renewed = (await fleet.post(f"certificates/{id}/renew")).json()
    assert len(renewed["job_ids"]) == 2
    assert renewed["job_id"] == renewed["job_ids"][0]
    await one.answer_orders()
    await one.deploy_all()
    assert (await fleet.status(id))[0] == "RenewalInProgress"
    await two.answer_orders()
    await two.deploy_all()
    assert await fleet.status(id) == ("Active", "served")
    rows = (await fleet.get(f"certificates/{id}/deployments"))["data"]
    assert {row["id"]: row["last_status"] for row in rows} == {"tgt-ag-1": "Completed", "tgt-ag-2": "Completed"}


async def test_a_renewal_under_way_is_named_and_an_open_issuance_is_the_answer(fleet):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    [job] = await fleet.jobs(id)
    again = await fleet.post(f"certificates/{id}/renew")
    assert (again.status_code, again.json()["job_id"]) == (202, job["id"])
    await machine.answer_orders()
    first = (await fleet.post(f"certificates/{id}/renew")).json()["job_id"]
    second = await fleet.post(f"certificates/{id}/renew")
    assert second.status_code == 409
    assert first in second.json()["message"]


@pytest.mark.parametrize("state", [{"enabled": False}, {"status": "incomplete"}], ids=str)
async def test_an_issuer_that_cannot_issue_is_not_asked_to_renew(fleet, state):
    id = await fleet.served(await fleet.machine("ag-1"))
    await Issuer.update(state).where(Issuer.id == "iss-local")
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 409


async def test_a_callers_csr_joins_the_order_that_no_agent_answers(fleet):
    id = await fleet.certificate("a.example")
    [job] = await fleet.jobs(id)
    answer = await fleet.post(f"certificates/{id}/renew", csr_pem=csr_pem("a.example"))
    assert (answer.status_code, answer.json()["job_ids"]) == (202, [job["id"]])


async def test_a_callers_csr_waits_for_approval_like_every_order(fleet, connect):
    await fleet.post("renewal-policies", id="rp-ask", name="ask", requires_approval=True)
    id = await fleet.certificate("a.example", renewal_policy_id="rp-ask")
    [job] = await fleet.jobs(id)
    assert job["status"] == "AwaitingApproval"
    await fleet.post(f"certificates/{id}/renew", csr_pem=csr_pem("a.example"))
    row = await Job.select().where(Job.id == job["id"]).first()
    assert (row["status"], row["due_at"], row["csr_sha256"] == "") == ("AwaitingApproval", None, False)
    assert (await fleet.post(f"jobs/{job['id']}/approve")).status_code == 403
    await Job.update(requested_by="bob").where(Job.id == job["id"])
    assert (await fleet.post(f"jobs/{job['id']}/approve", reason="fine")).status_code == 200
    [told] = (await fleet.get(f"audit?resource_id={job['id']}&action=job_approved"))["data"]
    assert (told["actor"], told["details"]["reason"]) == ("ada", "fine")
    row = await Job.select().where(Job.id == job["id"]).first()
    assert row["due_at"] is not None or row["status"] in {"Running", "Completed"}


async def test_mapping_a_target_gives_an_order_without_agent_to_the_targets_agent(fleet):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.certificate("a.example")
    [job] = await fleet.jobs(id)
    targets = [await fleet.target("tgt-1", one), await fleet.target("tgt-2", two)]
    await fleet.people.put(f"/api/v1/certificates/{id}", json={"target_ids": targets})
    assert await one.answer_orders() == [job["id"]]
    assert len(await two.answer_orders()) == 1
    await one.deploy_all()
    await two.deploy_all()
    assert await fleet.status(id) == ("Active", "served")


async def test_a_target_mapped_later_gets_the_version_whose_key_its_agent_has(fleet):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.served(one)
    targets = ["tgt-ag-1", await fleet.target("tgt-more", one), await fleet.target("tgt-else", two)]
    await fleet.people.put(f"/api/v1/certificates/{id}", json={"target_ids": targets})
    assert (await fleet.status(id))[0] == "RenewalInProgress"
    assert [item["target_id"] for item in await one.deploy_all()] == ["tgt-more"]
    assert len(await two.answer_orders()) == 1
    assert [item["target_id"] for item in await two.deploy_all()] == ["tgt-else"]
    assert await fleet.status(id) == ("Active", "served")
    assert await one.work() == []


async def test_removing_a_target_calls_off_what_was_to_be_done_there(fleet):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    targets = [await fleet.target("tgt-1", one), await fleet.target("tgt-2", one), await fleet.target("tgt-3", two)]
    id = await fleet.certificate("a.example", targets=targets)
    await one.answer_orders()
    [item] = [item for item in await one.work() if item["target_id"] == "tgt-2"]
    await one.report(item["id"], "Running")
    await fleet.people.put(f"/api/v1/certificates/{id}", json={"target_ids": ["tgt-1"]})
    assert (await one.report(item["id"], "Completed")).status_code == 409
    assert {job["status"] for job in await fleet.jobs(id, agent_id="ag-2")} == {"Cancelled"}
    await Job.update(offer_at=db.now()).where(Job.target_id == "tgt-1")
    assert [item["target_id"] for item in await one.deploy_all()] == ["tgt-1"]
    assert await fleet.status(id) == ("Active", "served")


async def test_a_deleted_target_takes_its_deployment_along(fleet):
    machine = await fleet.machine("ag-1")
    targets = [await fleet.target("tgt-1", machine), await fleet.target("tgt-2", machine)]
    id = await fleet.certificate("a.example", targets=targets)
    await machine.answer_orders()
    items = {item["target_id"]: item for item in await machine.work()}
    await machine.report(items["tgt-2"]["id"], "Running")
    await machine.report(items["tgt-1"]["id"], "Completed")
    assert (await fleet.people.delete("/api/v1/targets/tgt-2")).status_code == 204
    assert await fleet.status(id) == ("Active", "deployed")
    assert (await machine.report(items["tgt-2"]["id"], "Failed")).status_code == 409


async def test_a_deployment_is_called_off_by_a_newer_version_and_not_retried(fleet):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    [old] = await machine.work()
    assert (await machine.report(old["id"], "Failed", error="nginx -t failed")).status_code == 200
    assert await fleet.status(id) == ("Pending", "failed")
    await fleet.post(f"certificates/{id}/renew")
    await machine.answer_orders()
    job = await fleet.get(f"jobs/{old['id']}")
    assert (job["status"], "next_retry_at" in job) == ("Cancelled", False)
    assert "superseded" in job["last_error"]
    assert (await machine.report(old["id"], "Completed")).status_code == 409
    [item] = await machine.deploy_all()
    assert item["id"] != old["id"]
    assert await fleet.status(id) == ("Active", "served")


async def test_deploy_returns_what_is_open_and_never_doubles_it(fleet):
    machine = await fleet.machine("ag-1")
    id = await fleet.served(machine)
    first = (await fleet.post(f"certificates/{id}/deploy")).json()
    second = (await fleet.post(f"certificates/{id}/deploy", target_id="tgt-ag-1")).json()
    assert first["job_ids"] == second["job_ids"] == [first["job_id"]]
    assert (await fleet.post(f"certificates/{id}/deploy", target_id="other")).status_code == 400
    await machine.deploy_all()
    assert await fleet.status(id) == ("Active", "served")


async def test_what_cannot_be_deployed_is_refused(fleet):
    machine = await fleet.machine("ag-1")
    expired = await fleet.served(machine, sans=("c.example",))
    without = await fleet.certificate("a.example")
    unissued = await fleet.certificate("b.example", targets=["tgt-ag-1"])
    past = db.now() - timedelta(seconds=1)
    await CertificateVersion.update(not_after=past).where(CertificateVersion.certificate_id == expired)
    for id in (without, unissued, expired):
        assert (await fleet.post(f"certificates/{id}/deploy")).status_code == 409


async def test_revoking_ends_orders_and_deployments_and_only_force_with_a_new_key_follows(fleet):
    machine = await fleet.machine("ag-1")
    key = ec.generate_private_key(ec.SECP256R1())
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.csr(id, "a.example", key=key)
    [item] = await machine.work()
    await fleet.post(f"certificates/{id}/renew")
    answer = await fleet.post(f"certificates/{id}/revoke", reason="superseded")
    assert (answer.status_code, answer.json()) == (200, {"status": "revoked", "revocation_state": "confirmed"})
    assert (await fleet.status(id))[0] == "Revoked"
    assert await machine.work() == []
    assert (await machine.report(item["id"], "Running")).status_code == 409
    assert {job["status"] for job in await fleet.jobs(id)} == {"Completed", "Cancelled"}
    assert (await fleet.post(f"certificates/{id}/revoke")).status_code == 409
    assert (await fleet.post(f"certificates/{id}/deploy")).status_code == 409
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 409
    assert (await machine.csr(id, "a.example")).status_code == 409
    assert (await fleet.post(f"certificates/{id}/renew", force=True)).status_code == 202
    assert (await fleet.status(id))[0] == "RenewalInProgress"
    reused = await machine.csr(id, "a.example", key=key)
    assert (reused.status_code, "revoked" in reused.text) == (400, True)
    assert (await machine.csr(id, "a.example")).status_code == 202
    await machine.deploy_all()
    found = await fleet.get(f"certificates/{id}")
    assert (found["status"], "revoked_at" in found) == ("Active", False)
    [revocation] = await db.fetch(db.Sql("SELECT reason, state FROM revocation"))
    assert revocation == {"reason": "superseded", "state": "confirmed"}


async def test_a_compromised_key_is_never_taken_again(fleet):
    machine = await fleet.machine("ag-1")
    key = ec.generate_private_key(ec.SECP256R1())
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.csr(id, "a.example", key=key)
    await fleet.post(f"certificates/{id}/revoke", reason="keyCompromise")
    assert await BlockedKey.count() == 1
    other = await fleet.certificate("b.example", targets=["tgt"])
    assert "compromised" in (await machine.csr(other, "b.example", key=key)).text


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        ("GenericCA", "because", 400),
        ("GenericCA", "certificateHold", 200),
        ("ACME", "certificateHold", 400),
        ("ACME", "caCompromise", 400),
        ("ACME", "keyCompromise", 200),
    ],
)
async def test_reasons_for_revocation_are_those_that_the_issuer_can_carry(fleet, kind, reason, code):
    id = await fleet.served(await fleet.machine("ag-1"))
    await Issuer.update(type=kind).where(Issuer.id == "iss-local")
    assert (await fleet.post(f"certificates/{id}/revoke", reason=reason)).status_code == code
    assert (await fleet.status(id))[0] == ("Revoked" if code == 200 else "Active")


async def test_what_was_never_issued_cannot_be_revoked(fleet):
    assert (await fleet.post(f"certificates/{await fleet.certificate('a.example')}/revoke")).status_code == 409


REFUSE = {
    "sqlite": ["CREATE TRIGGER no_audit BEFORE INSERT ON audit_event BEGIN SELECT RAISE(ABORT, 'full'); END"],
    "postgres": [
        "CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'full'; END $$",
        "CREATE TRIGGER no_audit BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION no_audit()",
    ],
}
TABLES = ("certificate", "certificate_target", "certificate_version", "job", "revocation", "notification", "agent_key")


async def everything():
    found = {}
    for table in TABLES:
        found[table] = sorted(map(str, await db.fetch(db.Sql(f"SELECT * FROM {table}"))))
    return found


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "certificates", NAMED | {"sans": ["x.example"]}),
        ("PUT", "certificates/mc-a", {"target_ids": ["tgt-2"], "environment": "x"}),
        ("DELETE", "certificates/mc-a", None),
        ("POST", "certificates/mc-a/renew", {}),
        ("POST", "certificates/mc-a/deploy", {}),
        ("POST", "certificates/mc-a/revoke", {"reason": "keyCompromise"}),
        ("POST", "jobs/{job}/cancel", {}),
        ("POST", "agents/ag-1/jobs/{job}/status", {"status": "Running"}),
        ("POST", "agents/ag-1/jobs/{job}/status", {"status": "Completed"}),
        ("POST", "agents/ag-1/jobs/{job}/status", {"status": "Failed"}),
        ("POST", "jobs/{job}/verify", {"target_id": "tgt-1", "expected_fingerprint": "ab" * 32, "verified": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_audited_does_not_happen(fleet, database, method, path, body):
    machine = await fleet.machine("ag-1")
    await fleet.target("tgt-1", machine)
    await fleet.target("tgt-2", machine)
    await fleet.certificate("a.example", targets=["tgt-1"], id="mc-a")
    await machine.answer_orders()
    [job] = await fleet.jobs("mc-a", type="Deployment")
    before = await everything()
    for statement in REFUSE[database]:
        await db.fetch(db.Sql(statement))
    http = machine.http if path.startswith("agents") or path.endswith("verify") else fleet.people
    answer = await http.request(method, f"/api/v1/{path.format(job=job['id'])}", json=body)
    assert answer.is_error, answer.text
    assert await everything() == before
