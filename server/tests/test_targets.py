from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.job import JobType
from certctl_core.target import Target as TargetConnector
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.audit.record import SYSTEM
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, CertificateTarget
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.tables import Job
from certctl_server.people.tables import Owner, Team
from certctl_server.rules.tables import RenewalPolicy
from pydantic import Field, SecretStr

PATH = "/api/v1/targets"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = {"created_at": NOW, "updated_at": NOW}


class NginxConfig(ConnectorConfig):
    cert_path: Path = Field(description="File")
    reload_command: str = Field("nginx -s reload", description="Command")
    password: SecretStr | None = Field(None, description="Password")


class NginxTarget(TargetConnector):
    kind = "NGINX"
    Config = NginxConfig

    async def deploy(self, request, run):
        raise NotImplementedError


@pytest.fixture
async def agents(ctx):
    """One that reports, one that went silent, one that never came."""
    ctx.plugins.targets["NGINX"] = NginxTarget
    seen = {"ag-1": datetime.now(UTC), "ag-2": datetime.now(UTC) - timedelta(minutes=6), "ag-3": None}
    for id, last in seen.items():
        await Agent.insert(Agent(id=id, name=id, registered_at=NOW, last_heartbeat_at=last, **TIMES))


@pytest.fixture
async def served(client, agents):
    """A target with a certificate on it and an open deployment."""
    await made(client)
    await Team.insert(Team(id="t-1", name="Team", **TIMES))
    await Owner.insert(Owner(id="o-1", name="Owner", team_id="t-1", **TIMES))
    await RenewalPolicy.insert(RenewalPolicy(id="rp-1", name="Policy", **TIMES))
    await Issuer.insert(Issuer(id="iss-1", name="CA", type="ACME", status="ready", **TIMES))
    common = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-1", "renewal_policy_id": "rp-1"}
    life = {"not_before": NOW, "expires_at": NOW + timedelta(days=9000), "was_active": True}
    await Certificate.insert(
        Certificate(id="mc-1", name="x", status="Active", decided="Active", **common, **life, **TIMES)
    )
    await CertificateTarget.insert(
        CertificateTarget(certificate_id="mc-1", target_id="tgt-1", state="pending", not_after=NOW, not_before=NOW)
    )
    job = NewJob(
        type=JobType.DEPLOYMENT, place="deploy|v|tgt-1", certificate_id="mc-1", target_id="tgt-1", agent_id="ag-1"
    )
    await create([job], SYSTEM)
    await settle(["mc-1"])
    assert await certificate_status() == "RenewalInProgress"


async def made(client, id="tgt-1", **more):
    body = {"id": id, "name": "web", "type": "nginx", "agent_id": "ag-1", "config": {"cert_path": "/a.pem"}, **more}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def certificate_status():
    return (await Certificate.select(Certificate.status).first())["status"]


async def job_status():
    return (await Job.select(Job.status).first())["status"]


def fields(answer):
    return [each["field"] for each in answer.json()["details"]]


async def test_a_target_belongs_to_an_agent_that_exists(client, agents):
    target = await made(client)
    assert (target["type"], target["agent_id"], target["status"]) == ("NGINX", "ag-1", "ready")
    body = {"name": "x", "type": "NGINX"}
    for more in ({}, {"agent_id": "ag-no"}):
        answer = await client.post(PATH, json=body | more)
        assert (answer.status_code, fields(answer)) == (400, ["agent_id"])


async def test_names_are_unique_on_one_agent_only(client, agents):
    await made(client)
    await made(client, id="tgt-2", agent_id="ag-2")
    body = {"name": "web", "type": "NGINX", "agent_id": "ag-1"}
    assert (await client.post(PATH, json=body)).status_code == 409
    assert (await client.put(f"{PATH}/tgt-2", json={"agent_id": "ag-1"})).status_code == 409


@pytest.mark.parametrize(
    "command", ["nginx; rm -rf /", "a | b", "$(id)", "a > b", 'say "x"', "a\nb", "x" * 1025, "a && b", "`id`"]
)
@pytest.mark.parametrize("type_", ["NGINX", "HAProxy"], ids=["installed", "not installed"])
async def test_commands_that_a_shell_would_act_on_are_unsafe(client, agents, command, type_):
    body = {"name": "x", "type": type_, "agent_id": "ag-1", "config": {"reload_command": command}}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, fields(answer)) == (400, ["config.reload_command"])


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"Reload_Command": "nginx; id"}, "config.Reload_Command"),
        ({"x": {"RELOAD_COMMAND": "nginx; id"}}, "config.x.RELOAD_COMMAND"),
        ({"reload_command": ["nginx", "$(id)"]}, "config.reload_command[1]"),
        ({"x": [{"test_command": {"run": "a | b"}}]}, "config.x[0].test_command.run"),
        ({"validateCommand": "a | b"}, "config.validateCommand"),
    ],
    ids=["another case", "nested", "a list", "deep in a list", "no underscore"],
)
@pytest.mark.parametrize("type_", ["NGINX", "HAProxy"], ids=["installed", "not installed"])
async def test_commands_are_found_in_any_case_and_at_any_depth(client, agents, config, field, type_):
    answer = await client.post(PATH, json={"name": "x", "type": type_, "agent_id": "ag-1", "config": config})
    assert answer.status_code == 400
    assert field in fields(answer)


