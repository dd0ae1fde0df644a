"""Every route, asked by everybody: rightly, wrongly, without a key, with one that is not for it."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
from api_table import ADMIN, AGENT, ANONYMOUS, ENROLMENT, OPERATOR, ROLES, SERVED, VIEWER
from certctl_core import plugins
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_server.auth.keys import create_key, create_token
from certctl_server.auth.roles import Role
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.doorbell import Answers, LocalDoorbell
from certctl_server.notices.tables import Notification
from certctl_server.settings import NetworkScan
from contract import ERROR, Contract
from server_flow import routes, unlimited

PEOPLE = {ADMIN: Role.ADMIN, OPERATOR: Role.OPERATOR, VIEWER: Role.VIEWER}
API = "/api/v1"
STRANGER = "a stranger"
"""With a key that is none."""
UNKNOWN = {ANONYMOUS: 401, STRANGER: 401, ENROLMENT: 401}
"""What those are told who are nobody but where a route is for them."""
FINGERPRINT = "a1" * 32
"""Of nothing that there is."""
REFUSING = ("POST", "PUT", "PATCH", "DELETE", "GET")


@dataclass
class World:
    """One installation with everybody who may call it."""

    contract: Contract
    callers: dict

    async def ask(self, who, method, path, body=None, **more):
        answer = await self.callers[who].request(method, path, json=body, **more)
        faults = self.contract.faults(method, path, answer) if answer.status_code != 405 else []
        if answer.status_code >= 400:
            said = answer.json()
            faults += (
                [] if said.keys() >= ERROR and said["request_id"] == answer.headers["X-Request-Id"] else ["envelope"]
            )
        assert faults == [], (who, method, path, body, answer.text[:500])
        return answer


@pytest.fixture
def settings(settings):
    return unlimited(settings).model_copy(update={"egress_allow": ("127.0.0.1",)})


@pytest.fixture
async def world(ctx, app, connect):
    """Everybody, with the real connectors installed."""
    ctx.plugins = plugins.load()
    callers = {ANONYMOUS: connect(), STRANGER: connect("cck_00000000_nobody")}
    callers[ENROLMENT] = connect((await create_token(max_uses=10))[1])
    for name, role in PEOPLE.items():
        callers[name] = connect((await create_key(name, role))[1])
    answer = await callers[ADMIN].post(f"{API}/agents", json={"id": "ag-1", "name": "ag-1", "hostname": "ag-1.example"})
    assert answer.status_code == 201, answer.text
    callers[AGENT] = connect(answer.json()["api_key"])
    yield World(await _contract(callers[ANONYMOUS]), callers)
    for each in callers.values():
        await each.aclose()


async def _contract(nobody):
    return Contract((await nobody.get(f"{API}/openapi.json")).json())


def body_of(route):
    """An empty object where one is read at all."""
    return {} if route.method in {"POST", "PUT"} else None


async def codes(world, routes, who, **more):
    """What each route answers."""
    return {
        route.name: (await world.ask(who, route.method, route.at(), body_of(route), **more)).status_code
        for route in routes
    }


def refused(answer):
    """Whether it was no matter of what was asked, but of who asked."""
    return answer.status_code == 401 or (answer.status_code == 403 and "not for the role" in answer.text)


@pytest.mark.parametrize("who", [*ROLES, STRANGER])
async def test_everybody_is_let_through_where_the_contract_names_them_and_nowhere_else(world, who):
    """By the guard: what only an agent may say, or only about itself, is refused by its handler."""
    wrong = {}
    for route in SERVED:
        may = (ANONYMOUS if who == STRANGER else who) in route.roles
        answer = await world.ask(who, route.method, route.at(), body_of(route))
        code = answer.status_code
        good = not refused(answer) and code not in {405, 500} if may else code == UNKNOWN.get(who, 403)
        if not good:
            wrong[route.name] = code, answer.text
    assert wrong == {}


def test_what_is_no_part_of_the_contract_is_read_by_everybody():
    """The document itself, and its viewer; a route that names no roles would be for nobody."""
    others = {route for route in routes() if route.name not in {each.name for each in SERVED}}
    assert {route.path.removeprefix(f"{API}/").partition("/")[0] for route in others} == {"openapi.json", "docs"}
    assert all(route.method == "GET" and ANONYMOUS in route.roles for route in others)


async def test_what_is_not_there_is_not_found_on_every_verb(world):
    named = [route for route in SERVED if "{" in route.path]
    assert {name: code for name, code in (await codes(world, named, ADMIN)).items() if code != 404} == {}


async def test_what_a_route_does_not_know_is_refused(world):
    strange = {"params": {"nonsense": "1"}}
    known = [route for route in SERVED if route.path not in {"/health", "/ready"}]
    found = await codes(world, known, ADMIN, **strange)
    # A list below an id that is not there: that is said first.
    nowhere = {name for name, code in found.items() if code == 404}
    assert {name.rpartition("/")[2] for name in nowhere} == {"versions", "deployments", "members", "violations"}
    assert {code for name, code in found.items() if name not in nowhere} == {400}


async def test_methods_that_a_path_lacks_are_named(world):
    paths = {}
    for route in SERVED:
        paths.setdefault(route.at(), set()).add(route.method)
    for path, methods in paths.items():
        for method in set(REFUSING) - methods:
            answer = await world.callers[ADMIN].request(method, path)
            had = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
            assert answer.status_code == 405, (method, path)
            assert answer.headers["Allow"] == ", ".join(sorted(had)), (method, path)


async def test_bodies_that_are_no_objects_or_no_json_are_refused(world):
    # Found first, read then: what an id names has to be there.
    with_body = [
        name.split(" ", 1)
        for name, operation in world.contract.operations.items()
        if "requestBody" in operation and "{" not in name
    ]
    assert len(with_body) > 10
    for method, path in with_body:
        assert (await world.ask(ADMIN, method, path, [])).status_code == 400
        assert (
            await world.ask(ADMIN, method, path, content=b"{", headers={"Content-Type": "application/json"})
        ).status_code == 400
        assert (
            await world.ask(ADMIN, method, path, content=b"x", headers={"Content-Type": "text/plain"})
        ).status_code == 415
        big = {"Content-Length": str(10**9), "Content-Type": "application/json"}
        assert (await world.ask(ADMIN, method, path, content=b"{}", headers=big)).status_code == 413


async def test_fields_of_the_wrong_type_are_all_named(world):
    for name in world.contract.operations:
        if "{" in name or not (fields := world.contract.fields(name)):
            continue
        answer = await world.ask(ADMIN, *name.split(" "), {field: [[1]] for field in fields})
        assert answer.status_code == 400, name
        told = {each["field"].split("[")[0].split(".")[0] for each in answer.json()["details"]}
        assert told == fields, name


async def test_every_parameter_of_a_list_is_taken(world):
    lists = [(name, each) for name, each in world.contract.operations.items() if "cursor" in _parameters(each)]
    assert len(lists) > 10
    for name, operation in lists:
        method, path = name.split(" ")
        path = path.replace("{id}", "ag-1")
        if "{" in name:
            continue
        for parameter, schema in _parameters(operation).items():
            ask = world.callers[ADMIN].get if parameter == "fields" else partial(world.ask, ADMIN, method)
            answer = await ask(path, params={parameter: _value(parameter, schema)})
            assert answer.status_code == 200, (name, parameter, answer.text)


def _parameters(operation):
    return {each["name"]: each["schema"] for each in operation.get("parameters", ()) if each["in"] == "query"}


def _value(name, schema):
    inner = schema.get("items", schema)
    values = inner.get("enum") or inner.get("examples")
    if schema["type"] == "array" and values:
        return ",".join(value for value in values if name != "fields" or value == "id")
    return (
        values[0]
        if values
        else {"date-time": "2030-01-31T12:00:00Z"}.get(inner.get("format"), "")
        or ("1" if inner["type"] == "integer" else "" if name == "cursor" else "x")
    )


# --- what goes well, and what the state forbids -----------------------------------------------------------------------


@pytest.fixture
async def running(world, ctx, fleet):
    """A certificate that is served, through workers of this process; the test buttons work."""
    world.callers[ADMIN] = fleet.people
    loop = ConnectorLoop()
    loop.start()
    ctx.engine = SimpleNamespace(instances=Instances(ctx, loop), doorbell=LocalDoorbell(Answers(None, None)))
    machine = await fleet.machine("ag-2")
    await fleet.served(machine, sans=("a.example",))
    world.callers[AGENT] = machine.http
    yield world
    await ctx.engine.instances.aclose()
    await loop.stop()


async def good(world, done, who, method, path, body=None, status=None):
    answer = await world.ask(who, method, f"{API}/{path}", body)
    name = world.contract.name(method, f"{API}/{path}")
    expected = status or next(route.status for route in SERVED if route.name == name)
    assert answer.status_code == expected, (name, answer.text)
    done.add(name)
    return answer.json() if answer.headers.get("content-type") == "application/json" else None


async def conflicts(world, method, path, body=None):
    answer = await world.ask(ADMIN, method, f"{API}/{path}", body)
    assert answer.status_code == 409, (method, path, answer.text)


THINGS = {
    "teams": {},
    "owners": {"team_id": "t"},
    "profiles": {},
    "renewal-policies": {},
    "policies": {"type": "RequiredMetadata", "config": {"required_keys": ["team_id"]}},
    "agent-groups": {},
    "issuers": {"type": "GenericCA"},
    "targets": {"type": "NGINX", "agent_id": "ag-2"},
    "notifiers": {"type": "Webhook"},
    "network-scan-targets": {"cidrs": ["127.0.0.1"]},
}


async def _walk_through(world, path):
    """A list by pages and by a walk, each row with chosen keys: what the document says, every time."""
    whole = (await world.ask(ADMIN, "GET", f"{API}/{path}", params={"per_page": 500})).json()
    seen, cursor = [], ""
    while cursor is not None:
        part = (await world.ask(ADMIN, "GET", f"{API}/{path}", params={"cursor": cursor, "page_size": 1})).json()
        seen += [row["id"] for row in part["data"]]
        cursor = part.get("next_cursor")
    assert sorted(seen) == sorted(row["id"] for row in whole["data"])


async def things(world, done, ctx):
    for path, body in THINGS.items():
        await good(world, done, OPERATOR, "POST", path, {"id": "x", "name": "x", **body})
        await conflicts(world, "POST", path, {"id": "x", "name": "y", **body})
        await conflicts(world, "POST", path, {"name": "x", **body}) if path != "targets" else None
        await good(world, done, VIEWER, "GET", path)
        await good(world, done, VIEWER, "GET", f"{path}/x")
        await good(world, done, OPERATOR, "PUT", f"{path}/x", {"name": "z"})
        await _walk_through(world, path)
    await good(world, done, OPERATOR, "PUT", "agent-groups/x/members/ag-2", {"membership_type": "include"})
    await good(world, done, VIEWER, "GET", "agent-groups/x/members")
    await good(world, done, OPERATOR, "DELETE", "agent-groups/x/members/ag-2")
    await good(world, done, OPERATOR, "POST", "issuers/iss-local/test")
    await good(world, done, OPERATOR, "POST", "targets/tgt-ag-2/test")
    async with HttpPeer(Reply(json={})) as peer:
        await good(world, done, OPERATOR, "PUT", "notifiers/x", {"config": {"url": peer.url}})
        await good(world, done, OPERATOR, "POST", "notifiers/x/test")
    await conflicts(world, "POST", "network-scan-targets/x/scan", {})
    ctx.settings = ctx.settings.model_copy(update={"network_scan": NetworkScan(enabled=True)})
    await good(world, done, OPERATOR, "POST", "network-scan-targets/x/scan", {}, status=200)  # nothing to scan
    for path, used in {"teams": "t", "owners": "o", "renewal-policies": "rp-default", "issuers": "iss-local"}.items():
        await conflicts(world, "DELETE", f"{path}/{used}")
    for path in THINGS:
        await good(world, done, OPERATOR, "DELETE", f"{path}/x")


async def reads(world, done):
    for path in ("connectors", "metrics", "metrics/prometheus", "discovery-summary", "agents", "agents/ag-2", "audit"):
        await good(world, done, VIEWER, "GET", path)
    for path in ("summary", "certificates-by-status", "expiration-timeline", "job-trends", "issuance-rate"):
        await good(world, done, VIEWER, "GET", f"stats/{path}")
    await good(world, done, VIEWER, "GET", "digest/preview")
    # All that is missing is a connector that sends mail.
    await good(world, done, OPERATOR, "POST", "digest/send", {}, status=503)
    for path in ("health", "auth/info", "version"):
        await good(world, done, ANONYMOUS, "GET", path)
    for path in ("auth/check", "auth/me"):
        await good(world, done, AGENT, "GET", path)
    for path in ("agents", "audit"):
        await _walk_through(world, path)
    for form in ("ndjson", "json", "csv"):
        await good(world, done, OPERATOR, "GET", f"audit/export?format={form}")
    [event, *_] = (await good(world, done, VIEWER, "GET", "audit"))["data"]
    await good(world, done, VIEWER, "GET", f"audit/{event['id']}")
    for path in ("/health", "/ready"):
        assert (await world.ask(ANONYMOUS, "GET", path)).status_code == 200
        done.add(f"GET {path}")


async def keys(world, done):
    made = await good(world, done, ADMIN, "POST", "auth/keys", {"name": "k", "role": "viewer"})
    await good(world, done, ADMIN, "GET", "auth/keys")
    new = await good(world, done, ADMIN, "POST", f"auth/keys/{made['id']}/rotate")
    await good(world, done, ADMIN, "DELETE", f"auth/keys/{new['id']}")
    token = await good(world, done, OPERATOR, "POST", "agents/tokens", {})
    await good(world, done, OPERATOR, "GET", "agents/tokens")
    await good(world, done, OPERATOR, "DELETE", f"agents/tokens/{token['id']}")
    body = {"id": "ag-9", "name": "ag-9", "hostname": "h"}
    await good(world, done, OPERATOR, "POST", "agents", body)
    await conflicts(world, "POST", "agents", body)


async def logins(world, done, connect):
    _, key = await create_key("browser", Role.VIEWER)
    world.callers["browser"] = connect()
    login = await good(world, done, "browser", "POST", "auth/login", {"key": key})
    me = await good(world, done, "browser", "GET", "auth/me")
    assert me["csrf_token"] == login["csrf_token"]
    assert (await world.ask("browser", "POST", f"{API}/auth/logout")).status_code == 403
    proof = {"X-CSRF-Token": login["csrf_token"]}
    assert (await world.ask("browser", "POST", f"{API}/auth/logout", headers=proof)).status_code == 204
    assert (await world.ask("browser", "GET", f"{API}/auth/me")).status_code == 401
    await good(world, done, VIEWER, "POST", "auth/logout")  # without a cookie there is nothing to end
    for key, told in {
        "cck_00000000_nobody": 401,
        world.callers[AGENT].headers["Authorization"].split()[1]: 403,
    }.items():
        assert (await world.ask(ANONYMOUS, "POST", f"{API}/auth/login", {"key": key})).status_code == told
    await world.callers["browser"].aclose()


async def certificates(world, done, fleet):
    order = {
        "sans": ["b.example"],
        "owner_id": "o",
        "team_id": "t",
        "issuer_id": "iss-local",
        "target_ids": ["tgt-ag-2"],
    }
    made = await good(world, done, OPERATOR, "POST", "certificates", {"name": "b", **order})
    await conflicts(world, "POST", "certificates", {"name": "b", **order})
    id = made["id"]
    await good(world, done, VIEWER, "GET", "certificates")
    await _walk_through(world, "certificates")
    await good(world, done, VIEWER, "GET", f"certificates/{id}")
    await good(world, done, OPERATOR, "PUT", f"certificates/{id}", {"tags": {"a": "b"}, "environment": "production"})
    [item] = (await good(world, done, AGENT, "GET", "agents/ag-2/work"))["jobs"]
    await agent_says(world, done, fleet, item)
    await breaches(world, done, id)
    for part in ("versions", "deployments"):
        await good(world, done, VIEWER, "GET", f"certificates/{id}/{part}")
        await _walk_through(world, f"certificates/{id}/{part}")
    await good(world, done, OPERATOR, "POST", f"certificates/{id}/deploy", {})
    await good(world, done, OPERATOR, "POST", f"certificates/{id}/renew", {})
    await conflicts(world, "POST", f"certificates/{id}/renew", {})
    await good(world, done, OPERATOR, "POST", f"certificates/{id}/revoke", {"reason": "superseded"})
    await conflicts(world, "POST", f"certificates/{id}/revoke", {})
    await good(world, done, OPERATOR, "DELETE", f"certificates/{id}")
    for verb in ("renew", "deploy", "revoke"):
        await conflicts(world, "POST", f"certificates/{id}/{verb}", {})
    await conflicts(world, "PUT", f"certificates/{id}", {"environment": "x"})


async def breaches(world, done, id):
    """A rule that a change of the certificate breaks; people are told of it where they read rules."""
    rule = {"id": "pr-env", "name": "env", "type": "AllowedEnvironments", "config": {"allowed": ["staging"]}}
    await good(world, done, OPERATOR, "POST", "policies", rule)
    await good(world, done, OPERATOR, "PUT", f"certificates/{id}", {"environment": "other"})
    [row] = (await good(world, done, VIEWER, "GET", "policies/pr-env/violations"))["data"]
    assert (row["certificate_id"], row["severity"]) == (id, "Warning")
    await _walk_through(world, "policies/pr-env/violations")
    await good(world, done, OPERATOR, "DELETE", "policies/pr-env")


async def many(world, done):
    """Bulk actions: on what is named, or matches; those that come to nothing say why."""
    order = {"owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "status": "Active"}
    made = await good(world, done, OPERATOR, "POST", "certificates", {"sans": ["m.example"], **order})
    ids = {"certificate_ids": [made["id"], "no-such"]}
    await good(world, done, OPERATOR, "POST", "owners", {"id": "o-2", "name": "o-2", "team_id": "t"})
    found = await good(world, done, OPERATOR, "POST", "certificates/bulk-reassign", {"owner_id": "o-2", **ids})
    assert (found["total_reassigned"], [each["certificate_id"] for each in found["errors"]]) == (1, ["no-such"])
    found = await good(world, done, OPERATOR, "POST", "certificates/bulk-renew", ids)
    assert [each["certificate_id"] for each in found["enqueued_jobs"]] == [made["id"]]
    chosen = {"reason": "superseded", "filter": {"common_name": "nobody.example"}}
    found = await good(world, done, ADMIN, "POST", "certificates/bulk-revoke", chosen)
    assert found["total_matched"] == 0
    for verb, more in {"renew": {}, "revoke": {"reason": "superseded"}, "reassign": {"owner_id": "o-2"}}.items():
        answer = await world.ask(ADMIN, "POST", f"{API}/certificates/bulk-{verb}", more)
        assert answer.status_code == 400


async def agent_says(world, done, fleet, item):
    """Answer the order, deploy it, and say what is served."""
    machine, own = fleet.machines["ag-2"], "agents/ag-2"
    await good(world, done, AGENT, "POST", f"{own}/heartbeat", {"version": "1.0.0"})
    machine.keys[item["certificate_id"]] = None
    assert (await machine.csr(item["certificate_id"], *item["sans"])).status_code == 202
    pem = machine.keys[item["certificate_id"]]
    body = {"csr_pem": pem, "certificate_id": item["certificate_id"]}
    await good(world, done, AGENT, "POST", f"{own}/csr", body)
    await good(world, done, AGENT, "GET", f"{own}/certificates/{item['certificate_id']}")
    [deployment] = await machine.work()
    job, said = f"jobs/{deployment['id']}", deployment["expected_fingerprint"]
    await good(world, done, AGENT, "POST", f"{own}/{job}/status", {"status": "Running"})
    proof = {"target_id": "tgt-ag-2", "expected_fingerprint": said, "actual_fingerprint": said, "verified": True}
    await good(world, done, AGENT, "POST", f"{job}/verify", proof)
    await good(world, done, AGENT, "POST", f"{own}/{job}/status", {"status": "Completed"})
    answer = await world.ask(AGENT, "POST", f"{API}/{own}/{job}/status", {"status": "Running"})
    assert answer.status_code == 409
    await good(world, done, VIEWER, "GET", f"{job}/verification")


async def jobs(world, done):
    order = {"owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "target_ids": ["tgt-ag-2"]}
    policy = {"id": "rp-ask", "name": "ask", "requires_approval": True}
    await good(world, done, OPERATOR, "POST", "renewal-policies", policy)
    asked = []
    for name in ("c.example", "d.example"):
        more = {"sans": [name], "renewal_policy_id": "rp-ask"}
        asked.append((await good(world, done, OPERATOR, "POST", "certificates", {**order, **more}))["job_id"])
    await good(world, done, ADMIN, "POST", f"jobs/{asked[0]}/approve", {"reason": "fine"})
    await conflicts(world, "POST", f"jobs/{asked[0]}/approve", {})
    await good(world, done, ADMIN, "POST", f"jobs/{asked[1]}/reject", {})
    await conflicts(world, "POST", f"jobs/{asked[1]}/reject", {})
    await good(world, done, OPERATOR, "POST", f"jobs/{asked[0]}/cancel", {})
    await conflicts(world, "POST", f"jobs/{asked[0]}/cancel", {})
    await good(world, done, OPERATOR, "POST", f"jobs/{asked[0]}/retry", {})
    await good(world, done, OPERATOR, "POST", "jobs/bulk-retry", {"filter": {"status": "Failed"}, "dry_run": True})
    await good(world, done, VIEWER, "GET", f"jobs/{asked[0]}")
    await good(world, done, VIEWER, "GET", "jobs")
    await _walk_through(world, "jobs")
    complete = (await good(world, done, VIEWER, "GET", "jobs?status=Completed"))["data"][0]["id"]
    for verb in ("cancel", "retry"):
        await conflicts(world, "POST", f"jobs/{complete}/{verb}", {})


async def found(world, done):
    report = {"certificates": [_entry("a1"), _entry("b2")], "directories": ["/etc/ssl"], "scan_duration_ms": 5}
    await good(world, done, AGENT, "POST", "agents/ag-2/discoveries", report)
    rows = (await good(world, done, VIEWER, "GET", "discovered-certificates"))["data"]
    await _walk_through(world, "discovered-certificates")
    await good(world, done, VIEWER, "GET", "discovery-scans")
    await _walk_through(world, "discovery-scans")
    one, other = (f"discovered-certificates/{row['id']}" for row in rows)
    await good(world, done, VIEWER, "GET", one)
    order = {"sans": ["e.example"], "owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "status": "Active"}
    known = (await good(world, done, OPERATOR, "POST", "certificates", order))["id"]
    await good(world, done, OPERATOR, "POST", f"{one}/claim", {"managed_certificate_id": known})
    await conflicts(world, "POST", f"{one}/dismiss", {})
    await good(world, done, OPERATOR, "POST", f"{other}/dismiss", {"reason": "old"})


CHOOSING = {f"POST {API}/{path}" for path in ("certificates/bulk-renew", "certificates/bulk-revoke", "jobs/bulk-retry")}
"""Whose ids say what to act on: one that there is not is one that comes to nothing."""


def referring(id, row):
    """Every call whose body names other things, and what else makes it whole."""
    return [
        ("POST", "owners", {"name": "n"}),
        ("PUT", "owners/o", {}),
        ("POST", "renewal-policies", {"name": "n"}),
        ("PUT", "renewal-policies/rp-default", {}),
        ("POST", "targets", {"name": "n", "type": "NGINX"}),
        ("PUT", "targets/tgt-ag-2", {}),
        ("POST", "certificates", {"sans": ["n.example"]}),
        ("PUT", f"certificates/{id}", {}),
        ("POST", f"certificates/{id}/deploy", {}),
        ("POST", "certificates/bulk-reassign", {"certificate_ids": [id]}),
        ("POST", f"discovered-certificates/{row}/claim", {"managed_certificate_id": "", "create": True}),
        ("POST", f"discovered-certificates/{row}/claim", {"owner_id": "o", "team_id": "t", "issuer_id": "iss-local"}),
    ]


async def lost(world):
    """What a body refers to has to be there; all that is not is named at once."""
    [certificate, *_] = (await world.ask(VIEWER, "GET", f"{API}/certificates?status=Active")).json()["data"]
    [row, *_] = (await world.ask(VIEWER, "GET", f"{API}/discovered-certificates?status=Dismissed")).json()["data"]
    calls = referring(certificate["id"], row["id"])
    names = {world.contract.name(method, f"{API}/{path}") for method, path, _ in calls}
    of_agents = {route.name for route in SERVED if AGENT in route.roles}
    assert {name for name in world.contract.operations if world.contract.references(name)} == (
        names | CHOOSING | {name for name in of_agents if world.contract.references(name)}
    )
    for method, path, body in calls:
        asked = world.contract.references(world.contract.name(method, f"{API}/{path}")) - body.keys()
        nothing = {name: ["no-such"] if name.endswith("s") else "no-such" for name in asked}
        answer = await world.ask(OPERATOR, method, f"{API}/{path}", body | nothing)
        assert (answer.status_code, {each["field"] for each in answer.json()["details"]}) == (400, asked), (path, body)


def _entry(pair):
    return {
        "fingerprint_sha256": pair * 32,
        "common_name": f"{pair}.example",
        "sans": [f"{pair}.example"],
        "serial_number": pair,
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00Z",
        "key_algorithm": "ECDSA",
        "key_size": 256,
        "source_path": f"/etc/ssl/{pair}.pem",
        "source_format": "PEM",
    }


async def messages(world, done, ctx):
    now = ctx.clock()
    row = {"id": "n-1", "type": "RenewalFailure", "channel": "Webhook", "occurrence": "x", "status": "sent"}
    await Notification.insert(Notification(**row, created_at=now))
    await good(world, done, VIEWER, "GET", "notifications")
    await _walk_through(world, "notifications")
    await good(world, done, VIEWER, "GET", "notifications/n-1")
    await good(world, done, OPERATOR, "POST", "notifications/n-1/read", {})


async def test_every_route_does_what_the_document_says_when_all_is_well(running, fleet, ctx, connect):
    done = set()
    await things(running, done, ctx)
    await reads(running, done)
    await certificates(running, done, fleet)
    await many(running, done)
    await jobs(running, done)
    await found(running, done)
    await lost(running)
    await messages(running, done, ctx)
    await keys(running, done)
    await logins(running, done, connect)
    await good(running, done, AGENT, "POST", "agents/ag-2/rotate-key", {})
    assert {route.name for route in SERVED} - done == set()
