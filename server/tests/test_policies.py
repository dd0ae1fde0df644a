import json

import pytest
from certctl_server import db
from certctl_server.policies.tables import PolicyRule

PATH = "/api/v1/policies"
ISSUERS = {"name": "ours", "type": "AllowedIssuers", "config": {"allowed_issuer_ids": ["iss-local"]}}


async def made(client, **body):
    answer = await client.post(PATH, json={**ISSUERS, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_rule_without_wishes_is_a_warning_and_enabled(client):
    rule = await made(client)
    assert rule.pop("id").startswith("pr-")
    assert rule.pop("created_at") == rule.pop("updated_at")
    assert rule == {**ISSUERS, "severity": "Warning", "enabled": True}


async def test_enums_are_read_in_any_case_and_keys_by_their_other_names(client):
    more = {"type": "requiredmetadata", "severity": "CRITICAL", "config": {"required_fields": ["owner_id"]}}
    rule = await made(client, **more)
    assert (rule["type"], rule["severity"]) == ("RequiredMetadata", "Critical")
    assert rule["config"] == {"required_keys": ["owner_id"]}


async def test_a_config_may_be_left_out_where_an_empty_list_says_something(client):
    assert (await client.post(PATH, json={"name": "none", "type": "AllowedIssuers"})).json()["config"] == {}
    answer = await client.post(PATH, json={"name": "late", "type": "RenewalLeadTime"})
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "config.lead_time_days")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"name": ""}, ["name"]),
        ({"type": "CertificateLifetime"}, ["type"]),
        ({"type": "x", "severity": "Fatal", "enabled": "yes", "config": []}, ["config", "enabled", "severity", "type"]),
        ({"config": {"allowed_issuer_ids": [1], "more": 2}}, ["config.allowed_issuer_ids[0]", "config.more"]),
        (
            {"type": "AllowedDomains", "config": {"allowed_domains": ["*"], "denied_domains": ["a..b"]}},
            ["config.allowed_domains[0]", "config.denied_domains[0]"],
        ),
    ],
)
async def test_every_fault_is_told_at_once(client, body, fields):
    answer = await client.post(PATH, json={**ISSUERS, **body})
    assert answer.status_code == 400
    assert sorted(each["field"] for each in answer.json()["details"]) == fields


async def test_ids_and_names_are_taken_once(client):
    await made(client, id="pr-1")
    for same in ({"id": "pr-1", "name": "other"}, {"id": "pr-2"}):
        assert (await client.post(PATH, json={**ISSUERS, **same})).status_code == 409


async def test_a_change_merges_the_config_at_its_first_level(client):
    config = {"allowed_domains": ["*.example.com"], "denied_domains": ["x.example.com"]}
    path = f"{PATH}/{(await made(client, type='AllowedDomains', config=config))['id']}"
    changed = await client.put(path, json={"config": {"denied_domains": ["y.example.com"]}, "severity": "error"})
    assert changed.json()["config"] == {**config, "denied_domains": ["y.example.com"]}
    assert changed.json()["severity"] == "Error"
    changed = await client.put(path, json={"config": {"denied_domains": None}})
    assert changed.json()["config"] == {"allowed_domains": ["*.example.com"]}
    kept = await client.put(path, json={"enabled": False, "config": None})
    assert (kept.json()["enabled"], kept.json()["config"]) == (False, changed.json()["config"])
    refused = await client.put(path, json={"config": {"more": 1, "allowed_domains": ["*"]}})
    assert sorted(each["field"] for each in refused.json()["details"]) == ["config.allowed_domains[0]", "config.more"]
    assert (await client.get(path)).json() == kept.json()


async def test_an_alias_replaces_what_is_there_under_the_real_name(client):
    rule = await made(client, type="RequiredMetadata", config={"required_keys": ["owner_id"]})
    changed = await client.put(f"{PATH}/{rule['id']}", json={"config": {"required_fields": ["team_id"]}})
    assert changed.json()["config"] == {"required_keys": ["team_id"]}


async def test_another_type_brings_a_config_of_its_own(client):
    path = f"{PATH}/{(await made(client))['id']}"
    alone = await client.put(path, json={"type": "AllowedEnvironments"})
    assert [each["field"] for each in alone.json()["details"]] == ["config.allowed_issuer_ids"]
    changed = await client.put(path, json={"type": "AllowedEnvironments", "config": {"allowed": ["production"]}})
    assert changed.json()["config"] == {"allowed": ["production"]}


async def test_rules_are_filtered_and_sorted(client):
    await made(client, id="pr-1", name="b")
    await made(client, id="pr-2", name="a", type="AllowedEnvironments", config={}, severity="Error", enabled=False)
    for query, ids in {
        "sort=name": ["pr-2", "pr-1"],
        "sort=-severity": ["pr-1", "pr-2"],
        "type=allowedissuers": ["pr-1"],
        "type=AllowedIssuers,AllowedEnvironments": ["pr-1", "pr-2"],
        "enabled=false": ["pr-2"],
        "severity=error,critical": ["pr-2"],
    }.items():
        found = (await client.get(f"{PATH}?{query}")).json()
        assert ([each["id"] for each in found["data"]], found["total"]) == (ids, len(ids)), query
    for query in ("type=x", "severity=Fatal", "enabled=maybe", "name=a", "sort=config"):
        assert (await client.get(f"{PATH}?{query}")).status_code == 400, query


async def test_there_are_no_violations_of_what_is_no_rule(client, grounds):
    for path in (f"{PATH}/rp-default/violations", f"{PATH}/none", f"{PATH}/none/violations"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["message"]) == (404, "Policy not found")
    rule = (await made(client))["id"]
    assert (await client.get(f"{PATH}/{rule}/violations")).json()["data"] == []
    assert (await client.get(f"{PATH}/{rule}/violations?severity=x")).status_code == 400


async def test_the_audit_trail_tells_of_rules(client):
    rule = (await made(client))["id"]
    await client.put(f"{PATH}/{rule}", json={"enabled": False})
    assert (await client.delete(f"{PATH}/{rule}")).status_code == 204
    rows = await db.fetch(db.Sql("SELECT action, actor FROM audit_event WHERE resource_id = $1 ORDER BY number"), rule)
    told = [(row["action"], row["actor"]) for row in rows]
    assert told == [(f"policy_{verb}", "ada") for verb in ("created", "updated", "deleted")]


async def test_a_rule_that_this_version_cannot_read_is_shown_and_may_be_disabled(client):
    times = {"created_at": db.now(), "updated_at": db.now()}
    config = json.dumps({"max_days": 90})
    await PolicyRule.insert(PolicyRule(id="pr-x", name="x", type="CertificateLifetime", config=config, **times))
    assert (await client.get(f"{PATH}/pr-x")).json()["config"] == {"max_days": 90}
    assert (await client.put(f"{PATH}/pr-x", json={"enabled": False})).json()["enabled"] is False
