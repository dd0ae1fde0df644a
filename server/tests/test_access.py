"""On whose behalf a call is made: every route, own ids and those of others, in the path and in the body.

Which roles a route is for at all, test_contract asks.
"""

import pytest
from api_table import AGENT, ANONYMOUS, SERVED
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.tables import TABLES
from contract import Contract
from server_flow import unlimited

API = "/api/v1"
OWN = f"{API}/agents/{{id}}"
VERIFY = f"POST {API}/jobs/{{id}}/verify"
KEYED = [route for route in SERVED if ANONYMOUS not in route.roles]
#: What an agent is answered on its own things, and on those of another; both with a body that fits.
OF_AGENTS = {
    f"POST {API}/agents": (200, 409),
    f"GET {OWN}": (200, 404),
    f"GET {OWN}/certificates/{{certificate_id}}": (200, 404),
    f"POST {OWN}/csr": (202, 404),
    f"POST {OWN}/discoveries": (202, 404),
    f"POST {OWN}/heartbeat": (200, 404),
    f"POST {OWN}/jobs/{{job_id}}/status": (200, 404),
    f"POST {OWN}/rotate-key": (200, 404),
    f"GET {OWN}/work": (200, 404),
    f"GET {API}/auth/check": (200, 200),
    f"GET {API}/auth/me": (200, 200),
    VERIFY: (200, 404),
}
#: What it is answered where its body refers to another's. Whose a report is, the path says alone.
REFERRING = {
    (f"POST {OWN}/csr", "certificate_id"): 404,
    (VERIFY, "target_id"): 400,
    (f"POST {OWN}/discoveries", "agent_id"): 202,
}
#: What changes by itself, or says who called.
MOVING = {"audit_event", "audit_checkpoint", "api_key", "lane", "lease", "loop_beat", "setting"}
CANARY = "canary-of-b"


@pytest.fixture
def settings(settings):
    return unlimited(settings)


@pytest.fixture
async def keys(ctx):
    """A secret of every role that is stored."""
    now = ctx.clock()
    times = {"registered_at": now, "created_at": now, "updated_at": now}
    await Agent.insert(Agent(id="ag", name="ag", hostname="h", **times))
    found = {role: (await create_key(role, role))[1] for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER)}
    return found | {Role.AGENT: (await create_key("ag", Role.AGENT, agent_id="ag"))[1]}


async def test_the_key_of_a_person_rotates_itself_and_only_an_admin_another(connect, keys):
    other, _ = await create_key("other", Role.VIEWER)
    for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER):
        async with connect(keys[role]) as caller:
            own = (await caller.get("/api/v1/auth/me")).json()["key_id"]
            codes = [(await caller.post(f"/api/v1/auth/keys/{id}/rotate")).status_code for id in (other.id, own)]
            assert codes == [200 if role is Role.ADMIN else 403, 200]


async def test_only_an_admin_and_the_agent_itself_rotate_its_key(connect, keys):
    codes = {}
    for role in (Role.OPERATOR, Role.ADMIN, Role.AGENT):
        async with connect(keys[role]) as caller:
            codes[role] = (await caller.post("/api/v1/agents/ag/rotate-key")).status_code
    assert codes == {Role.OPERATOR: 403, Role.ADMIN: 200, Role.AGENT: 200}


@pytest.fixture
async def two(fleet):
    """Two machines with a served certificate and an open deployment each; everything of b's holds the canary."""
    found = {}
    for letter, word in (("a", "plain-of-a"), ("b", CANARY)):
        machine = await fleet.machine(f"ag-{letter}")
        await machine.beat(hostname=f"{word}.example", version=word)
        target = await fleet.target(f"tgt-{letter}", machine, cert_path=f"/{word}")
        certificate = await fleet.certificate(f"{word}.example", targets=[target], id=f"mc-{letter}")
        await machine.answer_orders()
        await machine.deploy_all()
        assert (await fleet.post(f"certificates/{certificate}/deploy")).status_code == 202
        [item] = await machine.work()
        await machine.http.post(f"{machine.path}/discoveries", json={"directories": [f"/{word}"], "certificates": []})
        found[letter] = machine, item
    return found


