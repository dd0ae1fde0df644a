import json
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.x509 import read_certificate
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.issuers.tables import Issuer
from certctl_server.people.tables import Owner, Team
from certctl_server.rules.tables import RenewalPolicy
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

REPORT, FOUND = "/api/v1/agents/ag-1/discoveries", "/api/v1/discovered-certificates"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = {"created_at": NOW, "updated_at": NOW}


def entry(fingerprint="a1" * 32, path="/etc/ssl/a.pem", **more):
    """One as the original's agent sends it."""
    return {
        "fingerprint_sha256": fingerprint,
        "common_name": "a.example",
        "sans": None,
        "serial_number": "abc",
        "issuer_dn": "CN=CA",
        "subject_dn": "CN=a.example",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00Z",
        "key_algorithm": "ECDSA",
        "key_size": 256,
        "is_ca": False,
        "pem_data": "",
        "source_path": path,
        "source_format": "PEM",
        **more,
    }


def certificate(name="found.example"):
    """A self-signed certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(255).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=365))
    pem = built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    return pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
async def inventory(database):
    """An agent, an issuer and what a certificate needs."""
    for n in (1, 2):
        await Agent.insert(Agent(id=f"ag-{n}", name=f"agent {n}", registered_at=NOW, **TIMES))
    await Team.insert(Team(id="t-1", name="Team", **TIMES))
    await Owner.insert(Owner(id="o-1", name="Owner", team_id="t-1", **TIMES))
    await Issuer.insert(Issuer(id="iss-1", name="CA", type="ACME", status="ready", **TIMES))
    await RenewalPolicy.insert(RenewalPolicy(id="rp-default", name="Default", **TIMES))


@pytest.fixture
async def agent(inventory, connect):
    """A client with the agent's own key."""
    _, key = await create_key("ag-1", Role.AGENT, agent_id="ag-1")
    async with connect(key) as client:
        yield client


async def managed(id, fingerprint):
    common = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-1", "renewal_policy_id": "rp-default"}
    await Certificate.insert(Certificate(id=id, name=id, status="Pending", decided="Pending", **common, **TIMES))
    await CertificateVersion.insert(
        CertificateVersion(
            id=f"certver-{id}", certificate_id=id, version=1, issuer_id="iss-1", serial_number=id,
            not_before=NOW, not_after=NOW, fingerprint_sha256=fingerprint, created_at=NOW,
        )
    )  # fmt: skip


async def send(agent, *entries, **more):
    answer = await agent.post(
        REPORT, json={"agent_id": "ag-1", "directories": ["/etc"], "certificates": entries, **more}
    )
    assert answer.status_code == 202, answer.text
    return answer.json()


async def rows(client, query=""):
    return (await client.get(FOUND + query)).json()["data"]


async def test_a_report_becomes_a_scan_and_its_certificates(agent, client):
    scan = await send(agent, entry(), entry("b2" * 32), errors=["/root: denied"], scan_duration_ms=1500)
    counts = {key: scan[key] for key in ("certificates_found", "certificates_new", "errors_count", "scan_duration_ms")}
    assert counts == {"certificates_found": 2, "certificates_new": 2, "errors_count": 1, "scan_duration_ms": 1500}
    assert (scan["agent_id"], scan["directories"], scan["id"][:3]) == ("ag-1", ["/etc"], "ds-")
    [listed] = (await client.get("/api/v1/discovery-scans?agent_id=ag-1")).json()["data"]
    assert listed == scan
    [found] = await rows(
        client, "?fields=status,sans,serial_number,not_after,discovery_scan_id,is_ca&per_page=1&page=2"
    )
    assert found == {
        "status": "Unmanaged",
        "sans": [],
        "serial_number": "0abc",
        "not_after": "2027-01-01T00:00:00Z",
        "discovery_scan_id": scan["id"],
        "is_ca": False,
    }
    [event] = await AuditEvent.select().where(AuditEvent.action == "discovery_scan_completed")
    assert (event["actor"], event["actor_type"], json.loads(event["details"])["new"]) == ("ag-1", "Agent", 2)


