"""Who may call what, and on whose behalf: every route of the application, every role, own ids and those of others.

The table is written by hand: a route that is not in it, or lets in somebody else, fails here.
"""

import json

import pytest
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.auth.keys import create_key, create_token
from certctl_server.auth.roles import Role
from certctl_server.tables import TABLES
from server_flow import routes

#: An admin, an operator, a viewer, an agent, the holder of an enrolment token; "*" is for whoever comes.
LETTERS = {
    Role.ADMIN: "A",
    Role.OPERATOR: "O",
    Role.VIEWER: "V",
    Role.AGENT: "G",
    Role.ENROLMENT: "E",
    Role.ANONYMOUS: "*",
}
CRUD = {("GET", ""): "AOV", ("POST", ""): "AO"}
CRUD |= {("GET", "/{id}"): "AOV", ("PUT", "/{id}"): "AO", ("DELETE", "/{id}"): "AO"}
KINDS = ("agent-groups", "issuers", "notifiers", "owners", "profiles", "renewal-policies", "targets", "teams")
MAY = {
    **{f"{method} {kind}{rest}": may for kind in KINDS for (method, rest), may in CRUD.items()},
    "GET agent-groups/{id}/members": "AOV",
    "PUT agent-groups/{id}/members/{agent_id}": "AO",
    "DELETE agent-groups/{id}/members/{agent_id}": "AO",
    "GET agents": "AOV",
    "POST agents": "AOGE",
    "GET agents/tokens": "AO",
    "POST agents/tokens": "AO",
    "DELETE agents/tokens/{id}": "AO",
    "GET agents/{id}": "AOVG",
    "GET agents/{id}/certificates/{certificate_id}": "AOG",
    "POST agents/{id}/csr": "AOG",
    "POST agents/{id}/discoveries": "AOG",
    "POST agents/{id}/heartbeat": "AOG",
    "POST agents/{id}/jobs/{job_id}/status": "AOG",
    "POST agents/{id}/rotate-key": "AOG",
    "GET agents/{id}/work": "AOG",
    "GET audit": "AOV",
    "GET audit/{id}": "AOV",
    "GET auth/check": "AOVG",
    "GET auth/info": "*",
    "GET auth/keys": "A",
    "POST auth/keys": "A",
    "DELETE auth/keys/{id}": "A",
    "POST auth/keys/{id}/rotate": "AOV",
    "POST auth/login": "*",
    "POST auth/logout": "AOV",
    "GET auth/me": "AOVG",
    "GET certificates": "AOV",
    "POST certificates": "AO",
    "GET certificates/{id}": "AOV",
    "PUT certificates/{id}": "AO",
    "DELETE certificates/{id}": "AO",
    "POST certificates/{id}/deploy": "AO",
    "GET certificates/{id}/deployments": "AOV",
    "POST certificates/{id}/renew": "AO",
    "POST certificates/{id}/revoke": "AO",
    "GET certificates/{id}/versions": "AOV",
    "GET connectors": "AOV",
    "GET discovered-certificates": "AOV",
    "GET discovered-certificates/{id}": "AOV",
    "POST discovered-certificates/{id}/claim": "AO",
    "POST discovered-certificates/{id}/dismiss": "AO",
    "GET discovery-scans": "AOV",
    "GET discovery-summary": "AOV",
    "GET health": "*",
    "POST issuers/{id}/test": "AO",
    "GET jobs": "AOV",
    "POST jobs/bulk-retry": "AO",
    "GET jobs/{id}": "AOV",
    "POST jobs/{id}/approve": "AO",
    "POST jobs/{id}/cancel": "AO",
    "POST jobs/{id}/reject": "AO",
    "POST jobs/{id}/retry": "AO",
    "GET jobs/{id}/verification": "AOV",
    "POST jobs/{id}/verify": "AOG",
    "GET metrics": "AOV",
    "GET metrics/prometheus": "AOV",
    "GET notifications": "AOV",
    "GET notifications/{id}": "AOV",
    "POST notifications/{id}/read": "AO",
    "POST notifiers/{id}/test": "AO",
    "POST targets/{id}/test": "AO",
    "GET version": "*",
}
#: What an agent is answered on its own things, and on those of another; both with a body that fits.
OF_AGENTS = {
    "POST agents": (200, 409),
    "GET agents/{id}": (200, 404),
    "GET agents/{id}/certificates/{certificate_id}": (200, 404),
    "POST agents/{id}/csr": (202, 404),
    "POST agents/{id}/discoveries": (202, 404),
    "POST agents/{id}/heartbeat": (200, 404),
    "POST agents/{id}/jobs/{job_id}/status": (200, 404),
    "POST agents/{id}/rotate-key": (200, 404),
    "GET agents/{id}/work": (200, 404),
    "GET auth/check": (200, 200),
    "GET auth/me": (200, 200),
    "POST jobs/{id}/verify": (200, 404),
}
#: What changes by itself, or says who called.
MOVING = {"audit_event", "audit_checkpoint", "api_key", "lane", "lease", "loop_beat", "setting"}
CANARY = "canary-of-b"


def name_of(route):
    """The route as the tables have it."""
    return f"{route.method} {route.path.removeprefix('/api/v1/')}"


ROUTES = {name_of(route): route for route in routes()}


