import pytest
from certctl_server.agents.matching import agent_keys
from certctl_server.agents.tables import Agent
from certctl_server.audit.tables import AuditEvent

GROUPS = "/api/v1/agent-groups"
AGENTS = {
    "linux": {"os": "Linux", "architecture": "AMD64", "ip_address": "10.1.2.3", "version": "2.0.0"},
    "arm": {"os": "linux", "architecture": "arm64", "ip_address": "10.2.0.1", "version": "v2.10.1"},
    "six": {"os": "freebsd", "architecture": "amd64", "ip_address": "2001:db8::7", "version": "3.0.0-rc.1"},
    "mute": {"os": "", "architecture": "", "ip_address": "not known", "version": "dev"},
}


@pytest.fixture
async def agents(client):
    for id, said in AGENTS.items():
        body = {"id": id, "name": id, "hostname": f"{id}.example", **said}
        assert (await client.post("/api/v1/agents", json=body)).status_code == 201
    return client


async def members(client, **criteria):
    made = await client.post(GROUPS, json={"name": "g", **criteria})
    assert made.status_code == 201, made.text
    found = (await client.get(f"{GROUPS}/{made.json()['id']}/members", params={"sort": "name"})).json()
    assert made.json()["member_count"] == found["total"] == len(found["data"])
    return [row["id"] for row in found["data"]]


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({}, []),
        ({"match_os": "LINUX"}, ["arm", "linux"]),
        ({"os_match": "linux", "architecture_match": "amd64"}, ["linux"]),
        ({"match_ip_cidr": "10.0.0.0/8"}, ["arm", "linux"]),
        ({"match_ip_cidr": "10.1.0.0/16"}, ["linux"]),
        ({"ip_cidr_match": "2001:db8::/32"}, ["six"]),
        ({"match_ip_cidr": "::/0"}, ["six"]),
        ({"match_ip_cidr": "0.0.0.0/0"}, ["arm", "linux"]),
        ({"version_match": ">=2.0.0, <3.0.0"}, ["arm", "linux", "six"]),
        ({"match_version": ">2.0"}, ["arm", "six"]),
        ({"match_version": "2.0"}, ["linux"]),
        ({"match_version": ">=2, !=2.10.1, <=3"}, ["linux", "six"]),
        ({"match_version": ">=3.0.0"}, []),
        ({"match_os": "linux", "enabled": False}, []),
        ({"match_version": " "}, []),
        ({"match_version": " ", "match_os": " linux ", "match_ip_cidr": " "}, ["arm", "linux"]),
    ],
    ids=str,
)
async def test_members_are_those_that_fit_every_criterion(agents, criteria, expected):
    assert await members(agents, **criteria) == expected


async def test_a_person_adds_agents_and_keeps_others_out(agents):
    group = (await agents.post(GROUPS, json={"id": "g", "name": "g", "match_os": "linux"})).json()
    path = f"{GROUPS}/{group['id']}/members"
    put = await agents.put(f"{path}/mute", json={"membership_type": "Include"})
    assert (put.status_code, put.json()["membership_type"]) == (200, "include")
    await agents.put(f"{path}/arm", json={"membership_type": "exclude"})
    rows = (await agents.get(path, params={"sort": "name", "fields": "id,membership_type"})).json()["data"]
    assert rows == [{"id": "linux", "membership_type": "dynamic"}, {"id": "mute", "membership_type": "include"}]
    assert (await agents.delete(f"{path}/arm")).status_code == 204
    assert (await agents.delete(f"{path}/arm")).status_code == 404
    assert (await agents.get(f"{GROUPS}/g")).json()["member_count"] == 3
    await agents.put(f"{GROUPS}/g", json={"enabled": False})
    assert [row["id"] for row in (await agents.get(path)).json()["data"]] == ["mute"]
    told = await AuditEvent.count().where(AuditEvent.action == "update_agent_group")
    assert told == 4


