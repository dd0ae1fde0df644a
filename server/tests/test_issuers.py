import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certctl_core import plugins
from certctl_core.config import ConnectorConfig
from certctl_core.issuer import Issuer as IssuerConnector
from certctl_sdk import profile_file
from certctl_sdk.http import Client
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_server import db, sealing, start, tls
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates.tables import Certificate
from certctl_server.connectors.refresh import refresh_all
from certctl_server.issuers.tables import Issuer
from certctl_server.people.tables import Owner, Team
from certctl_server.rules.tables import RenewalPolicy
from pydantic import Field, SecretStr

PATH = "/api/v1/issuers"
HIDDEN = "********"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = {"created_at": NOW, "updated_at": NOW}
STORED = db.Sql("SELECT config, config_version FROM issuer WHERE id = $1")


class StepConfig(ConnectorConfig):
    ca_url: str = Field(description="Address")
    provisioner_password: SecretStr = Field(description="Password")
    root_cert_path: Path | None = Field(None, description="Roots")
    validity_days: int = Field(90, ge=1, description="Life")


class StepIssuer(IssuerConnector):
    """Speaks to a peer over a real socket."""

    kind = "StepCA"
    Config = StepConfig

    def __init__(self, config, host):
        super().__init__(config, host)
        self.http = Client("step-ca", host, config.ca_url)

    async def issue(self, request, run):
        raise NotImplementedError

    async def check(self, run):
        await self.http.request("GET", "/health")

    async def aclose(self):
        await self.http.aclose()


class PlainIssuer(IssuerConnector):
    """A stranger's kind, which nothing can be asked of."""

    kind = "Plain"
    Config = ConnectorConfig

    async def issue(self, request, run):
        raise NotImplementedError


@pytest.fixture
def ctx(ctx):
    ctx.plugins.issuers |= {"StepCA": StepIssuer, "Plain": PlainIssuer}
    return ctx


async def made(client, id="iss-1", **more):
    body = {"id": id, "name": id, "type": "StepCA", "config": {"ca_url": "http://127.0.0.1:1"}, **more}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def ready(client, url="http://127.0.0.1:1", **more):
    return await made(client, config={"ca_url": url, "provisioner_password": "pass-w0rd"}, **more)


async def certificate(id, **more):
    if not await Team.exists():
        await Team.insert(Team(id="t-1", name="Team", **TIMES))
        await Owner.insert(Owner(id="o-1", name="Owner", team_id="t-1", **TIMES))
        await RenewalPolicy.insert(RenewalPolicy(id="rp-1", name="Policy", **TIMES))
    common = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-1", "renewal_policy_id": "rp-1"}
    await Certificate.insert(Certificate(id=id, name=id, status="Active", decided="Active", **common, **TIMES, **more))


def fields(answer):
    return [each["field"] for each in answer.json()["details"]]


@pytest.mark.parametrize(
    ("given", "stored", "status"),
    [
        ("stepca", "StepCA", "incomplete"),
        ("step-ca", "StepCA", "incomplete"),
        ("LOCAL_CA", "GenericCA", "incomplete"),
        ("vaultpki", "VaultPKI", "incomplete"),
        ("plain", "Plain", "ready"),
    ],
)
async def test_types_are_stored_in_their_spelling_whether_installed_or_not(client, given, stored, status):
    issuer = await made(client, type=given, config={})
    assert (issuer["type"], issuer["status"], issuer["config"], issuer["enabled"]) == (stored, status, {}, True)


async def test_an_unknown_type_and_an_unknown_field_value_are_named_together(client):
    answer = await client.post(PATH, json={"name": "x", "type": "magic", "enabled": True})
    assert (answer.status_code, fields(answer)) == (400, ["type"])
    answer = await client.post(PATH, json={"type": 5, "config": [], "limits": {"max_concurrent": 0}})
    assert (answer.status_code, fields(answer)) == (400, ["name", "type", "config", "limits.max_concurrent"])


async def test_what_is_missing_is_accepted_and_what_is_wrong_is_not(client):
    assert (await made(client))["status"] == "incomplete"
    body = {"name": "x", "type": "StepCA", "config": {"ca_url": 5, "validity_days": 0, "provisioner_password": "s3"}}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, sorted(fields(answer))) == (400, ["config.ca_url", "config.validity_days"])
    assert "s3" not in answer.text


async def test_empty_texts_count_as_missing(client):
    issuer = await made(client, config={"ca_url": "https://ca", "provisioner_password": ""})
    assert (issuer["status"], issuer["config"]["provisioner_password"]) == ("incomplete", "")


async def test_unknown_keys_are_kept_named_and_shown_to_nobody(client):
    issuer = await ready(client)
    changed = (await client.put(f"{PATH}/iss-1", json={"config": {"colour": "red"}})).json()
    assert (changed["status"], changed["config"]["colour"], changed["config_warnings"]) == ("ready", HIDDEN, ["colour"])
    assert "config_warnings" not in issuer