async def test_a_repeat_moves_last_seen_at_only(agent, client):
    await send(agent, entry())
    [before] = await rows(client)
    scan = await send(agent, entry(common_name="other.example"), entry(path="/etc/ssl/b.pem"))
    assert (scan["certificates_found"], scan["certificates_new"]) == (2, 1)
    [after] = [row for row in await rows(client) if row["id"] == before["id"]]
    assert after.pop("last_seen_at") > before.pop("last_seen_at")
    assert after == before


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "text",
        entry("xyz"),
        entry(fingerprint=""),
        entry(key_size="big"),
        entry(pem_data="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
    ids=["null", "text", "no fingerprint", "empty fingerprint", "type", "pem"],
)
async def test_an_entry_that_makes_no_sense_is_counted_and_hides_no_other(agent, bad):
    scan = await send(agent, bad, entry())
    assert (scan["certificates_found"], scan["certificates_new"], scan["errors_count"]) == (1, 1, 1)


async def test_the_same_place_twice_in_one_report_is_one_certificate(agent):
    assert (await send(agent, entry(), entry("A1:" * 31 + "A1")))["certificates_new"] == 1


async def test_an_empty_report_is_a_scan(agent):
    answer = await agent.post(REPORT, json={"certificates": None, "directories": None, "errors": None})
    assert (answer.status_code, answer.json()["certificates_found"]) == (202, 0)


async def test_what_the_certificate_says_counts_more_than_the_report_and_keys_are_left_out(agent, client):
    pem, key = certificate()
    await send(agent, entry(common_name="lie.example", pem_data=key + pem))
    [found] = await rows(client)
    assert found["fingerprint_sha256"] == read_certificate(pem).fingerprint_sha256
    assert (found["common_name"], found["serial_number"], found["pem_data"]) == ("found.example", "00ff", pem)
    stored = await db.fetch(db.Sql("SELECT pem_data FROM discovered_certificate"))
    assert "PRIVATE" not in stored[0]["pem_data"]


async def test_texts_are_made_harmless_and_cut(agent, client):
    long = "/ä" * 2000
    evil = entry(
        common_name="\x1b[2Ja\u202eb\ud7ffc\r\n" + "x" * 300,
        sans=["\x00a".replace("\x00", "\x07"), "y" * 400] * 200,
        issuer_dn="z" * 9000,
        key_algorithm="ecdsa",
        key_size=10**9,
        not_before="soon",
        not_after="0001-01-01T00:00:00Z",
        source_path=long,
    )
    await send(agent, evil, entry(path=long + "b"))
    found = next(row for row in await rows(client) if "not_after" not in row)
    assert found["common_name"][:5] == "[2Jab"
    assert (len(found["common_name"]), len(found["sans"]), len(found["sans"][1])) == (255, 250, 255)
    assert (len(found["issuer_dn"]), found["key_algorithm"], found["key_size"]) == (2048, "ECDSA", 10**6)
    assert "not_before" not in found
    paths = {row["source_path"] for row in await rows(client)}
    assert len(paths) == 2
    assert all(len(path.encode()) <= 1024 for path in paths)


async def test_a_certificate_of_ours_is_linked_at_once_also_when_it_was_seen_before(agent, client):
    await send(agent, entry())
    await managed("mc-1", "a1" * 32)
    await managed("mc-2", "b2" * 32)
    await send(agent, entry(), entry("b2" * 32), entry("c3" * 32))
    linked = {
        row["fingerprint_sha256"][:2]: (row["status"], row.get("managed_certificate_id")) for row in await rows(client)
    }
    assert linked == {"a1": ("Managed", "mc-1"), "b2": ("Managed", "mc-2"), "c3": ("Unmanaged", None)}
    summary = (await client.get("/api/v1/discovery-summary")).json()
    assert summary == {"Unmanaged": 1, "Managed": 2, "Dismissed": 0}


