import asyncio
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.agents.health import status_of
from certctl_server.agents.proof import presume
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.notices.tables import Notifier
from certctl_server.settings import Auth


async def leader():
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    await leadership.campaign()
    return leadership


async def test_a_certificate_becomes_active_when_its_target_serves_it(fleet):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    assert await fleet.status(id) == ("Pending", "none")
    await machine.answer_orders()
    assert await fleet.status(id) == ("Pending", "pending")
    [item] = await machine.deploy_all()
    assert item["target_type"] == "NGINX"
    assert await fleet.status(id) == ("Active", "served")
    assert await machine.work() == []


@pytest.fixture
async def plain(fleet):
    """An agent of the original, with a certificate in place on a target that names where to look."""
    machine = await fleet.machine("ag-old", capabilities=None)
    await fleet.target("tgt", machine, host="a.example")
    id = await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    return machine, id


async def fail_once(machine):
    [item] = await machine.work()
    await machine.verify(item, "ab" * 32)
    await machine.report(item["id"], "Running")
    assert (await machine.report(item["id"], "Completed")).status_code == 200
    return item


async def test_a_mismatch_makes_a_new_deployment_with_backoff_and_is_told_after_the_third(fleet, plain):
    machine, id = plain
    times = {"created_at": db.now(), "updated_at": db.now()}
    events = '["DeploymentFailure"]'
    await Notifier.insert(Notifier(id="nt", name="nt", type="Webhook", events=events, status="ready", **times))
    waits = []
    for turn in range(1, 4):
        first = await fail_once(machine)
        expected = "Failed" if turn == 3 else "Pending"
        assert await fleet.status(id) == (expected, "mismatch")
        job = await fleet.get(f"jobs/{first['id']}")
        assert (job["status"], job["verification_status"]) == ("Completed", "failed")
        [new] = await fleet.jobs(id, status="Pending", type="Deployment")
        waits.append((new["offer_at"] - db.now()) / timedelta(minutes=1))
        assert await machine.work() == []
        await Job.update(offer_at=db.now()).where(Job.id == new["id"])
        assert await db.fetch(db.Sql("SELECT count(*) AS n FROM notification")) == [{"n": int(turn == 3)}]
    assert [round(wait, -1 if wait > 5 else 0) for wait in waits] == [1, 10, pytest.approx(100, abs=10)]
    [item] = await machine.deploy_all()
    assert item["target_id"] == "tgt"
    assert await fleet.status(id) == ("Active", "served")


async def test_a_report_of_what_is_served_may_follow_completion(fleet, plain):
    machine, id = plain
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await machine.report(item["id"], "Completed")
    assert await fleet.status(id) == ("Pending", "pending")
    assert (await fleet.get(f"jobs/{item['id']}/verification"))["verification_status"] == "pending"
    await machine.verify(item)
    assert await fleet.status(id) == ("Active", "served")
    await machine.verify(item, "ab" * 32)
    assert await fleet.status(id) == ("RenewalInProgress", "mismatch")
    assert len(await fleet.jobs(id, type="Deployment", status="Pending")) == 1


async def test_what_nobody_looked_at_for_five_minutes_counts_as_deployed(fleet, plain):
    machine, id = plain
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await machine.report(item["id"], "Completed")
    due = await presume(await leader())
    assert due - db.now() > timedelta(minutes=4)
    assert await fleet.status(id) == ("Pending", "pending")
    await Job.update(completed_at=db.now() - timedelta(minutes=5)).where(Job.id == item["id"])
    assert await presume(await leader()) is None
    assert await fleet.status(id) == ("Active", "deployed")
    assert (await fleet.get(f"jobs/{item['id']}"))["verification_status"] == "skipped"


@pytest.mark.parametrize(
    ("capabilities", "config"), [(("verify",), {"host": "a"}), (None, {})], ids=["ours", "nowhere"]
)
async def test_where_nobody_will_look_completion_means_deployed_at_once(fleet, capabilities, config):
    machine = await fleet.machine("ag", capabilities=capabilities)
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine, **config)])
    await machine.answer_orders()
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await machine.report(item["id"], "Completed")
    assert await fleet.status(id) == ("Active", "deployed")


