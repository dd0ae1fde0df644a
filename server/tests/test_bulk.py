import asyncio
import json
import runpy
from pathlib import Path

import pytest
from certctl_server import bulk, db
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates.tables import BlockedKey, Certificate, CertificateVersion, Revocation
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.tables import Job
from certctl_server.notices.tables import Notification
from certctl_server.people.tables import Owner
from certctl_server.policies.tables import PolicyViolation

INVENTORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "inventory.py"))
STOCK = 120
UNDER_WAY = "A renewal is under way"


@pytest.fixture
async def stock(client):
    """120 certificates of 20 owners, each Active and served somewhere."""
    for statement in INVENTORY["statements"](STOCK):
        await db.fetch(statement)


@pytest.fixture
def ask(client):
    """Call a bulk action; the totals, and the rest of the answer."""

    async def asked(verb, **body):
        answer = await client.post(f"/api/v1/certificates/bulk-{verb}", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        totals = tuple(number for name, number in found.items() if name.startswith("total_"))
        assert found["total_matched"] == sum(totals[1:])
        return totals, found

    return asked


def why(found):
    return {each["certificate_id"]: each["error"] for each in found["errors"]}


async def events(action):
    return [
        row["resource_id"]
        for row in await AuditEvent.select().where(AuditEvent.action == action).order_by(AuditEvent.number)
    ]


async def test_each_is_renewed_by_the_rules_of_one(fleet, machine, ask):
    names = ["fine", "other", "archived", "revoked", "open", "barred"]
    ids = {name: await fleet.certificate(f"{name}.example", targets=["tgt"]) for name in names}
    await machine.answer_orders()
    await machine.deploy_all()
    assert (await fleet.people.delete(f"/api/v1/certificates/{ids['archived']}")).status_code == 204
    assert (await fleet.post(f"certificates/{ids['revoked']}/revoke")).status_code == 200
    assert (await fleet.post(f"certificates/{ids['open']}/renew")).status_code == 202
    off = Issuer(id="iss-off", name="off", type="GenericCA", enabled=False, created_at=db.now(), updated_at=db.now())
    await Issuer.insert(off)
    await Certificate.update(issuer_id="iss-off").where(Certificate.id == ids["barred"])
    body = {"certificate_ids": [*ids.values(), "mc-none", ids["fine"]]}
    expected = {
        ids["revoked"]: "The certificate is revoked: renew it with force to replace it by one with a new key",
        ids["barred"]: "The issuer iss-off is disabled",
        "mc-none": "Certificate not found",
    }
    before = await Job.count()
    totals, found = await ask("renew", **body, dry_run=True)
    assert (totals, why(found), found["enqueued_jobs"]) == ((7, 2, 2, 3), expected, [])
    assert (await Job.count(), await events("certificates_renewed")) == (before, [])

    totals, found = await ask("renew", **body)
    assert (totals, why(found)) == ((7, 2, 2, 3), expected)
    assert found["reasons"] == {"The certificate is archived": 1, UNDER_WAY: 1, **dict.fromkeys(expected.values(), 1)}
    made = {each["certificate_id"]: each["job_id"] for each in found["enqueued_jobs"]}
    assert made.keys() == {ids["fine"], ids["other"]}
    for id, job_id in made.items():
        assert await fleet.status(id) == ("RenewalInProgress", "served")
        job = await fleet.get(f"jobs/{job_id}")
        assert (job["type"], job["status"], job["requested_by"]) == ("Renewal", "AwaitingCSR", "ada")
    assert set(await events("renewal_triggered")) == {ids["open"], *made}
    assert (await events("certificates_renewed")) == [""]
    assert set(await machine.answer_orders()) >= set(made.values())
    totals, found = await ask("renew", certificate_ids=[ids["archived"]])
    assert (totals, found["enqueued_jobs"], found["errors"]) == ((1, 0, 1, 0), [], [])


async def test_what_was_never_issued_is_ordered_anew_and_each_agent_gets_its_job(fleet, machine, ask):
    other = await fleet.machine("ag-2")
    await fleet.target("tgt-2", other)
    id = await fleet.certificate("a.example", targets=["tgt", "tgt-2"])
    for job in await fleet.jobs(id):
        await fleet.post(f"jobs/{job['id']}/cancel")
    totals, found = await ask("renew", filter={"name": "a.example"})
    assert totals == (1, 1, 0, 0)
    jobs = [await fleet.get(f"jobs/{each['job_id']}") for each in found["enqueued_jobs"]]
    assert {(job["type"], job["agent_id"]) for job in jobs} == {("Issuance", "ag-1"), ("Issuance", "ag-2")}


@pytest.mark.parametrize(
    ("selectors", "count"),
    [
        ({"owner_id": "o-1"}, 6),
        ({"owner_id": "o-1", "team_id": "t-2"}, 0),
        ({"agent_id": "ag-1"}, 1),
        ({"agent_id": "ag-1", "certificate_ids": ["mc-plenty-99", "mc-plenty-1"]}, 1),
        ({"issuer_id": "iss-plenty"}, STOCK),
        ({"profile_id": "prof-1"}, 0),
        ({"certificate_ids": [f"mc-plenty-{n}" for n in range(1, 101)], "filter": {"environment": "production"}}, 25),
        ({"filter": {"status": ["active", "Failed"]}}, STOCK),
        ({"filter": {"status": "Failed"}}, 0),
        ({"filter": {"owner_id": "o-1,o-2"}, "team_id": "t-1"}, 6),
        ({"filter": {"q": "host-11"}}, 11),
        ({"filter": {"created_before": "2000-01-01T00:00:00Z"}}, 0),
        ({"filter": {"expires_after": "2020-01-01T00:00:00Z", "updated_after": "2020-01-01T00:00:00Z"}}, STOCK),
    ],
    ids=json.dumps,
)
async def test_selectors_narrow_each_other_down(stock, ask, selectors, count):
    assert (await ask("renew", **selectors, dry_run=True))[0] == (count, count, 0, 0)
    assert (await ask("revoke", **selectors, reason="superseded", dry_run=True))[0] == (count, count, 0, 0)
    assert await Job.count().where(Job.place.is_not_null()) == 0


@pytest.mark.parametrize(
    ("verb", "body", "fields"),
    [
        ("renew", {}, ["certificate_ids"]),
        ("renew", {"dry_run": True, "owner_id": "", "filter": {}, "certificate_ids": None}, ["certificate_ids"]),
        ("renew", {"filter": {"colour": "red", "status": "Lost", "name": 5}},
         ["filter.name", "filter.colour", "filter.status"]),
        ("renew", {"filter": {"expires_before": "soon"}, "owner_id": "o-1"}, ["filter.expires_before"]),
        ("renew", {"certificate_ids": ["../x"], "issuer_id": "a b", "dry_run": 1},
         ["certificate_ids[0]", "dry_run", "issuer_id"]),
        ("renew", {"certificate_ids": ["mc"] * 10_001}, ["certificate_ids"]),
        ("revoke", {"owner_id": "o-1"}, ["reason"]),
        ("revoke", {"owner_id": "o-1", "reason": "boredom"}, ["reason"]),
        ("revoke", {"reason": "superseded"}, ["certificate_ids"]),
        ("reassign", {"filter": {"status": "Active"}}, ["owner_id"]),
        ("reassign", {"owner_id": "o-none", "team_id": "t-none"}, ["certificate_ids", "owner_id", "team_id"]),
        ("reassign", {"owner_id": "o-1", "team_id": "t-1"}, ["certificate_ids"]),
        ("reassign", {"owner_id": "o-none", "filter": {"status": 1}}, ["filter.status", "owner_id"]),
    ],
    ids=str,
)  # fmt: skip
async def test_a_request_that_says_nothing_or_nonsense_is_refused_whole(stock, client, verb, body, fields):
    answer = await client.post(f"/api/v1/certificates/bulk-{verb}", json=body)
    assert (answer.status_code, sorted(each["field"] for each in answer.json()["details"])) == (400, sorted(fields))


async def test_a_bulk_revocation_acts_on_all_of_them_in_sets(stock, ask, monkeypatch):
    monkeypatch.setattr(bulk, "SET", 7)
    monkeypatch.setattr(bulk, "PAGE", 50)
    body = {"issuer_id": "iss-plenty", "reason": "keyCompromise"}
    await Certificate.update(archived_at=db.now()).where(Certificate.id == "mc-plenty-9")
    await Certificate.update(version_id=None).where(Certificate.id == "mc-plenty-8")
    expected = (STOCK, STOCK - 2, 1, 1)
    totals, found = await ask("revoke", **body, dry_run=True)
    assert (totals, await Revocation.count()) == (expected, 0)
    totals, found = await ask("revoke", **body)
    assert (totals, why(found)) == (expected, {"mc-plenty-8": "The certificate was never issued"})
    left = await Certificate.select(Certificate.id).where(Certificate.revoked_at.is_null())
    assert {row["id"] for row in left} == {"mc-plenty-8", "mc-plenty-9"}
    revoked = Certificate.select().where(Certificate.revoked_at.is_not_null())
    facts = {(row["status"], row["revocation_reason"], row["revocation_state"]) for row in await revoked}
    assert facts == {("Revoked", "keyCompromise", "confirmed")}
    rows = await Revocation.select()
    assert (len(rows), len({row["certificate_id"] for row in rows})) == (STOCK - 2, STOCK - 2)
    assert await CertificateVersion.count().where(CertificateVersion.revoked_at.is_null()) == 2
    assert await BlockedKey.count() == STOCK - 2
    assert await Notification.count().where(Notification.type == "Revocation") == STOCK - 2
    assert len(set(await events("certificate_revoked"))) == len(await events("certificate_revoked")) == STOCK - 2
    [summary] = await AuditEvent.select().where(AuditEvent.action == "certificates_revoked")
    told = {"reason": "keyCompromise", "revoked": STOCK - 2, "skipped": 1, "failed": 1}
    assert json.loads(summary["details"]) == told
    totals, found = await ask("revoke", **body)
    assert (totals, found["reasons"]["The certificate is revoked already"]) == ((STOCK, 0, STOCK - 1, 1), STOCK - 2)


async def test_a_reason_that_a_public_ca_cannot_carry_fails_where_it_applies(stock, ask):
    public = Issuer(id="iss-public", name="public", type="ACME", created_at=db.now(), updated_at=db.now())
    await Issuer.insert(public)
    theirs = CertificateVersion.certificate_id == "mc-plenty-5"
    await CertificateVersion.update(issuer_id="iss-public").where(theirs)
    totals, found = await ask("revoke", owner_id="o-6", reason="privilegeWithdrawn")
    assert (totals, list(why(found))) == ((6, 5, 0, 1), ["mc-plenty-5"])
    assert "public CA" in why(found)["mc-plenty-5"]
    assert (await ask("revoke", owner_id="o-6", reason="superseded"))[0] == (6, 1, 5, 0)
    [job] = await Job.select().where(Job.type == "Revocation")
    assert (job["certificate_id"], job["issuer_id"]) == ("mc-plenty-5", "iss-public")


async def test_only_admins_revoke_in_bulk(stock, connect):
    _, key = await create_key("bob", Role.OPERATOR)
    async with connect(key) as operator:
        body = {"owner_id": "o-1", "reason": "superseded", "dry_run": True}
        assert (await operator.post("/api/v1/certificates/bulk-revoke", json=body)).status_code == 403
        assert (await operator.post("/api/v1/certificates/bulk-renew", json={"owner_id": "o-1"})).status_code == 200


async def test_certificates_change_hands_with_or_without_their_team(stock, ask, client):
    await Certificate.update(archived_at=db.now()).where(Certificate.id == "mc-plenty-20")
    body = {"owner_id": "o-3", "filter": {"owner_id": ["o-1", "o-3"]}}
    expected = (12, 5, 7, 0)
    assert (await ask("reassign", **body, dry_run=True))[0] == expected
    totals, found = await ask("reassign", **body)
    assert (totals, found["reasons"]) == (expected, {"It is theirs already": 6, "The certificate is archived": 1})
    theirs = (await client.get("/api/v1/certificates?owner_id=o-3&per_page=500")).json()
    assert (theirs["total"], {row["team_id"] for row in theirs["data"]}) == (11, {"t-1", "t-3"})
    assert len(await events("certificate_updated")) == 5
    assert (await ask("reassign", **body, team_id="t-9"))[0] == (12, 11, 1, 0)
    rows = await Certificate.select(Certificate.team_id).where(Certificate.owner_id == "o-3")
    assert {row["team_id"] for row in rows} == {"t-9"}


@pytest.fixture
def rule(client):
    """Makes a policy."""

    async def make(severity, config, type_="AllowedEnvironments"):
        body = {"id": f"pr-{type_}", "name": "the rule", "type": type_, "severity": severity, "config": config}
        answer = await client.post("/api/v1/policies", json=body)
        assert answer.status_code == 201, answer.text

    return make


@pytest.mark.parametrize("severity", ["Warning", "Error", "Critical"])
async def test_what_a_policy_forbids_is_not_renewed_and_a_dry_run_knows(fleet, machine, ask, rule, severity):
    environments = {"good.example": "production", "bad.example": "attic", "gone.example": "attic"}
    ids = {name: await fleet.certificate(name, environment=place) for name, place in environments.items()}
    for id in ids.values():
        for job in await fleet.jobs(id):
            await fleet.post(f"jobs/{job['id']}/cancel")
    assert (await fleet.people.delete(f"/api/v1/certificates/{ids['gone.example']}")).status_code == 204
    await rule(severity, {"allowed": ["production"]})
    before = await Job.count()
    totals, foretold = await ask("renew", certificate_ids=[*ids.values()], dry_run=True)
    assert (await Job.count(), await PolicyViolation.count()) == (before, 0)
    assert "last_error" not in await fleet.get(f"certificates/{ids['bad.example']}")

    assert (await ask("renew", certificate_ids=[*ids.values()]))[0] == totals
    [violation] = await PolicyViolation.select()
    assert (violation["certificate_id"], violation["severity"]) == (ids["bad.example"], severity)
    if severity == "Warning":
        assert (totals, foretold["errors"]) == ((3, 2, 1, 0), [])
        return
    assert totals == (3, 1, 1, 1)
    reason = "a policy does not allow it: the rule: environment attic is not allowed"
    assert why(foretold) == {ids["bad.example"]: reason}
    assert foretold["reasons"] == {reason: 1, "The certificate is archived": 1}
    assert (await fleet.get(f"certificates/{ids['bad.example']}"))["last_error"] == reason
    assert await events("renewal_triggered") == [ids["good.example"]]


async def test_a_new_owner_begins_and_ends_what_policies_say_of_owners(stock, ask, rule, client):
    now = db.now()
    await Owner.insert(Owner(id="o-unassigned", name="nobody", team_id="t-1", created_at=now, updated_at=now))
    await rule("Error", {"required_keys": ["owner_id"]}, "RequiredMetadata")
    nobody = {"owner_id": "o-unassigned", "filter": {"owner_id": "o-1"}}
    assert (await ask("reassign", **nobody, dry_run=True))[0] == (6, 6, 0, 0)
    assert await PolicyViolation.count() == 0
    assert (await ask("reassign", **nobody))[0] == (6, 6, 0, 0)
    path = "/api/v1/policies/pr-RequiredMetadata/violations"
    found = (await client.get(f"{path}?resolved=false")).json()
    assert (found["total"], {row["message"] for row in found["data"]}) == (
        6,
        {"owner_id is o-unassigned, which is nobody"},
    )
    assert len(await events("policy_violation_detected")) == 6
    await ask("reassign", owner_id="o-2", filter={"owner_id": "o-unassigned"})
    assert (await client.get(f"{path}?resolved=false")).json()["total"] == 0
    assert len(await events("policy_violation_resolved")) == 6


REFUSE_LITE = (
    "CREATE TRIGGER refused BEFORE UPDATE ON certificate WHEN new.id = '{0}' BEGIN SELECT RAISE(ABORT, 'no'); END"
)
REFUSE_PG = (
    """CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF new.id = '{0}' THEN RAISE 'no'; END IF; RETURN new; END $$""",
    "CREATE TRIGGER refused BEFORE UPDATE ON certificate FOR EACH ROW EXECUTE FUNCTION refused()",
)


async def refuse(id):
    """Let the database refuse every change of one certificate."""
    for text in (REFUSE_LITE,) if db.dialect() == "sqlite" else REFUSE_PG:
        await db.fetch(db.Sql(text.replace("{0}", id)))


async def test_what_is_done_is_told_where_a_later_set_fails(stock, ask, monkeypatch):
    monkeypatch.setattr(bulk, "SET", 50)
    ids = sorted(f"mc-plenty-{n}" for n in range(1, STOCK + 1))
    await refuse(ids[77])
    totals, found = await ask("reassign", owner_id="o-7", filter={"status": "Active"})
    already = sum(int(id.rpartition("-")[2]) % 20 == 6 for id in ids[:50])
    assert totals == (STOCK, 50 - already, already, 70)
    assert found["reasons"] == {"It is theirs already": already, bulk.BROKEN: 50, bulk.UNTRIED: 20}
    assert set(why(found)) == set(ids[50:100])
    changed = await Certificate.select(Certificate.id).where(Certificate.owner_id == "o-7")
    assert {row["id"] for row in changed} >= set(ids[:50])
    assert len(changed) == 50 + sum(int(id.rpartition("-")[2]) % 20 == 6 for id in ids[50:])
    [summary] = await AuditEvent.select().where(AuditEvent.action == "certificates_reassigned")
    assert json.loads(summary["details"])["failed"] == 70


async def test_where_nothing_was_done_a_failure_is_one(stock, client):
    await refuse("mc-plenty-1")
    body = {"owner_id": "o-7", "filter": {"status": "Active"}}
    answer = await client.post("/api/v1/certificates/bulk-reassign", json=body)
    assert answer.status_code in {409, 500}
    assert await Certificate.count().where(Certificate.owner_id == "o-7") == 6


async def test_others_write_between_two_sets(stock, ask, client, monkeypatch):
    monkeypatch.setattr(bulk, "SET", 4)
    revoking = asyncio.create_task(ask("revoke", issuer_id="iss-plenty", reason="superseded"))
    beside = 0
    while not revoking.done():
        answer = await client.post("/api/v1/teams", json={"name": f"beside {beside}"})
        assert answer.status_code == 201
        beside += not revoking.done()
        await asyncio.sleep(0.01)  # the rate limit is not what this is about
    assert (await revoking)[0] == (STOCK, STOCK, 0, 0)
    assert beside >= 3


async def test_a_certificate_that_is_revoked_meanwhile_is_revoked_once(stock, ask, client):
    body = {"issuer_id": "iss-plenty", "reason": "superseded"}
    answers = await asyncio.gather(ask("revoke", **body), ask("revoke", **body))
    assert sum(totals[1] for totals, _ in answers) == STOCK
    assert await Revocation.count() == STOCK