def body_of(name, machine, item):
    """What makes sense to send."""
    return {
        f"POST {API}/agents": {"id": machine.id, "name": machine.id, "hostname": "new.example"},
        f"POST {OWN}/csr": {
            "csr_pem": machine.keys[item["certificate_id"]],
            "certificate_id": item["certificate_id"],
        },
        f"POST {OWN}/jobs/{{job_id}}/status": {"status": "Running"},
        VERIFY: {
            "target_id": item["target_id"],
            "expected_fingerprint": item["expected_fingerprint"],
            "actual_fingerprint": item["expected_fingerprint"],
            "verified": True,
        },
    }.get(name, {})


def ids(route, machine, item):
    """What the path's parameters are."""
    found = {"certificate_id": item["certificate_id"], "job_id": item["id"], "agent_id": machine.id}
    by_kind = {"agents": machine.id, "jobs": item["id"], "certificates": item["certificate_id"]}
    return found | {"id": by_kind.get(route.path.removeprefix(f"{API}/").partition("/")[0], item["target_id"])}


async def call(machine, route, places, body):
    content = {} if route.method == "GET" else {"json": body}
    return await machine.http.request(route.method, route.at(**places), **content)


async def kept():
    """Every row of every table that changes by calls alone."""
    tables = [table._meta.tablename for table in TABLES]
    rows = {table: await db.fetch(db.Sql(f"SELECT * FROM {table}")) for table in tables if table not in MOVING}
    return {table: sorted(str(dict(row)) for row in found) for table, found in rows.items()}


def test_what_an_agent_may_call_is_looked_at_here():
    assert {route.name for route in KEYED if AGENT in route.roles} == OF_AGENTS.keys()


async def test_an_agent_gets_its_own_and_neither_sees_nor_moves_what_is_anothers(two):
    (machine, own), (other, foreign) = two["a"], two["b"]
    before, answers = await kept(), {}
    for route in SERVED:
        body = body_of(route.name, other, foreign)
        answers[route.name] = await call(machine, route, ids(route, other, foreign), body)
        if route.path.startswith(OWN) and route.path.count("{") > 1:
            # At its own place, another's certificate or job.
            mixed = await call(machine, route, ids(route, other, foreign) | {"id": machine.id}, body)
            answers[f"{route.name}, mixed"] = mixed
            assert mixed.status_code == 404, route.name
    assert await kept() == before
    codes = {route.name: answers[route.name].status_code for route in KEYED}
    assert codes == {name: OF_AGENTS.get(name, (0, 403))[1] for name in codes}
    assert [name for name, answer in answers.items() if CANARY in answer.text + str(answer.headers)] == []
    assert [name for name in answers if "mixed" in name]
    got = {}
    for route in (route for route in KEYED if route.name in OF_AGENTS):
        answer = await call(machine, route, ids(route, machine, own), body_of(route.name, machine, own))
        got[route.name] = answer.status_code
        assert CANARY not in answer.text
    assert got == {name: codes[0] for name, codes in OF_AGENTS.items()}


async def test_what_an_agent_refers_to_is_its_own(two, fleet):
    (machine, own), (other, foreign) = two["a"], two["b"]
    contract = Contract(await fleet.get("openapi.json"))
    named = {route.name: route for route in KEYED if route.name in OF_AGENTS}
    assert {(name, field) for name in named for field in contract.references(name)} == REFERRING.keys()
    before = await kept()
    for (name, field), code in REFERRING.items():
        body = body_of(name, machine, own) | {field: {"agent_id": other.id, **foreign}[field]}
        answer = await call(machine, named[name], ids(named[name], machine, own), body)
        assert answer.status_code == code, (name, answer.text)
        assert CANARY not in answer.text
        assert field not in answer.json() or answer.json()[field] == machine.id
    after = await kept()
    assert {table for table in after if after[table] != before[table]} == {"discovery_scan"}
    assert (await fleet.get("discovery-scans?agent_id=ag-b"))["total"] == 1


async def test_a_csr_for_the_names_of_anothers_order_answers_nothing(two, fleet):
    (machine, _), (other, foreign) = two["a"], two["b"]
    id = foreign["certificate_id"]
    assert (await fleet.post(f"certificates/{id}/renew")).status_code == 202
    for pem in (csr_pem(f"{CANARY}.example"), other.keys[id]):
        answer = await machine.http.post(f"{machine.path}/csr", json={"csr_pem": pem})
        assert (answer.status_code, answer.json()) == (202, {"status": "csr_accepted"})
    assert [job["status"] for job in await fleet.jobs(id, type="Renewal")] == ["AwaitingCSR"]
    assert all(item["certificate_id"] != id for item in await machine.work())
