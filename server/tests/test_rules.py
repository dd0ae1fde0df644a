import json

import pytest
from certctl_server.audit.tables import AuditEvent
from certctl_server.rules.profiles import of_row
from certctl_server.rules.tables import CertificateProfile

PROFILES, POLICIES = "/api/v1/profiles", "/api/v1/renewal-policies"


async def test_a_profile_without_wishes_has_the_defaults(client):
    made = (await client.post(PROFILES, json={"name": "web"})).json()
    assert made.pop("id").startswith("prof-")
    assert made.pop("created_at") == made.pop("updated_at")
    assert made == {
        "name": "web",
        "description": "",
        "allowed_key_algorithms": [
            {"algorithm": "ECDSA", "min_size": 256},
            {"algorithm": "RSA", "min_size": 2048},
        ],
        "max_ttl_seconds": 0,
        "allowed_ekus": ["serverAuth"],
        "required_san_patterns": [],
        "spiffe_uri_pattern": "",
        "allow_short_lived": False,
        "no_rev_avail": False,
        "include_common_name": True,
        "requires_approval": False,
        "enabled": True,
    }


async def test_algorithms_may_be_named_alone_and_life_given_in_hours(client):
    body = {
        "name": "x",
        "allowed_key_algorithms": ["ecdsa", "Ed25519", {"algorithm": "rsa", "min_size": 3072}],
        "allowed_ekus": ["CLIENTAUTH"],
        "max_ttl_hours": 24,
    }
    made = (await client.post(PROFILES, json=body)).json()
    assert made["allowed_key_algorithms"] == [
        {"algorithm": "ECDSA", "min_size": 256},
        {"algorithm": "Ed25519", "min_size": 256},
        {"algorithm": "RSA", "min_size": 3072},
    ]
    assert (made["max_ttl_seconds"], made["allowed_ekus"]) == (86400, ["clientAuth"])


async def test_short_lived_certificates_have_no_revocation_unless_told_otherwise(client):
    short = {"allow_short_lived": True, "max_ttl_seconds": 600}
    made = (await client.post(PROFILES, json={"name": "a", **short})).json()
    assert made["no_rev_avail"] is True
    made = (await client.post(PROFILES, json={"name": "b", **short, "no_rev_avail": False})).json()
    assert made["no_rev_avail"] is False


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"allowed_key_algorithms": []}, ["allowed_key_algorithms"]),
        ({"allowed_key_algorithms": ["DSA"]}, ["allowed_key_algorithms[0]"]),
        ({"allowed_key_algorithms": [{"algorithm": "RSA", "min_size": 1024}]}, ["allowed_key_algorithms"]),
        ({"allowed_key_algorithms": [{"algorithm": "ECDSA", "min_size": 300}]}, ["allowed_key_algorithms"]),
        ({"allowed_ekus": ["serverAuth", "flying"]}, ["allowed_ekus[1]"]),
        ({"max_ttl_seconds": -1, "enabled": "yes"}, ["max_ttl_seconds", "enabled"]),
        ({"allow_short_lived": True}, ["allow_short_lived"]),
        ({"allow_short_lived": True, "max_ttl_seconds": 3600}, ["allow_short_lived"]),
        ({"required_san_patterns": ["("]}, ["required_san_patterns"]),
        ({"spiffe_uri_pattern": "["}, ["spiffe_uri_pattern"]),
    ],
)
async def test_a_profile_that_makes_no_sense_is_refused(client, body, fields):
    answer = await client.post(PROFILES, json={"name": "x", **body})
    assert answer.status_code == 400, answer.text
    assert [each["field"] for each in answer.json()["details"]] == fields


async def test_a_change_is_judged_with_what_was_there(client):
    made = (await client.post(PROFILES, json={"name": "x", "max_ttl_seconds": 600})).json()
    path = f"{PROFILES}/{made['id']}"
    assert (await client.put(path, json={"allow_short_lived": True})).json()["allow_short_lived"] is True
    answer = await client.put(path, json={"max_ttl_seconds": 7200})
    assert [each["field"] for each in answer.json()["details"]] == ["allow_short_lived"]
    changed = (await client.put(path, json={"max_ttl_hours": 2, "allow_short_lived": False})).json()
    assert changed["max_ttl_seconds"] == 7200


async def test_a_profile_can_be_put_back_and_is_read_by_the_rules(client):
    made = (await client.post(PROFILES, json={"name": "x", "required_san_patterns": [r"[a-z]+\.example\.com"]})).json()
    again = (await client.put(f"{PROFILES}/{made['id']}", json=made)).json()
    assert again == {**made, "updated_at": again["updated_at"]}
    profile = of_row(await CertificateProfile.select().first())
    assert profile.required_san_patterns == (r"[a-z]+\.example\.com",)


async def test_profiles_have_the_originals_words_in_the_audit_trail(client):
    made = (await client.post(PROFILES, json={"name": "x"})).json()
    await client.put(f"{PROFILES}/{made['id']}", json={"enabled": False})
    assert (await client.get(PROFILES, params={"enabled": "false"})).json()["total"] == 1
    assert (await client.get(PROFILES, params={"enabled": "true"})).json()["total"] == 0
    await client.delete(f"{PROFILES}/{made['id']}")
    rows = await AuditEvent.select(AuditEvent.action).where(AuditEvent.resource_id == made["id"])
    assert [row["action"] for row in rows] == ["create_profile", "update_profile", "delete_profile"]