async def test_secrets_are_sealed_and_shown_to_nobody(client, ctx):
    issuer = await ready(client)
    assert issuer["config"] == {"ca_url": "http://127.0.0.1:1", "provisioner_password": HIDDEN}
    assert (await client.get(f"{PATH}/iss-1")).json() == issuer
    assert (await client.get(PATH)).json()["data"] == [issuer]
    [row] = await db.fetch(STORED, "iss-1")
    assert json.loads(row["config"])["provisioner_password"].startswith("sealed:1:")
    events = await AuditEvent.select().where(AuditEvent.resource_type == "issuer")
    assert [event["action"] for event in events] == ["issuer_created"]
    assert "pass-w0rd" not in str(events) + row["config"]


async def test_a_reply_can_be_put_back_and_changes_nothing(client):
    issuer = await ready(client)
    before = await db.fetch(STORED, "iss-1")
    answer = await client.put(f"{PATH}/iss-1", json=issuer)
    assert (answer.status_code, answer.headers.get("x-certctl-ignored-fields")) == (200, None)
    assert await db.fetch(STORED, "iss-1") == before


async def test_options_merge_and_each_change_is_a_new_version(client, ctx):
    await ready(client)
    answer = await client.put(f"{PATH}/iss-1", json={"config": {"validity_days": 30, "provisioner_password": HIDDEN}})
    assert answer.json()["config"]["validity_days"] == 30
    await client.put(f"{PATH}/iss-1", json={"config": {"validity_days": None}})
    await client.put(f"{PATH}/iss-1", json={"name": "other"})
    assert (await client.put(f"{PATH}/iss-1", json={"enabled": False})).json()["status"] == "disabled"
    assert (await client.put(f"{PATH}/iss-1", json={"enabled": True})).json()["status"] == "ready"
    [row] = await db.fetch(STORED, "iss-1")
    assert row["config_version"] == 5
    config = json.loads(row["config"])
    assert set(config) == {"ca_url", "provisioner_password"}
    assert ctx.cipher.open(config["provisioner_password"], "issuer|iss-1|config") == "pass-w0rd"
    removed = (await client.put(f"{PATH}/iss-1", json={"config": {"provisioner_password": None}})).json()
    assert (removed["status"], removed["config"]) == ("incomplete", {"ca_url": "http://127.0.0.1:1"})


@pytest.mark.parametrize("password", [None, HIDDEN], ids=["left out", "hidden"])
@pytest.mark.parametrize(
    "change", [{"config": {"ca_url": "https://evil.example"}}, {"type": "Plain"}], ids=["address", "type"]
)
async def test_a_kept_secret_never_goes_to_another_address(client, change, password):
    await ready(client)
    body = {"config": {}, **change}
    if password:
        body["config"] = {**body["config"], "provisioner_password": password}
    answer = await client.put(f"{PATH}/iss-1", json=body)
    assert (answer.status_code, fields(answer)) == (400, ["config.provisioner_password"])
    assert "must be sent again" in answer.text
    body["config"] = {**body["config"], "provisioner_password": "pass-w0rd"}
    assert (await client.put(f"{PATH}/iss-1", json=body)).status_code == 200


async def test_the_same_address_again_is_no_other_address(client):
    issuer = await ready(client)
    body = {"type": "step-ca", "config": {"ca_url": issuer["config"]["ca_url"], "provisioner_password": HIDDEN}}
    assert (await client.put(f"{PATH}/iss-1", json=body)).status_code == 200


async def test_the_sealed_secret_of_another_issuer_is_not_taken(client):
    await ready(client)
    [row] = await db.fetch(STORED, "iss-1")
    stolen = json.loads(row["config"])["provisioner_password"]
    body = {"name": "x", "type": "StepCA", "config": {"ca_url": stolen}}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, fields(answer)) == (400, ["config.ca_url"])


@pytest.mark.parametrize("path", ["/etc/shadow", "{data}/../other", "{data}/link/shadow", "roots.pem"])
async def test_files_outside_the_data_directory_are_unsafe(client, ctx, path):
    (ctx.settings.data_dir / "link").symlink_to("/etc")
    config = {"root_cert_path": path.format(data=ctx.settings.data_dir)}
    body = {"name": "x", "type": "StepCA", "config": config}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, fields(answer)) == (400, ["config.root_cert_path"])
    inside = {"root_cert_path": str(ctx.settings.data_dir / "roots.pem")}
    assert (await client.post(PATH, json=body | {"config": inside})).status_code == 201