def test_the_table_has_every_route_and_no_other():
    assert sorted(ROUTES) == sorted(MAY)
    assert {name for name, may in MAY.items() if "G" in may} == OF_AGENTS.keys()


def may_call(role, name):
    return LETTERS[role] in MAY[name] or "*" in MAY[name]


@pytest.fixture
async def keys(ctx):
    """A secret of every role."""
    now = ctx.clock()
    times = {"registered_at": now, "created_at": now, "updated_at": now}
    await Agent.insert(Agent(id="ag", name="ag", hostname="h", **times))
    found = {role: (await create_key(role, role))[1] for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER)}
    found[Role.AGENT] = (await create_key("ag", Role.AGENT, agent_id="ag"))[1]
    found[Role.ENROLMENT] = (await create_token(max_uses=100))[1]
    return found | {Role.ANONYMOUS: None}


def refused(answer):
    """Whether it was no matter of what was asked, but of who asked."""
    return answer.status_code == 401 or (answer.status_code == 403 and "not for the role" in answer.text)


@pytest.mark.parametrize("role", LETTERS)
async def test_a_role_may_call_what_the_table_says_and_nothing_else(connect, keys, role):
    wrong = []
    async with connect(keys[role]) as caller:
        for name, route in ROUTES.items():
            # Without a key in it a login is refused for another reason.
            content = b'{"key": 7}' if name == "POST auth/login" else b""
            answer = await caller.request(route.method, route.at(), content=content)
            if refused(answer) == may_call(role, name) or answer.status_code >= 500:
                wrong.append(f"{name}: {answer.status_code} {answer.text}")
    assert wrong == []


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


def bodies(machine, item):
    """What makes sense to send, by route."""
    return {
        "POST agents": {"id": machine.id, "name": machine.id, "hostname": "new.example"},
        "POST agents/{id}/csr": {
            "csr_pem": machine.keys[item["certificate_id"]],
            "certificate_id": item["certificate_id"],
        },
        "POST agents/{id}/jobs/{job_id}/status": {"status": "Running"},
        "POST jobs/{id}/verify": {
            "target_id": item["target_id"],
            "expected_fingerprint": item["expected_fingerprint"],
            "actual_fingerprint": item["expected_fingerprint"],
            "verified": True,
        },
    }


def ids(name, machine, item):
    """What the path's parameters are."""
    found = {"certificate_id": item["certificate_id"], "job_id": item["id"], "agent_id": machine.id}
    first = name.partition(" ")[2].partition("/")[0]
    by_kind = {"agents": machine.id, "jobs": item["id"], "certificates": item["certificate_id"]}
    return found | {"id": by_kind.get(first, item.get("target_id"))}


async def kept():
    """Every row of every table that changes by calls alone."""
    tables = [table._meta.tablename for table in TABLES]
    rows = {table: await db.fetch(db.Sql(f"SELECT * FROM {table}")) for table in tables if table not in MOVING}
    return {table: sorted(str(dict(row)) for row in found) for table, found in rows.items()}


async def test_an_agent_gets_its_own_and_neither_sees_nor_moves_what_is_anothers(two):
    (machine, own), (other, foreign) = two["a"], two["b"]
    before, answers = await kept(), {}
    for name, route in ROUTES.items():
        body = bodies(other, foreign).get(name, {})
        path = route.at(**ids(name, other, foreign))
        content = {} if route.method == "GET" else {"content": json.dumps(body)}
        answers[name] = await machine.http.request(route.method, path, **content)
    for path in (f"certificates/{foreign['certificate_id']}", f"jobs/{foreign['id']}/status"):
        method = "GET" if path.startswith("cert") else "POST"
        answers[path] = await machine.http.request(method, f"{machine.path}/{path}", content=b'{"status": "Running"}')
        assert answers[path].status_code == 404
    assert await kept() == before
    codes = {name: answers[name].status_code for name in ROUTES if "*" not in MAY[name]}
    assert codes == {name: OF_AGENTS.get(name, (0, 403))[1] for name in codes}
    assert [name for name, answer in answers.items() if CANARY in answer.text + str(answer.headers)] == []
    got = {}
    for name in OF_AGENTS:
        route, body = ROUTES[name], bodies(machine, own).get(name, {})
        content = {} if route.method == "GET" else {"content": json.dumps(body)}
        answer = await machine.http.request(route.method, route.at(**ids(name, machine, own)), **content)
        got[name] = answer.status_code
        assert CANARY not in answer.text
    assert got == {name: codes[0] for name, codes in OF_AGENTS.items()}


async def test_a_job_of_its_own_is_not_verified_at_anothers_target(two):
    (machine, own), (_, foreign) = two["a"], two["b"]
    body = bodies(machine, own)["POST jobs/{id}/verify"] | {"target_id": foreign["target_id"]}
    answer = await machine.http.post(f"/api/v1/jobs/{own['id']}/verify", json=body)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "target_id")


async def test_a_report_counts_for_the_agent_of_the_path_whoever_it_names(two, fleet):
    machine, _ = two["a"]
    answer = await machine.http.post(f"{machine.path}/discoveries", json={"agent_id": "ag-b", "directories": ["/x"]})
    assert (answer.status_code, answer.json()["agent_id"]) == (202, "ag-a")
    assert (await fleet.get("discovery-scans?agent_id=ag-b"))["total"] == 1