async def test_an_option_that_is_known_in_another_case_is_told_its_spelling(client, agents):
    body = {"name": "x", "type": "NGINX", "agent_id": "ag-1", "config": {"Reload_Command": "nginx -s reload"}}
    answer = await client.post(PATH, json=body)
    assert answer.json()["details"] == [{"field": "config.Reload_Command", "message": "is spelt reload_command"}]


@pytest.mark.parametrize("key", ["type", "agent_id"])
async def test_a_target_that_moves_takes_no_secret_along(client, agents, key):
    body = {"name": "x", "type": "NGINX", "agent_id": "ag-1", "config": {"token": "s3cret"}}
    made = (await client.post(PATH, json=body)).json()
    move = {"agent_id": "ag-2"} if key == "agent_id" else {"type": "HAProxy"}
    answer = await client.put(f"{PATH}/{made['id']}", json=move)
    assert (answer.status_code, fields(answer)) == (400, ["config.token"])
    again = await client.put(f"{PATH}/{made['id']}", json=move | {"config": {"token": "s3cret"}})
    assert again.status_code == 200


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("status=ready", ["tgt-1"]),
        ("status=offline", ["tgt-2", "tgt-3"]),
        ("status=incomplete", ["tgt-4"]),
        ("status=disabled", ["tgt-5"]),
        ("agent_id=ag-2,ag-3", ["tgt-2", "tgt-3"]),
        ("type=haproxy", ["tgt-4"]),
        ("sort=-status&fields=id", ["tgt-1", "tgt-3", "tgt-2", "tgt-4", "tgt-5"]),
    ],
)
async def test_status_says_what_is_in_the_way(client, agents, query, ids):
    for n in (1, 2, 3):
        await made(client, id=f"tgt-{n}", agent_id=f"ag-{n}")
    await made(client, id="tgt-4", name="b", type="HAProxy")
    await made(client, id="tgt-5", name="c", enabled=False)
    answer = await client.get(f"{PATH}?{query}")
    assert [row["id"] for row in answer.json()["data"]] == ids, answer.text


async def test_a_move_to_another_agent_calls_off_its_jobs_and_forgets_what_was_served(client, served):
    assert (await client.put(f"{PATH}/tgt-1", json={"agent_id": "ag-1"})).status_code == 200
    assert await job_status() == "Pending"
    assert (await client.put(f"{PATH}/tgt-1", json={"agent_id": "ag-2"})).status_code == 200
    assert await job_status() == "Cancelled"
    [mapping] = await CertificateTarget.select()
    assert (mapping["state"], mapping["not_after"]) == ("none", None)
    assert await certificate_status() == "Active"


async def test_a_disabled_target_keeps_no_certificate_waiting(client, served):
    await client.put(f"{PATH}/tgt-1", json={"enabled": False})
    assert await certificate_status() == "Active"
    await client.put(f"{PATH}/tgt-1", json={"enabled": True})
    assert await certificate_status() == "RenewalInProgress"


async def test_a_removed_target_takes_its_mappings_and_jobs_along(client, served):
    assert (await client.delete(f"{PATH}/tgt-1")).status_code == 204
    assert await job_status() == "Cancelled"
    assert await CertificateTarget.count() == 0
    assert await certificate_status() == "Active"
    assert (await client.delete(f"{PATH}/tgt-1")).status_code == 404
    events = await AuditEvent.select(AuditEvent.action).where(AuditEvent.resource_type == "target")
    assert [event["action"] for event in events] == ["target_created", "target_deleted"]


@pytest.mark.parametrize(
    ("more", "failed"),
    [
        ({}, None),
        ({"config": {}}, "configuration: config.cert_path: "),
        ({"type": "IIS"}, "configuration: type: "),
        ({"agent_id": "ag-2"}, "agent: agent ag-2 has not reported since "),
        ({"agent_id": "ag-3"}, "agent: agent ag-3 has never reported"),
    ],
    ids=["ready", "incomplete", "not installed", "silent agent", "new agent"],
)
async def test_a_test_says_what_stands_in_the_way(client, agents, more, failed):
    await made(client, **more)
    answer = await client.post(f"{PATH}/tgt-1/test")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed" if failed else "success")
    assert answer.json()["message"].startswith(failed or "the target is configured")
    checks = {check["name"]: check["ok"] for check in answer.json()["checks"]}
    assert (checks["dry_run"], checks["tls"]) == (None, None)
    assert (await client.post(f"{PATH}/tgt-no/test")).status_code == 404
    assert await AuditEvent.exists().where(AuditEvent.action == "target_tested")


async def test_secrets_of_targets_are_hidden_too(client, agents):
    target = await made(client, config={"cert_path": "/a", "password": "pass-w0rd"})
    assert target["config"]["password"] == "********"
    stored = await db.fetch(db.Sql("SELECT config FROM target"))
    assert "pass-w0rd" not in stored[0]["config"]