async def test_what_an_agent_says_later_counts_at_once(fleet):
    machine = await fleet.machine("ag-1")
    await fleet.post("agent-groups", id="g", name="g", match_version=">=2", match_os="linux")
    assert (await fleet.get("agent-groups/g"))["member_count"] == 0
    await machine.beat(version="2.1", os="Linux")
    assert (await fleet.get("agent-groups/g"))["member_count"] == 1
    await machine.beat(version="1.9")
    assert (await fleet.get("agent-groups/g"))["member_count"] == 0


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"match_ip_cidr": "10.0.0.1"}, ["match_ip_cidr"]),
        ({"match_ip_cidr": "10.0.0.0/33", "match_version": "about 3"}, ["match_ip_cidr", "match_version"]),
        ({"match_version": ">3, <2"}, ["match_version"]),
        ({"match_version": ">=1,"}, ["match_version"]),
        ({"max_concurrent_deployments": 0, "name": ""}, ["name", "max_concurrent_deployments"]),
        ({"match_os": 5, "enabled": "yes"}, ["match_os", "enabled"]),
    ],
    ids=str,
)
async def test_criteria_that_say_nothing_are_refused_with_every_fault(client, body, fields):
    answer = await client.post(GROUPS, json={"name": "g", **body})
    assert (answer.status_code, [each["field"] for each in answer.json()["details"]]) == (400, fields)


async def test_a_group_is_listed_changed_and_deleted_like_other_reference_data(client):
    made = (await client.post(GROUPS, json={"name": "edge", "max_concurrent_deployments": 3})).json()
    assert (made["id"][:3], made["max_concurrent_deployments"], made["member_count"]) == ("ag-", 3, 0)
    assert not {name for name in made if name.endswith(("_key", "_from", "_until", "_not"))}
    changed = (await client.put(f"{GROUPS}/{made['id']}", json={**made, "max_concurrent_deployments": None})).json()
    assert "max_concurrent_deployments" not in changed
    assert (await client.put(f"{GROUPS}/{made['id']}", json={"match_ip_cidr": "x/y"})).status_code == 400
    assert (await client.get(GROUPS, params={"enabled": "true", "sort": "-name"})).json()["data"] == [changed]
    assert (await client.post(GROUPS, json={"name": "edge"})).status_code == 409
    assert (await client.delete(f"{GROUPS}/{made['id']}")).status_code == 204
    actions = await AuditEvent.select(AuditEvent.action).where(AuditEvent.resource_type == "agent_group")
    assert [row["action"] for row in actions] == ["create_agent_group", "update_agent_group", "delete_agent_group"]


async def test_a_group_that_a_policy_names_stays(client):
    await client.post(GROUPS, json={"id": "g", "name": "g"})
    policies = "/api/v1/renewal-policies"
    assert (await client.post(policies, json={"name": "p", "agent_group_id": "none"})).status_code == 400
    made = (await client.post(policies, json={"name": "p", "agent_group_id": "g"})).json()
    assert made["agent_group_id"] == "g"
    assert (await client.delete(f"{GROUPS}/g")).status_code == 409
    assert "agent_group_id" not in (await client.put(f"{policies}/{made['id']}", json={"agent_group_id": None})).json()
    await client.put(f"{GROUPS}/g", json={"description": "still there"})
    assert (await client.delete(f"{GROUPS}/g")).status_code == 204


async def test_what_is_not_there_is_404(agents):
    await agents.post(GROUPS, json={"id": "g", "name": "g"})
    body = {"membership_type": "include"}
    assert (await agents.get(f"{GROUPS}/none/members")).status_code == 404
    assert (await agents.put(f"{GROUPS}/none/members/arm", json=body)).status_code == 404
    assert (await agents.put(f"{GROUPS}/g/members/none", json=body)).status_code == 404
    assert (await agents.put(f"{GROUPS}/g/members/arm", json={})).status_code == 400


@pytest.mark.parametrize(
    "ordered",
    ["1.0.dev1 1.0a1 1.0a2.dev1 1.0a2 1.0b1 1.0rc1 1.0 1.0.post1 1.0.1 1.2 1.10 v2.0.9 2.1.0-rc.1 2.1.0 1!0.1"],
)
async def test_versions_sort_by_their_keys(ordered):
    keys = [agent_keys({"os": "", "architecture": "", "ip_address": "", "version": v}) for v in ordered.split()]
    found = [each["version_key"] for each in keys]
    assert found == sorted(set(found))


async def test_an_agent_without_keys_gets_them_with_its_next_heartbeat(fleet):
    machine = await fleet.machine("ag-1")
    await machine.beat(os="linux")
    await Agent.update(os_key="", version_key=None).where(Agent.id == "ag-1")
    await machine.beat()
    assert (await Agent.select(Agent.os_key).first())["os_key"] == "linux"