async def test_only_versions_with_the_newest_key_of_a_plain_agent_are_deployed_through_it(fleet, plain):
    machine, id = plain
    await fleet.post(f"certificates/{id}/renew")
    items = {item["type"]: item for item in await machine.work()}
    assert set(items) == {"Deployment", "Renewal"}
    assert (await machine.csr(id, "other.example")).status_code == 400
    await Job.update(offer_at=db.now()).where(Job.certificate_id == id, Job.place.is_not_null())
    # Its key file now fits neither the version nor, until the next CSR, any other.
    assert [item["type"] for item in await machine.work()] == ["Renewal"]
    assert (await machine.csr(id, "a.example")).json() == {"status": "csr_signed"}
    [item] = await machine.deploy_all()
    newest = (await fleet.get(f"certificates/{id}/versions"))["data"][0]
    assert item["expected_fingerprint"] == newest["fingerprint_sha256"]
    assert await fleet.status(id) == ("Active", "served")


async def test_our_agent_keeps_a_key_per_job_so_an_older_version_is_still_deployed(fleet):
    machine = await fleet.machine("ag")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    await fleet.post(f"certificates/{id}/renew")
    await machine.csr(id, "other.example")
    assert {item["type"] for item in await machine.work()} == {"Deployment", "Renewal"}


async def test_an_order_for_another_kind_of_key_waits_for_an_agent_that_can(fleet):
    machine = await fleet.machine("ag", capabilities=None)
    rules = [{"algorithm": "RSA", "min_size": 2048}, {"algorithm": "ECDSA", "min_size": 384}]
    profile = (await fleet.post("profiles", name="rsa", allowed_key_algorithms=rules)).json()["id"]
    await fleet.target("tgt", machine)
    id = await fleet.certificate("a.example", targets=["tgt"], certificate_profile_id=profile)
    assert await machine.work() == []
    [job] = await fleet.jobs(id)
    assert "P-256" in job["last_error"]
    await machine.beat(capabilities=["verify"])
    [item] = await machine.work()
    assert (item["id"], item["key_algorithm"], item["key_size"]) == (job["id"], "RSA", 2048)


async def test_an_agent_registers_once_and_refreshes_itself_with_its_own_key(fleet):
    machine = await fleet.machine("ag-1")
    body = {"id": "ag-1", "name": "ag-1", "hostname": "new.example"}
    assert (await fleet.post("agents", **body)).status_code == 409
    again = await machine.http.post("/api/v1/agents", json=body)
    assert (again.status_code, again.json()["hostname"]) == (200, "new.example")
    assert "api_key" not in again.json()
    assert (await fleet.post("agents", id="ag-2", name="ag-1", hostname="x")).status_code == 409
    other = await fleet.machine("ag-3")
    assert (await other.http.post("/api/v1/agents", json=body)).status_code == 409


@pytest.mark.parametrize("id", ["retired", "tokens", "server-scanner"])
async def test_reserved_ids_are_no_agents(client, grounds, id):
    answer = await client.post("/api/v1/agents", json={"id": id, "name": "x", "hostname": "x"})
    assert answer.status_code == 409


@pytest.mark.parametrize(
    "word",
    ["system", "Anonymous", "admin", "local", "api-key-user", "est-client", "deploy", "et-1", "key-0197"],
)
@pytest.mark.parametrize("field", ["id", "name"])
async def test_no_agent_takes_the_name_of_another_actor(ctx, client, grounds, field, word):
    ctx.settings = ctx.settings.model_copy(update={"auth": Auth(named_keys="deploy:k3y")})
    body = {"id": "ag-1", "name": "web", "hostname": "h", field: word}
    answer = await client.post("/api/v1/agents", json=body)
    assert (answer.status_code, "reserved" in answer.json()["message"]) == (409, True)


