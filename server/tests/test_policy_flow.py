"""Rules against certificates at every moment at which they are looked at, each type and each severity."""

import asyncio
import json
from datetime import timedelta

import pytest
from certctl_core.job import JobType
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.orders import Order, order
from certctl_server.certificates.renewal import scan
from certctl_server.jobs.tables import Job
from certctl_server.notices.tables import Notification
from certctl_server.people.tables import Owner, Team
from certctl_server.policies.judge import review
from certctl_server.policies.tables import PolicyRule, PolicyViolation
from server_flow import aged, job_in, until

#: What ``fleet.certificate("a.example")`` breaks, and the field at fault.
BROKEN = {
    "AllowedIssuers": ({"allowed_issuer_ids": ["ACME"]}, "issuer_id"),
    "AllowedDomains": ({"allowed_domains": ["*.example.org"]}, "sans"),
    "RequiredMetadata": ({"required_keys": ["cost-centre"]}, "tags.cost-centre"),
    "AllowedEnvironments": ({"allowed": []}, "environment"),
}
SEVERITIES = ["Warning", "Error", "Critical"]
DAY = timedelta(days=1)


@pytest.fixture
def rule(fleet):
    """Makes a rule; each is called after its type."""

    async def make(type_, severity="Error", config=None, **more):
        config = BROKEN[type_][0] if config is None else config
        body = {"id": f"pr-{type_}", "name": f"rule {type_}", "type": type_, "severity": severity, "config": config}
        answer = await fleet.post("policies", **body, **more)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return make


@pytest.fixture
def rules(rule):
    """Makes a rule of each type that this certificate breaks."""

    async def make(severity):
        return [await rule(type_, severity) for type_ in BROKEN]

    return make


async def open_ones(id):
    rows = await PolicyViolation.select().where(PolicyViolation.certificate_id == id)
    return sorted(row["rule_id"] for row in rows if row["resolved_at"] is None)


async def actions(id, action):
    text = "SELECT details FROM audit_event WHERE resource_id = $1 AND action = $2 ORDER BY number"
    return [json.loads(row["details"]) for row in await db.fetch(db.Sql(text), id, action)]