@pytest.mark.parametrize(
    "name",
    [
        *(sealing.KEY_FILE, start.ADMIN_KEY_FILE, start.TOKEN_FILE, start.LOCK_FILE, profile_file.NAME),
        *(tls.PAIR_FILE, tls.CA_FILE, "certctl.db", "certctl.db-wal", "link"),
    ],
)
async def test_certctls_own_files_are_no_issuers(client, ctx, name):
    (ctx.settings.data_dir / "link").symlink_to(ctx.settings.data_dir / sealing.KEY_FILE)
    body = {"name": "x", "type": "StepCA", "config": {"root_cert_path": str(ctx.settings.data_dir / name)}}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, fields(answer)) == (400, ["config.root_cert_path"])


async def test_a_test_names_the_option_that_cannot_be_read_and_no_path(client, ctx, engine):
    ctx.plugins.issuers["GenericCA"] = plugins.load().issuers["GenericCA"]
    paths = {name: str(ctx.settings.data_dir / f"secret-place-{name}") for name in ("ca_cert_path", "ca_key_path")}
    await made(client, type="GenericCA", config=paths)
    answer = await client.post(f"{PATH}/iss-1/test")
    assert answer.status_code == 503
    assert "ca_cert_path" in answer.json()["message"]
    assert "secret-place" not in answer.text


async def test_options_are_bounded_in_number(client):
    config = {"ca_url": "https://ca", "many": [1] * 5_000}
    answer = await client.post(PATH, json={"name": "x", "type": "StepCA", "config": config})
    assert (answer.status_code, fields(answer)) == (400, ["config"])


async def test_limits_are_kept_and_bound_the_lane(client):
    limits = {"max_concurrent": 3, "rates": [{"count": 300, "per_seconds": 10800, "scope": "account"}]}
    lane = db.Sql("SELECT concurrency FROM lane WHERE name = 'issuer:iss-1'")
    assert (await made(client, limits=limits))["limits"] == limits
    assert (await db.fetch(lane))[0]["concurrency"] == 3
    answer = await client.put(f"{PATH}/iss-1", json={"limits": {"rates": [{"count": 1, "scope": "planet"}]}})
    assert answer.status_code == 400
    assert "limits" not in (await client.put(f"{PATH}/iss-1", json={"limits": None})).json()
    assert (await db.fetch(lane))[0]["concurrency"] is None
    assert (await client.put(f"{PATH}/iss-1", json={"limits": {"rates": []}})).json()["limits"] == {"rates": []}
    assert (await db.fetch(lane))[0]["concurrency"] is None


async def test_the_type_of_an_issuer_in_use_stays_and_it_is_not_deleted(client):
    await ready(client)
    await certificate("mc-1")
    body = {"type": "Plain", "config": {"provisioner_password": None}}
    assert (await client.put(f"{PATH}/iss-1", json=body)).status_code == 409
    assert (await client.put(f"{PATH}/iss-1", json={"type": "step-ca"})).status_code == 200
    assert (await client.delete(f"{PATH}/iss-1")).status_code == 409
    await Certificate.delete(force=True)
    assert (await client.put(f"{PATH}/iss-1", json=body)).json()["config_warnings"]
    await db.fetch(db.Sql("INSERT INTO connector_memory (connector_id, name, value) VALUES ('issuer:iss-1', 'a', 'b')"))
    assert (await client.delete(f"{PATH}/iss-1")).status_code == 204
    assert await db.fetch(db.Sql("SELECT 1 AS x FROM connector_memory")) == []
    assert (await client.get(f"{PATH}/iss-1")).status_code == 404


async def test_the_servers_own_ca_stays(client):
    await made(client, id="iss-local", type="GenericCA", config={})
    assert (await client.delete(f"{PATH}/iss-local")).status_code == 409


@pytest.mark.parametrize("body", [{"enabled": False}, {"type": "ACME"}], ids=["enabled", "type"])
async def test_the_servers_own_ca_is_neither_disabled_nor_made_another_type(client, body):
    await made(client, id="iss-local", type="GenericCA", config={})
    answer = await client.put(f"{PATH}/iss-local", json=body)
    assert (answer.status_code, "server's own certificate" in answer.json()["message"]) == (409, True)
    shown = (await client.get(f"{PATH}/iss-local")).json()
    assert (shown["enabled"], shown["type"]) == (True, "GenericCA")
    same = {"enabled": True, "type": "local", "name": "Ours"}
    assert (await client.put(f"{PATH}/iss-local", json=same)).status_code == 200