HARMFUL = ["a\x1b[2Jb", "a\u202eb", "a\nb", "a\u2066b", "a\x7f", "a\u200bb", "a\x85b"]


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
async def test_texts_of_agents_that_move_a_cursor_or_turn_text_around_are_refused(fleet, text):
    for field in ("name", "hostname", "os", "architecture", "ip_address", "version"):
        body = {"id": "ag-9", "name": "n", "hostname": "h", field: text}
        answer = await fleet.people.post("/api/v1/agents", json=body)
        assert (answer.status_code, answer.json()["details"]) == (
            400,
            [{"field": field, "message": "holds characters that do not show"}],
        )
    machine = await fleet.machine("ag-1")
    for said in ({"hostname": text}, {"version": text}, {"capabilities": [text]}, {"boot_id": text}):
        assert (await machine.http.post(f"{machine.path}/heartbeat", json=said)).status_code == 400


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
async def test_names_show_what_they_are(client, grounds, text):
    for path in ("teams", "profiles", "auth/keys"):
        answer = await client.post(f"/api/v1/{path}", json={"name": text, "role": "viewer"})
        assert answer.status_code == 400
        assert {"field": "name", "message": "holds characters that do not show"} in answer.json()["details"]
    assert (await client.post("/api/v1/teams", json={"name": "Größe 日本 \u200d!"})).status_code == 201


async def test_an_enrolment_token_registers_as_often_as_it_may_and_nothing_else(client, connect, grounds):
    token = (await client.post("/api/v1/agents/tokens", json={"name": "t", "max_uses": 2})).json()
    async with connect(token["token"]) as stranger:
        codes = []
        for n in range(3):
            body = {"id": f"ag-{n}", "name": f"n{n}", "hostname": "h"}
            codes.append((await stranger.post("/api/v1/agents", json=body)).status_code)
        assert codes == [201, 201, 401]
        assert (await stranger.get("/api/v1/agents")).status_code in {401, 403}
    listed = (await client.get("/api/v1/agents/tokens")).json()["data"]
    assert [(row["uses"], "token" in row) for row in listed] == [(2, False)]
    assert (await client.delete(f"/api/v1/agents/tokens/{token['id']}")).status_code == 204
    assert (await client.delete(f"/api/v1/agents/tokens/{token['id']}")).status_code == 404


async def test_heartbeats_at_the_same_moment_are_noted_each_for_its_agent(fleet):
    machines = [await fleet.machine(f"ag-{number}") for number in range(4)]

    def beat(machine, version):
        return machine.http.post(f"{machine.path}/heartbeat", json={"version": version, "os": machine.path[-1]})

    started = db.now()
    answers = await asyncio.gather(*(beat(machine, "2.0.0") for machine in [*machines, machines[0]]))
    assert [answer.status_code for answer in answers] == [200] * 5
    rows = await db.fetch(db.Sql("SELECT * FROM agent WHERE id LIKE 'ag-%' ORDER BY id"))
    assert [(row["version"], row["os"], row["os_key"]) for row in rows] == [("2.0.0", f"{n}", f"{n}") for n in range(4)]
    assert all(row["last_heartbeat_at"] >= started for row in rows)


async def test_empty_words_in_a_heartbeat_keep_what_is_known(fleet):
    machine = await fleet.machine("ag-1")
    await machine.beat(version="2.0", os="linux")
    await machine.beat(version="", os="")
    found = await fleet.get("agents/ag-1")
    assert (found["version"], found["os"], found["status"]) == ("2.0", "linux", "Online")
    assert found["capabilities"] == ["verify"]
    assert found["last_heartbeat"] == found["last_heartbeat_at"]
    assert "api_key_hash" not in found