async def test_what_was_dismissed_stays_dismissed_when_it_is_seen_again(agent, client):
    await send(agent, entry())
    [found] = await rows(client)
    for _ in range(2):
        answer = await client.post(f"{FOUND}/{found['id']}/dismiss", json={"reason": "test host"})
        assert (answer.status_code, answer.json()["status"]) == (200, "dismissed")
    await send(agent, entry())
    [again] = await rows(client, "?status=dismissed")
    assert again["dismissed_at"]
    [event] = await AuditEvent.select().where(AuditEvent.action == "discovery_cert_dismissed")
    assert json.loads(event["details"]) == {"reason": "test host"}


async def test_a_claim_links_one_certificate_once(agent, client):
    await send(agent, entry())
    await managed("mc-1", "d4" * 32)
    await managed("mc-2", "e5" * 32)
    [found] = await rows(client)
    path = f"{FOUND}/{found['id']}"
    for _ in range(2):
        answer = await client.post(f"{path}/claim", json={"managed_certificate_id": "mc-1"})
        assert (answer.status_code, answer.json()["status"]) == (200, "claimed")
    assert (await client.get(path)).json()["managed_certificate_id"] == "mc-1"
    assert (await client.post(f"{path}/claim", json={"managed_certificate_id": "mc-2"})).status_code == 409
    assert (await client.post(f"{path}/dismiss", json={})).status_code == 409
    assert await AuditEvent.count().where(AuditEvent.action == "discovery_cert_claimed") == 1


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["managed_certificate_id"]),
        ({"managed_certificate_id": "mc-no"}, ["managed_certificate_id"]),
        ({"create": True, "owner_id": "o-1"}, ["team_id", "issuer_id"]),
        ({"create": True, "owner_id": "o-no", "team_id": "t-1", "issuer_id": "iss-1"}, ["owner_id"]),
    ],
    ids=["nothing", "unknown", "incomplete", "unknown owner"],
)
async def test_a_claim_that_leads_nowhere_names_its_fields_and_changes_nothing(agent, client, body, fields):
    await send(agent, entry())
    [found] = await rows(client)
    answer = await client.post(f"{FOUND}/{found['id']}/claim", json=body)
    assert (answer.status_code, [each["field"] for each in answer.json()["details"]]) == (400, fields)
    assert await rows(client) == [found]


async def test_a_claim_can_make_a_managed_certificate(agent, client):
    await send(agent, entry(sans=["a.example", "b.example"], not_after="2099-01-01T00:00:00Z"))
    [found] = await rows(client)
    body = {"create": True, "owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-1"}
    answer = await client.post(f"{FOUND}/{found['id']}/claim", json=body)
    assert answer.status_code == 200, answer.text
    [made] = await Certificate.select().where(Certificate.id == answer.json()["certificate_id"])
    assert (made["common_name"], made["fingerprint"], made["serial_number"]) == ("a.example", "a1" * 32, "0abc")
    assert made["expires_at"] == datetime(2099, 1, 1, tzinfo=UTC)
    assert (await client.post(f"{FOUND}/{found['id']}/claim", json=body)).status_code == 409


async def test_an_agent_reports_for_itself_alone(agent, client, connect):
    assert (await agent.post("/api/v1/agents/ag-2/discoveries", json={})).status_code == 404
    assert (await client.post(REPORT, json={})).status_code == 403
    assert (await agent.get(FOUND)).status_code == 403


@pytest.mark.parametrize(("query", "count"), [("agent_id=ag-1", 2), ("is_ca=true", 1), ("key_algorithm=rsa", 1)])
async def test_the_list_is_filtered(agent, client, query, count):
    await send(agent, entry(is_ca=True), entry("b2" * 32, key_algorithm="RSA"))
    assert len(await rows(client, f"?{query}")) == count


@pytest.mark.parametrize("path", [f"{FOUND}/dc-no", f"{FOUND}/dc-no/claim", f"{FOUND}/dc-no/dismiss"])
async def test_what_is_not_there_is_not_found(client, path):
    method = "GET" if path.endswith("no") else "POST"
    assert (await client.request(method, path)).status_code == 404
