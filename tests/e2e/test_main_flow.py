"""From the order to the revocation, with a real NGINX and a client that trusts our root only."""

import json
import time
from hashlib import sha256

import pytest

NAME = "web.example.com"
SOON_SECONDS = 15


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(stage, request):
    url = request.getfixturevalue("postgres").create("main_flow") if request.param == "postgres" else ""
    return stage.server(database_url=url).start()


@pytest.fixture
def nginx(stage):
    return stage.nginx()


@pytest.fixture
def agent(stage, server, nginx):
    agent = stage.agent(server, name=f"agent-of-{nginx.port}")
    agent.allow_all_of(nginx)
    yield agent.start()
    agent.kill()


def digest(der):
    return sha256(der).hexdigest()


def test_a_certificate_is_issued_served_renewed_and_revoked_and_all_of_it_is_told(stage, server, agent, nginx, waiting):
    ordered = time.monotonic()
    certificate = server.order(NAME, server.target(agent, nginx))["id"]
    [first] = waiting(lambda: server.fingerprints(certificate), "the first version", SOON_SECONDS)
    visitor = stage.visitor(nginx, NAME, server.root_pem(certificate))
    waiting(lambda: visitor.sees(first), "NGINX to serve it", SOON_SECONDS - (time.monotonic() - ordered))
    assert server.served(certificate)["fingerprint"] == first

    with visitor.visiting():
        renewal = server.post(f"certificates/{certificate}/renew")["job_id"]
        waiting(lambda: len(server.fingerprints(certificate)) > 1, "the second version", SOON_SECONDS)
        _, second = server.fingerprints(certificate)
        waiting(lambda: visitor.seen and digest(visitor.seen[-1]) == second, "NGINX to serve it", SOON_SECONDS)
        assert server.served(certificate)["fingerprint"] == second
    assert not visitor.failures
    seen = [digest(der) for der in visitor.seen]
    # Between the two, old and new workers of NGINX take turns for a moment.
    assert (seen[0], set(seen), set(seen[-5:])) == (first, {first, second}, {second})

    revoked = server.post(f"certificates/{certificate}/revoke", {"reason": "superseded"})
    assert revoked == {"status": "revoked", "revocation_state": "confirmed"}
    assert_the_rows_tell_it(server, certificate)
    assert_the_jobs_tell_it(server, certificate, renewal, agent)
    assert_the_audit_trail_tells_it(server, certificate, agent)


def assert_the_rows_tell_it(server, certificate):
    row = server.get(f"certificates/{certificate}")
    versions = server.all(f"certificates/{certificate}/versions")
    assert (row["status"], row["revocation_reason"], row.get("last_error")) == ("Revoked", "superseded", None)
    assert row["fingerprint"] == versions[-1]["fingerprint_sha256"]
    assert [version["version"] for version in versions] == [1, 2]
    assert {(version["revocation_reason"], bool(version["revoked_at"])) for version in versions} == {
        ("superseded", True)
    }
    assert len({version["csr_pem"] for version in versions}) == 2


def assert_the_jobs_tell_it(server, certificate, renewal, agent):
    jobs = server.jobs(certificate)
    assert [(job["type"], job["status"], job["attempts"]) for job in jobs] == [
        ("Issuance", "Completed", 1),
        ("Deployment", "Completed", 1),
        ("Renewal", "Completed", 1),
        ("Deployment", "Completed", 1),
    ]
    assert jobs[2]["id"] == renewal
    for job in jobs:
        assert job["agent_id"] == agent.id
        assert job["scheduled_at"] <= job["started_at"] <= job["completed_at"]
    for deployment, fingerprint in zip(jobs[1::2], server.fingerprints(certificate), strict=True):
        seen = server.get(f"jobs/{deployment['id']}/verification")
        assert (seen["verified"], seen["actual_fingerprint"]) == (True, fingerprint)


def assert_the_audit_trail_tells_it(server, certificate, agent):
    issuance, deployment, renewal, _ = (job["id"] for job in server.jobs(certificate))
    told = server.audit(certificate)
    steps = ("certificate_created", "certificate_retrieved", "renewal_triggered", "certificate_revoked")
    assert [each for each in told if each in steps] == [
        "certificate_created",
        "certificate_retrieved",
        "renewal_triggered",
        "certificate_retrieved",
        "certificate_revoked",
    ]
    for order in (issuance, renewal):
        moves = ["renewal_awaiting_csr", "csr_submitted", "renewal_job_completed"]
        assert [each for each in server.audit(order) if each in moves] == moves
    moves = ["deployment_job_dispatched", "job_verification_success", "deployment_job_completed"]
    events = [event for event in server.all("audit", resource_id=deployment) if event["action"] in moves]
    assert [event["action"] for event in events] == moves
    assert {(event["actor"], event["actor_type"]) for event in events} == {(agent.id, "Agent")}


def test_the_command_line_walks_the_same_way(stage, server, agent, nginx, waiting):
    def certctl(*arguments):
        access = {"CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key}
        return json.loads(stage.run(server, "certctl", "--format", "json", *arguments, **access).stdout)

    options = {"cert_path": nginx.cert, "key_path": nginx.key, "validate_command": "nginx-check"}
    options |= {"reload_command": "nginx-reload", "host": "127.0.0.1", "port": nginx.port}
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    name = f"by-hand-{nginx.port}"
    certctl("targets", "create", name, "--type", "NGINX", "--agent", agent.id, *settings)
    certificate = certctl("certs", "create", f"{name}.example.com", "--target", name)["id"]
    first = server.served(certificate)["fingerprint"]
    assert certctl("certs", "renew", certificate)["job_ids"]
    waiting(lambda: len(server.fingerprints(certificate)) == 2, "the renewal")
    assert server.served(certificate)["fingerprint"] != first
    certctl("certs", "revoke", certificate, "--reason", "superseded")
    assert certctl("certs", "get", certificate)["status"] == "Revoked"
    assert {job["status"] for job in certctl("jobs", "list")["data"]} == {"Completed"}