async def test_a_restarted_agent_gets_back_at_once_what_its_former_run_held(fleet):
    machine = await fleet.machine("ag-1")
    await machine.beat(boot_id="one")
    first = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    await machine.answer_orders()
    [item] = await machine.work()
    await machine.report(item["id"], "Running")
    await fleet.certificate("b.example", targets=["tgt"])
    assert len(await machine.work()) == 1
    await machine.beat(boot_id="one")
    assert await machine.work() == []
    await machine.beat(boot_id="two")
    found = await machine.work()
    assert {each["type"] for each in found} == {"Deployment", "Issuance"}
    [job] = await fleet.jobs(first, type="Deployment")
    assert (job["status"], job["attempts"], job["owner"]) == ("Pending", 1, "")


NOW = db.now()


@pytest.mark.parametrize(
    ("silent", "offset", "last", "status"),
    [
        (None, None, [], "Offline"),
        (timedelta(minutes=3), None, [], "Online"),
        (timedelta(minutes=3, seconds=1), None, [], "Offline"),
        (timedelta(), 300_000, [], "Online"),
        (timedelta(), -300_001, [], "Degraded"),
        (timedelta(), 0, ["Failed", "Failed"], "Online"),
        (timedelta(), 0, ["Failed", "Failed", "Failed"], "Degraded"),
        (timedelta(), 0, ["Failed", "Completed", "Failed"], "Online"),
        (timedelta(hours=1), 0, ["Failed"] * 3, "Offline"),
    ],
)
def test_what_an_agent_is_follows_from_its_heartbeat_clock_and_last_jobs(silent, offset, last, status):
    assert status_of(None if silent is None else NOW - silent, offset, last, NOW) == status


async def test_a_key_that_was_rotated_lasts_until_the_new_one_is_used(fleet):
    machine = await fleet.machine("ag-1")
    new = (await machine.http.post(f"{machine.path}/rotate-key")).json()["api_key"]
    await machine.beat()
    async with fleet.connect(new) as http:
        assert (await http.post(f"{machine.path}/heartbeat", json={})).status_code == 200
    assert (await machine.http.post(f"{machine.path}/heartbeat", json={})).status_code == 401


async def test_the_trail_names_the_keys_of_a_rotation_and_the_id_of_a_token(fleet):
    machine = await fleet.machine("ag-1")
    await machine.http.post(f"{machine.path}/rotate-key")
    token = (await fleet.post("agents/tokens", name="t")).json()
    keys = await db.fetch(db.Sql("SELECT id, replaces FROM api_key WHERE agent_id = 'ag-1' ORDER BY created_at"))
    [rotated] = (await fleet.get("audit?action=key_rotated"))["data"]
    assert (rotated["resource_type"], rotated["resource_id"]) == ("api_key", keys[0]["id"])
    assert rotated["details"] == {"new_key": keys[1]["id"], "agent_id": "ag-1"}
    [made] = (await fleet.get("audit?action=enrolment_token_created"))["data"]
    assert (made["resource_id"], made["details"]) == (token["id"], {"name": "t", "max_uses": 1})


async def test_an_agent_sees_neither_other_agents_nor_their_work(fleet):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", one)])
    [job] = await fleet.jobs(id)
    assert (await two.http.get(f"{one.path}/work")).status_code in {403, 404}
    assert (await two.report(job["id"], "Failed")).status_code == 404
    assert (await two.csr(id, "a.example")).status_code == 404
    assert (await two.http.get(f"{two.path}/certificates/{id}")).status_code == 404
    assert await two.work() == []


async def test_each_step_that_an_agent_reports_is_in_the_trail_once(fleet, machine):
    await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [item] = [item for item in await machine.work() if item["type"] == "Deployment"]
    for status in ("Running", "Running", "Failed", "Failed"):
        await machine.report(item["id"], status, **({"error": "no room"} if status == "Failed" else {}))
    found = await fleet.get(f"audit?resource_id={item['id']}&action=job_status_reported&sort=timestamp")
    assert [(row["actor"], row["details"]) for row in found["data"]] == [
        ("ag-1", {"from": "Pending", "to": "Running"}),
        ("ag-1", {"from": "Running", "to": "Failed", "error": "no room"}),
    ]