async def test_a_disabled_issuer_renews_nothing_until_it_is_enabled(client):
    await ready(client)
    life = {"not_before": NOW, "expires_at": NOW + timedelta(days=9000), "was_active": True}
    for n in range(3):
        await certificate(f"mc-{n}", **life)
    due = db.Sql("SELECT count(*) AS n FROM certificate WHERE renew_due_at IS NOT NULL")
    await client.put(f"{PATH}/iss-1", json={"enabled": False})
    assert (await db.fetch(due))[0]["n"] == 0
    await client.put(f"{PATH}/iss-1", json={"enabled": True})
    assert (await db.fetch(due))[0]["n"] == 3


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("type=step-ca", ["iss-1", "iss-2"]),
        ("type=plain,STEPCA&sort=-name", ["iss-3", "iss-2", "iss-1"]),
        ("status=ready", ["iss-3"]),
        ("status=incomplete", ["iss-1"]),
        ("status=Disabled", ["iss-2"]),
        ("enabled=false", ["iss-2"]),
        ("sort=status&fields=id,status", ["iss-2", "iss-1", "iss-3"]),
    ],
)
async def test_the_list_is_filtered_and_sorted_by_what_is_shown(client, query, ids):
    await made(client, id="iss-1")
    await made(client, id="iss-2", enabled=False)
    await made(client, id="iss-3", type="Plain", config={})
    answer = await client.get(f"{PATH}?{query}")
    assert answer.status_code == 200, answer.text
    assert [row["id"] for row in answer.json()["data"]] == ids
    assert (await client.get(f"{PATH}?type=magic")).status_code == 400


async def test_ids_and_names_are_unique(client):
    await made(client)
    for body in ({"id": "iss-1", "name": "x"}, {"id": "iss-2", "name": "iss-1"}):
        assert (await client.post(PATH, json={**body, "type": "StepCA"})).status_code == 409


async def test_a_test_asks_the_ca_and_remembers_how_it_went(client, engine):
    async with HttpPeer(Reply(json={"status": "ok"})) as peer:
        await ready(client, peer.url)
        answer = await client.post(f"{PATH}/iss-1/test")
        assert (answer.status_code, answer.json()["status"]) == (200, "connection_successful"), answer.text
        assert [(check["name"], check["ok"]) for check in answer.json()["checks"]] == [
            ("configuration", True),
            ("connection", True),
        ]
        assert [request.target for request in peer.requests] == ["/health"]
        peer.answer = Reply(500, json={})
        failed = await client.post(f"{PATH}/iss-1/test")
        assert (failed.status_code, failed.json()["checks"][1]["ok"]) == (503, False)
        assert "step-ca" in failed.json()["message"]
        issuer = (await client.get(f"{PATH}/iss-1")).json()
        assert issuer["status"] == "failing"
        assert issuer["last_tested_at"]
        peer.answer = Reply(json={})
        await client.post(f"{PATH}/iss-1/test")
        assert (await client.get(f"{PATH}/iss-1")).json()["status"] == "ready"


async def test_a_peer_that_is_silent_fails_the_test_in_time(client, engine, monkeypatch):
    monkeypatch.setattr("certctl_server.connectors.probe.PATIENCE", timedelta(seconds=0.3))
    async with HttpPeer(Reply(hang=True)) as peer:
        await ready(client, peer.url)
        answer = await client.post(f"{PATH}/iss-1/test")
        assert (answer.status_code, "did not answer within 0.3 s" in answer.text) == (503, True)


async def test_what_cannot_be_tested_says_why(client, engine):
    await made(client)
    answer = await client.post(f"{PATH}/iss-1/test")
    assert (answer.status_code, fields(answer)) == (400, ["config.provisioner_password"])
    await made(client, id="iss-2", type="ACME", config={})
    answer = await client.post(f"{PATH}/iss-2/test")
    assert (answer.status_code, fields(answer)) == (400, ["type"])
    await made(client, id="iss-3", type="Plain", config={}, enabled=False)
    assert (await client.post(f"{PATH}/iss-3/test")).status_code == 409
    assert (await client.post(f"{PATH}/iss-no/test")).status_code == 404


async def test_a_connector_that_was_installed_meanwhile_makes_its_rows_ready(client, ctx):
    del ctx.plugins.issuers["StepCA"]
    issuer = await ready(client)
    assert (issuer["status"], issuer["config"]) == ("incomplete", {"ca_url": HIDDEN, "provisioner_password": HIDDEN})
    ctx.plugins.issuers["StepCA"] = StepIssuer
    assert await refresh_all(ctx) == 1
    assert await refresh_all(ctx) == 0
    assert (await client.get(f"{PATH}/iss-1")).json()["status"] == "ready"


async def test_a_secret_that_cannot_be_opened_makes_the_row_incomplete_and_can_be_replaced(client, ctx):
    await ready(client)
    config = json.dumps({"ca_url": "https://ca", "provisioner_password": f"sealed:1:{'0' * 16}:AAAA"})
    await Issuer.update({Issuer.config: config}).where(Issuer.id == "iss-1")
    assert (await client.put(f"{PATH}/iss-1", json={"name": "x"})).json()["status"] == "incomplete"
    answer = await client.put(f"{PATH}/iss-1", json={"config": {"provisioner_password": "new"}})
    assert answer.json()["status"] == "ready"