async def test_a_renewal_policy_without_wishes_has_the_defaults(client):
    made = (await client.post(POLICIES, json={"name": "std"})).json()
    assert made.pop("id").startswith("rp-")
    del made["created_at"], made["updated_at"]
    assert made == {
        "name": "std",
        "renewal_window_days": 30,
        "auto_renew": True,
        "max_retries": 3,
        "retry_interval_seconds": 3600,
        "alert_thresholds_days": [30, 14, 7, 0],
        "requires_approval": False,
    }


async def test_thresholds_are_kept_sorted_and_once(client):
    made = (await client.post(POLICIES, json={"name": "x", "alert_thresholds_days": [0, 7, 30, 7]})).json()
    assert made["alert_thresholds_days"] == [30, 7, 0]
    changed = (await client.put(f"{POLICIES}/{made['id']}", json={"alert_thresholds_days": []})).json()
    assert changed["alert_thresholds_days"] == []


async def test_windows_and_rollouts_are_kept_as_given(client):
    window = {"days": ["sat", "sun"], "start": "22:00", "end": "04:00", "timezone": "Europe/Berlin"}
    rollout = {"waves": [5, 50, 100], "soak_seconds": 600, "max_failures": 1}
    made = (await client.post(POLICIES, json={"name": "x", "maintenance_windows": [window], "rollout": rollout})).json()
    assert (made["maintenance_windows"], made["rollout"]) == ([window], rollout)
    path = f"{POLICIES}/{made['id']}"
    again = (await client.put(path, json=made)).json()
    assert again == {**made, "updated_at": again["updated_at"]}
    cleared = (await client.put(path, json={"maintenance_windows": [], "rollout": None})).json()
    assert not {"maintenance_windows", "rollout"} & cleared.keys()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"renewal_window_days": 0}, ["renewal_window_days"]),
        ({"renewal_window_days": 366}, ["renewal_window_days"]),
        ({"max_retries": 11}, ["max_retries"]),
        ({"retry_interval_seconds": 59}, ["retry_interval_seconds"]),
        ({"retry_interval_seconds": 86401}, ["retry_interval_seconds"]),
        ({"alert_thresholds_days": [30, 366, -1]}, ["alert_thresholds_days[1]", "alert_thresholds_days[2]"]),
        ({"certificate_profile_id": "prof-none"}, ["certificate_profile_id"]),
        ({"rollout": {"waves": [50, 50, 100]}}, ["rollout.waves"]),
        ({"rollout": {"waves": [50]}}, ["rollout.waves"]),
        ({"rollout": {"waves": [0, 100]}}, ["rollout.waves[0]"]),
    ],
)
async def test_a_policy_outside_its_limits_is_refused(client, body, fields):
    answer = await client.post(POLICIES, json={"name": "x", **body})
    assert answer.status_code == 400, answer.text
    assert [each["field"] for each in answer.json()["details"]] == fields


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"start": "24:00"}, "start"),
        ({"days": []}, "days"),
        ({"days": ["someday"]}, "days[0]"),
    ],
    ids=str,
)
async def test_a_window_that_is_no_window_is_refused(client, change, field):
    window = {"days": ["mon"], "start": "22:00", "end": "04:00", "timezone": "UTC", **change}
    answer = await client.post(POLICIES, json={"name": "x", "maintenance_windows": [window]})
    assert [each["field"] for each in answer.json()["details"]] == [f"maintenance_windows[0].{field}"]


async def test_every_fault_of_every_window_is_told_at_once(client):
    good = {"days": ["mon"], "start": "22:00", "end": "04:00", "timezone": "Europe/Berlin"}
    given = [
        good,
        {"days": ["mon", "someday"], "start": "24:00", "end": "4:00", "timezone": "Mars/Olympus"},
        {"start": "22:00", "end": "04:00", "timezone": "localtime"},
    ]
    answer = await client.post(POLICIES, json={"name": "x", "max_retries": 11, "maintenance_windows": given})
    assert answer.status_code == 400
    assert {each["field"] for each in answer.json()["details"]} == {
        "max_retries",
        *(f"maintenance_windows[1].{name}" for name in ("days[1]", "start", "end", "timezone")),
        *(f"maintenance_windows[2].{name}" for name in ("days", "timezone")),
    }


async def test_a_profile_that_a_policy_names_stays(client):
    profile = (await client.post(PROFILES, json={"name": "x"})).json()["id"]
    policy = (await client.post(POLICIES, json={"name": "y", "certificate_profile_id": profile})).json()
    assert policy["certificate_profile_id"] == profile
    assert (await client.delete(f"{PROFILES}/{profile}")).status_code == 409
    cleared = await client.put(f"{POLICIES}/{policy['id']}", json={"certificate_profile_id": None})
    assert "certificate_profile_id" not in cleared.json()
    assert (await client.delete(f"{PROFILES}/{profile}")).status_code == 204


async def test_a_policy_speaks_of_itself_in_the_audit_trail(client):
    made = (await client.post(POLICIES, json={"name": "x"})).json()
    [row] = await AuditEvent.select().where(AuditEvent.resource_id == made["id"])
    assert (row["action"], json.loads(row["details"])) == ("renewal_policy_created", {"name": "x"})
