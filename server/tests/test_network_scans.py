from ipaddress import ip_address

import pytest
from certctl_server.audit.tables import AuditEvent
from certctl_server.network_scans.ranges import is_dialled
from certctl_server.network_scans.tables import NetworkScanTarget
from certctl_server.settings import NetworkScan

PATH = "/api/v1/network-scan-targets"


@pytest.fixture
async def target(client):
    answer = await client.post(PATH, json={"id": "nst-1", "name": "east", "cidrs": ["192.0.2.0/24"]})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_what_is_not_said_has_its_default(target):
    assert {name: target[name] for name in target if not name.endswith("_at")} == {
        "id": "nst-1",
        "name": "east",
        "cidrs": ["192.0.2.0/24"],
        "ports": [443],
        "enabled": True,
        "scan_interval_hours": 6,
        "timeout_ms": 5000,
    }


async def test_networks_have_one_spelling_and_none_comes_twice(client):
    cidrs = ["192.0.2.77/24", "192.0.2.0/255.255.255.0", "192.0.2.7", "192.0.2.7/32", "2001:DB8::1", "2001:db8::/116"]
    body = {"name": "n", "cidrs": cidrs, "ports": [443, 8443, 443]}
    made = (await client.post(PATH, json=body)).json()
    assert made["cidrs"] == ["192.0.2.0/24", "192.0.2.7", "2001:db8::1", "2001:db8::/116"]
    assert (made["ports"], made["id"][:4]) == ([443, 8443], "nst-")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["cidrs", "name"]),
        ({"name": "n", "cidrs": []}, ["cidrs"]),
        ({"name": "n", "cidrs": ["192.0.0.0/19", "2001:db8::/115", "here", "", "fe80::1%eth0", 7]},
         [f"cidrs[{n}]" for n in range(6)]),
        ({"name": "n", "cidrs": ["192.0.2.1"], "ports": [0, 65536, "x", 443]}, [f"ports[{n}]" for n in range(3)]),
        ({"name": "n", "cidrs": ["192.0.2.1"], "ports": list(range(1, 34))}, ["ports"]),
        ({"name": "n", "cidrs": ["10.1.1.1"], "timeout_ms": 99, "scan_interval_hours": 0, "enabled": "no"},
         ["enabled", "scan_interval_hours", "timeout_ms"]),
        ({"name": "n", "cidrs": ["192.0.2.1"], "timeout_ms": 60_001}, ["timeout_ms"]),
        ({"name": "n", "cidrs": ["10.0.0.0/20"], "ports": list(range(1, 18))}, ["cidrs"]),
    ],
    ids=str,
)  # fmt: skip
async def test_every_fault_is_named_at_once(client, body, fields):
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 400, answer.text
    assert sorted(each["field"] for each in answer.json()["details"]) == sorted(fields)
    assert await NetworkScanTarget.count() == 0


async def test_the_widest_that_is_possible_is_taken(client):
    body = {"name": "n", "cidrs": ["10.0.0.0/20"], "ports": list(range(1, 17)), "timeout_ms": 60_000}
    assert (await client.post(PATH, json=body)).status_code == 201
    wide = {"name": "m", "cidrs": ["2001:db8::/116"], "ports": list(range(1, 17)), "timeout_ms": 100}
    assert (await client.post(PATH, json=wide)).status_code == 201


async def test_a_change_merges_and_is_judged_with_what_stays(client, target):
    answer = await client.put(f"{PATH}/nst-1", json={"enabled": False, "ports": None, "cidrs": ["10.0.0.0/20"]})
    found = answer.json()
    assert (answer.status_code, found["enabled"], found["ports"], found["cidrs"]) == (
        200,
        False,
        [443],
        ["10.0.0.0/20"],
    )
    answer = await client.put(f"{PATH}/nst-1", json={"ports": list(range(1, 33))})
    assert (answer.status_code, [each["field"] for each in answer.json()["details"]]) == (400, ["ports"])
    assert (await client.put(f"{PATH}/nst-1", json={"cidrs": []})).status_code == 400
    assert (await client.put(f"{PATH}/nst-1", json=found)).status_code == 200


async def test_targets_are_listed_deleted_and_told_of_in_the_trail(client, target):
    listed = (await client.get(PATH)).json()
    assert (listed["total"], listed["data"]) == (1, [target])
    assert (await client.post(PATH, json={"name": "east", "cidrs": ["192.0.2.1"]})).status_code == 409
    assert (await client.delete(f"{PATH}/nst-1")).status_code == 204
    assert (await client.get(f"{PATH}/nst-1")).status_code == 404
    trail = await AuditEvent.select().where(AuditEvent.resource_id == "nst-1").order_by(AuditEvent.number)
    assert [row["action"] for row in trail] == ["network_scan_target_created", "network_scan_target_deleted"]


async def test_nothing_is_scanned_unless_scanning_is_on(client, target):
    answer = await client.post(f"{PATH}/nst-1/scan")
    assert (answer.status_code, "CERTCTL_NETWORK_SCAN_ENABLED" in answer.json()["message"]) == (409, True)
    assert (await client.post(f"{PATH}/nst-no/scan")).status_code == 404
    assert (await client.post(f"{PATH}/nst-1/scan", content=b"[")).status_code == 400


async def test_without_a_scanner_a_scan_is_possible_only_of_nothing(client, ctx, target):
    ctx.settings = ctx.settings.model_copy(update={"network_scan": NetworkScan(enabled=True)})
    assert (await client.post(f"{PATH}/nst-1/scan", content=b"[")).status_code == 400
    assert (await client.post(f"{PATH}/nst-1/scan")).status_code == 503
    await client.put(f"{PATH}/nst-1", json={"cidrs": ["127.0.0.0/24", "169.254.0.0/20", "::1", "ff02::/116"]})
    answer = await client.post(f"{PATH}/nst-1/scan")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("10.1.2.3", True),
        ("192.0.2.1", True),
        ("2001:db8::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_some_addresses_are_never_dialled(address, dialled):
    assert is_dialled(ip_address(address)) is dialled