def fields(answer):
    return {each["field"]: each["message"] for each in answer.json()["details"]}


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_at_creation(fleet, rules, severity):
    every = await rules(severity)
    body = {"sans": ["a.example"], "owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "id": "mc"}
    answer = await fleet.post("certificates", **body)
    if severity != "Warning":
        assert answer.status_code == 400
        assert set(fields(answer)) == {field for _, field in BROKEN.values()}
        assert "rule AllowedIssuers" in fields(answer)["issuer_id"]
        assert await db.fetch(db.Sql("SELECT id FROM certificate")) == []
        assert await PolicyViolation.count() == await Job.count() == await Notification.count() == 0
        return
    assert answer.status_code == 201
    assert answer.json()["job_id"]
    assert await open_ones("mc") == sorted(every)
    told = await actions("mc", "policy_violation_detected")
    assert [each["rule_id"] for each in told] == sorted(every)
    notices = await Notification.select().where(Notification.certificate_id == "mc")
    assert {(each["type"], each["severity"]) for each in notices} == {("PolicyViolation", "warning")}
    assert len(notices) == len(every)


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_what_was_made_elsewhere_is_kept_with_its_breaches(fleet, rules, severity):
    every = await rules(severity)
    end = (db.now() + 90 * DAY).isoformat()
    id = await fleet.certificate("a.example", status="Active", expires_at=end)
    assert await open_ones(id) == sorted(every)


async def test_an_import_without_an_owner_breaks_the_rule_that_asks_for_one(fleet, rule):
    times = {"name": "nobody", "created_at": db.now(), "updated_at": db.now()}
    await Team.insert(Team(id="t-unassigned", **times))
    await Owner.insert(Owner(id="o-unassigned", team_id="t", **times))
    made = await rule("RequiredMetadata", "Critical", {"required_keys": ["owner_id", "team_id"]})
    end = (db.now() + 90 * DAY).isoformat()
    body = {"sans": ["a.example"], "issuer_id": "iss-local", "environment": "imported", "status": "Active"}
    answer = await fleet.post("certificates", **body, expires_at=end)
    assert answer.status_code == 201, answer.text
    [found] = (await fleet.get(f"policies/{made}/violations"))["data"]
    assert found.pop("id").startswith("pv-")
    assert found.pop("created_at")
    assert found == {
        "certificate_id": answer.json()["id"],
        "rule_id": made,
        "severity": "Critical",
        "message": "owner_id is o-unassigned, which is nobody; team_id is t-unassigned, which is nobody",
    }


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_at_a_change(fleet, rules, severity):
    id = await fleet.certificate("a.example")
    every = await rules(severity)
    path = f"/api/v1/certificates/{id}"
    for _ in range(2):
        assert (await fleet.people.put(path, json={"environment": "x"})).status_code == 200
    assert await open_ones(id) == sorted(every)
    assert len(await actions(id, "policy_violation_detected")) == len(every) == await Notification.count()
    assert (await fleet.people.put(path, json={"tags": {"cost-centre": "7"}})).status_code == 200
    assert await open_ones(id) == sorted(set(every) - {"pr-RequiredMetadata"})
    [over] = (await fleet.get("policies/pr-RequiredMetadata/violations?resolved=true"))["data"]
    assert over["resolved_at"] >= over["created_at"]
    assert (await fleet.get("policies/pr-RequiredMetadata/violations?resolved=false"))["total"] == 0
    assert [each["rule_id"] for each in await actions(id, "policy_violation_resolved")] == ["pr-RequiredMetadata"]
    await fleet.people.put(path, json={"tags": {}})
    assert (await fleet.get(f"policies/pr-RequiredMetadata/violations?certificate_id={id}"))["total"] == 2


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_at_a_renewal(fleet, rules, severity):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    every = await rules(severity)
    answer = await fleet.post(f"certificates/{id}/renew")
    assert await open_ones(id) == sorted(every)
    found = await fleet.get(f"certificates/{id}")
    if severity == "Warning":
        assert (answer.status_code, found["status"]) == (202, "RenewalInProgress")
        assert len(await machine.work()) == 1
        return
    assert answer.status_code == 400
    assert set(fields(answer)) == {field for _, field in BROKEN.values()}
    assert (found["status"], await fleet.jobs(id, type="Renewal")) == ("Active", [])
    assert found["last_error"].startswith("a policy does not allow it: rule AllowedDomains: a.example lies outside")
    assert await actions(id, "renewal_triggered") == []
    body = {"sans": ["b.example.org"], "environment": "x", "tags": {"cost-centre": "7"}}
    for type_ in ("AllowedIssuers", "AllowedEnvironments"):
        await fleet.people.put(f"/api/v1/policies/pr-{type_}", json={"enabled": False})
    await fleet.people.put(f"/api/v1/certificates/{id}", json=body)
    assert await open_ones(id) == []
    assert "last_error" not in await fleet.get(f"certificates/{id}")
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_at_a_renewal_by_the_scheduler(fleet, rules, leadership, severity):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    await aged(id, 90 * DAY, DAY)
    every = await rules(severity)
    await scan(leadership)
    renewals = await fleet.jobs(id, type="Renewal")
    assert await open_ones(id) == sorted(every)
    if severity == "Warning":
        assert len(renewals) == 1
        return
    assert renewals == []
    assert "rule AllowedIssuers" in (await fleet.get(f"certificates/{id}"))["last_error"]
    [row] = await db.fetch(db.Sql("SELECT renew_due_at FROM certificate WHERE id = $1"), id)
    assert timedelta(minutes=50) < row["renew_due_at"] - db.now() < timedelta(minutes=70)
    await PolicyRule.update({PolicyRule.enabled: False}, force=True)
    await db.fetch(db.Sql("UPDATE certificate SET renew_due_at = {after:-60} WHERE id = $1"), id)
    await scan(leadership)
    assert len(await fleet.jobs(id, type="Renewal")) == 1
    assert await open_ones(id) == []


async def test_one_that_is_forbidden_holds_up_no_other(fleet, rule):
    machine = await fleet.machine("a")
    target = await fleet.target("tgt", machine)
    ids = [await fleet.certificate(f"{n}.example", targets=[target]) for n in "abc"]
    await machine.answer_orders()
    await rule("AllowedDomains", config={"denied_domains": ["b.example"]})
    made = await order(ids, Order(type=JobType.RENEWAL), SYSTEM)
    assert sorted(job.certificate_id for job in made) == sorted([ids[0], ids[2]])


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_a_rule_that_comes_while_an_order_waits_for_its_agent(fleet, rules, severity):
    machine = await fleet.machine("a")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    every = await rules(severity)
    items = await machine.work()
    if severity == "Warning":
        assert len(items) == 1
        return
    assert items == []
    [job] = await fleet.jobs(id)
    assert job["last_error"].startswith("a policy does not allow it: ")
    assert job["status"] == "AwaitingCSR"
    assert timedelta(minutes=4) < job["offer_at"] - db.now() < timedelta(minutes=6)
    assert await open_ones(id) == sorted(every)
    for each in every:
        assert (await fleet.people.delete(f"/api/v1/policies/{each}")).status_code == 204
    await Job.update(offer_at=db.now()).where(Job.id == job["id"])
    [item] = await machine.work()
    assert item["id"] == job["id"]
    assert (await fleet.jobs(id))[0]["last_error"] == ""


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_a_rule_that_comes_while_an_order_is_about_to_be_signed(fleet, rules, severity):
    id = await fleet.certificate("a.example")
    every = await rules(severity)
    answer = await fleet.post(f"certificates/{id}/renew", csr_pem=csr_pem("a.example"))
    [job_id] = answer.json()["job_ids"]
    job = await until(lambda: job_in(job_id, "Completed", "Failed"))
    lane = await db.fetch(db.Sql("SELECT faulted, opened FROM lane"))
    assert lane == [{"faulted": "[]", "opened": 0}]
    if severity == "Warning":
        assert job["status"] == "Completed"
        return
    assert (job["status"], job["place"], json.loads(job["result"])) == ("Failed", None, {"cause": "forbidden"})
    assert "rule RequiredMetadata: cost-centre is empty" in job["last_error"]
    found = await fleet.get(f"certificates/{id}")
    assert (found["status"], found["last_error"]) == ("Failed", job["last_error"])
    assert await open_ones(id) == sorted(every)
    assert await db.fetch(db.Sql("SELECT id FROM certificate_version")) == []
    assert await db.fetch(db.Sql("SELECT * FROM intent")) == []


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_at_a_deployment(fleet, rules, severity):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    every = await rules(severity)
    answer = await fleet.post(f"certificates/{id}/deploy")
    assert await open_ones(id) == sorted(every)
    if severity != "Critical":
        assert answer.status_code == 202
        assert len(await machine.work()) == 1
        return
    assert answer.status_code == 400
    assert set(fields(answer)) == {field for _, field in BROKEN.values()}
    assert len(await fleet.jobs(id, type="Deployment")) == 1
    assert await actions(id, "deployment_triggered") == []


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_a_rule_that_comes_while_a_deployment_waits_for_its_agent(fleet, rules, severity):
    machine = await fleet.machine("a")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    every = await rules(severity)
    if severity != "Critical":
        assert len(await machine.deploy_all()) == 1
        return
    assert await machine.work() == []
    [job] = await fleet.jobs(id, type="Deployment")
    assert (job["status"], job["last_error"][:28]) == ("Pending", "a policy does not allow it: ")
    assert await open_ones(id) == sorted(every)
    await PolicyRule.update({PolicyRule.severity: "Error"}, force=True)
    await Job.update(offer_at=db.now()).where(Job.id == job["id"])
    assert len(await machine.deploy_all()) == 1
    assert await fleet.status(id) == ("Active", "served")


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_what_is_late_is_noted_and_renewed_all_the_same(fleet, rule, severity):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    await aged(id, 90 * DAY, 3 * DAY)
    late = await rule("RenewalLeadTime", severity, {"lead_time_days": 14})
    assert (await fleet.post(f"certificates/{id}/deploy")).status_code == 202
    assert await open_ones(id) == [late]
    await machine.deploy_all()
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202
    await machine.answer_orders()
    assert await open_ones(id) == []
    assert len(await actions(id, "policy_violation_resolved")) == 1
    assert len(await machine.deploy_all()) == 1


@pytest.mark.parametrize("severity", SEVERITIES)
async def test_a_rule_that_cannot_be_evaluated_lets_nothing_be_issued(fleet, severity):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    times = {"created_at": db.now(), "updated_at": db.now()}
    broken = PolicyRule(id="pr", name="broken", type="AllowedIssuers", config='{"no":1}', severity=severity, **times)
    await PolicyRule.insert(broken)
    answer = await fleet.post("certificates", sans=["b.example"], owner_id="o", team_id="t", issuer_id="iss-local")
    assert answer.status_code == 400
    assert "cannot be evaluated: no: is unknown" in fields(answer)["policy"]
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 400
    deployed = await fleet.post(f"certificates/{id}/deploy")
    assert deployed.status_code == (400 if severity == "Critical" else 202)
    assert len(await machine.work()) == (0 if severity == "Critical" else 1)
    await PolicyRule.update({PolicyRule.enabled: False}, force=True)
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202


async def test_a_breach_that_changes_is_the_same_violation(fleet, rule):
    id = await fleet.certificate("a.example")
    await rule("AllowedDomains", "Warning")
    path = f"/api/v1/certificates/{id}"
    await fleet.people.put(path, json={"environment": "x"})
    [before] = await PolicyViolation.select()
    await fleet.people.put("/api/v1/policies/pr-AllowedDomains", json={"severity": "Error"})
    await fleet.people.put(path, json={"sans": ["b.example"]})
    [after] = await PolicyViolation.select()
    assert (before["severity"], before["message"]) == ("Warning", "a.example lies outside of the allowed domains")
    assert (after["severity"], after["message"]) == ("Error", "b.example lies outside of the allowed domains")
    assert (after["id"], await Notification.count()) == (before["id"], 1)


async def test_what_is_archived_breaks_nothing(fleet, rule):
    id = await fleet.certificate("a.example")
    await rule("AllowedIssuers")
    await fleet.people.put(f"/api/v1/certificates/{id}", json={"environment": "x"})
    assert await open_ones(id) == ["pr-AllowedIssuers"]
    assert (await fleet.people.delete(f"/api/v1/certificates/{id}")).status_code == 204
    assert await open_ones(id) == []


async def test_an_agents_csr_that_would_begin_an_order_is_refused(fleet, rule):
    machine = await fleet.machine("a")
    id = await fleet.served(machine)
    await rule("AllowedIssuers")
    answer = await machine.csr(id, "a.example")
    assert answer.status_code == 400
    assert "iss-local" in fields(answer)["issuer_id"]


async def test_a_cancelled_order_is_not_made_again_against_a_policy(fleet, rule):
    id = await fleet.certificate("a.example")
    [job] = await fleet.jobs(id)
    await fleet.post(f"jobs/{job['id']}/cancel")
    await rule("AllowedIssuers")
    answer = await fleet.post(f"jobs/{job['id']}/retry")
    assert answer.status_code == 409
    assert "rule AllowedIssuers" in answer.json()["message"]


async def test_a_deleted_rule_takes_its_violations_along_whatever_happens_meanwhile(fleet, rule):
    ids = [await fleet.certificate(f"{n}.example") for n in range(6)]
    for turn in range(5):
        made = await rule("AllowedIssuers", "Warning")
        changes = [fleet.people.put(f"/api/v1/certificates/{id}", json={"environment": f"x{turn}"}) for id in ids]
        answers = await asyncio.gather(*changes[:3], fleet.people.delete(f"/api/v1/policies/{made}"), *changes[3:])
        assert [answer.status_code for answer in answers] == [200, 200, 200, 204, 200, 200, 200]
        assert await PolicyViolation.count() == 0


async def test_one_breach_seen_by_many_at_once_is_one_violation(fleet, rule):
    id = await fleet.certificate("a.example")
    await rule("AllowedIssuers", "Warning")
    await asyncio.gather(*(review([id], SYSTEM) for _ in range(8)))
    assert await PolicyViolation.count() == 1
    assert len(await actions(id, "policy_violation_detected")) == 1
