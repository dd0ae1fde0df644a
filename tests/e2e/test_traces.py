"""One order is one trace, from the request to the report of the agent; where nobody collects, nothing is imported."""

import os
import signal

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.collector import Collector

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CLIENT}-01"
ORDER = {"owner_id": "o-unassigned", "team_id": "t-unassigned", "issuer_id": "iss-local"}
#: Runs in every process, and leaves the names of what was imported when it ends.
SITE = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["IMPORTED"], "w").write("\\n".join(sys.modules)))
"""
#: Litestar itself looks whether OpenTelemetry's API is there; that is all.
TRACING = ("opentelemetry.sdk", "opentelemetry.exporter", "certctl_sdk.spans", "google.protobuf", "requests")


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(params=["embedded", "scaled"])
def server(request, stage, collector):
    """A server that exports, and with it the service in which jobs run."""
    if request.param == "embedded":
        return stage.server(**collector.environ).start(), "certctl-server"
    shared = {
        "database_url": request.getfixturevalue("postgres").create("traces"),
        "CERTCTL_BROKER_URL": request.getfixturevalue("redis").url,
        "CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex(),
    }
    server = stage.server(**shared, **collector.environ).start()
    worker = stage.worker(server)
    worker.environ |= collector.environ
    worker.start()
    return server, "certctl-worker"


def ordered(server, target, traceparent):
    """Order a certificate as a client that traces."""
    headers = {"Authorization": f"Bearer {server.key}", "traceparent": traceparent}
    body = {**ORDER, "common_name": "traced.example.com", "target_ids": [target]}
    answer = httpx.post(f"{server.url}/api/v1/certificates", json=body, headers=headers, timeout=30)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_an_order_is_one_trace_from_the_request_to_the_agent_s_report(stage, server, collector):
    server, runs_jobs = server
    nginx = stage.nginx()
    agent = stage.agent(server, CERTCTL_VERIFY_DELAY="50ms", **collector.environ)
    agent.allow_all_of(nginx)
    agent.start()
    certificate = ordered(server, server.target(agent, nginx), GIVEN)
    server.served(certificate)
    last = "POST /api/v1/agents/{id}/jobs/{job_id}/status"
    collector.until(lambda: len(collector.named(last)) > 1 and collector.named("do Deployment"))

    ours = [span for span in collector.spans if span.trace_id == TRACE]
    by_name = {span.name: span for span in reversed(ours)}
    by_id = {span.span_id: span for span in ours}
    jobs = {row["type"]: row["id"] for row in server.jobs(certificate)}

    def above(name):
        """The services and names of a span and those it lies in, outermost first."""
        span, found = by_name[name], []
        while span:
            found.insert(0, (span.service, span.name))
            top, span = span, by_id.get(span.parent_id)
        assert top.parent_id == CLIENT
        return found

    request = ("certctl-server", "POST /api/v1/certificates")
    signed = [request, (runs_jobs, "run Issuance"), (runs_jobs, "issue GenericCA")]
    assert above("issue GenericCA") == signed
    deployed = [*signed[:2], ("certctl-agent", "do Deployment")]
    assert above("verify") == [*deployed, ("certctl-agent", "deploy NGINX"), ("certctl-agent", "verify")]
    assert above(last) == [*deployed, ("certctl-server", last)]
    csr = "POST /api/v1/agents/{id}/csr"
    assert above(csr) == [request, ("certctl-agent", "do Issuance"), ("certctl-server", csr)]

    run = by_name["run Issuance"]
    assert (run.kind, run.attributes["certctl.job.id"]) == ("consumer", jobs["Issuance"])
    assert run.attributes["certctl.certificate.id"] == certificate
    issue = by_name["issue GenericCA"]
    assert (issue.kind, issue.attributes["certctl.issuer.kind"]) == ("client", "GenericCA")
    assert issue.attributes["certctl.issuer.id"] == "iss-local"
    do = by_name["do Deployment"]
    assert (do.attributes["certctl.job.id"], do.attributes["certctl.target.kind"]) == (jobs["Deployment"], "NGINX")
    assert by_name["POST /api/v1/certificates"].attributes["http.response.status_code"] == 201
    assert [span for span in ours if span.error is not None] == []
    assert not [span for span in collector.spans if span.name.endswith(("/work", "/heartbeat", "/ready"))]


def test_a_renewal_by_itself_begins_a_trace_of_its_own(stage, collector):
    server = stage.server(**collector.environ).start()
    nginx = stage.nginx()
    agent = stage.agent(server, CERTCTL_VERIFY_DELAY="50ms", **collector.environ)
    agent.allow_all_of(nginx)
    agent.start()
    profile = {"name": "short", "max_ttl_seconds": 60, "allow_short_lived": True}
    short = server.post("profiles", profile)["id"]
    server.order("short.example.com", server.target(agent, nginx), certificate_profile_id=short)
    collector.until(lambda: collector.named("create Renewal") and collector.named("run Renewal"), 60)
    begun = {span.trace_id: span for span in collector.named("create Renewal")}
    run = collector.named("run Renewal")[0]
    assert begun[run.trace_id].span_id == run.parent_id
    assert (begun[run.trace_id].parent_id, begun[run.trace_id].kind) == ("", "producer")


def test_where_nobody_collects_nothing_is_imported_and_the_trace_goes_on(stage, tmp_path, waiting):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    left = {name: tmp_path / f"imported-{name}" for name in ("server", "agent")}
    environ = {name: {"PYTHONPATH": str(tmp_path), "IMPORTED": str(path)} for name, path in left.items()}
    server = stage.server(**environ["server"]).start()
    nginx = stage.nginx()
    agent = stage.agent(server, CERTCTL_VERIFY_DELAY="50ms", **environ["agent"])
    agent.allow_all_of(nginx)
    certificate = ordered(server, server.target(agent, nginx), GIVEN)
    with server.client(agent.key) as looking:
        path = f"/api/v1/agents/{agent.id}/work"
        [item] = waiting(lambda: looking.get(path).json()["jobs"], "the order to be offered")
    assert item["traceparent"] == GIVEN
    agent.start()
    server.served(certificate)
    assert (agent.end(signal.SIGTERM), server.end(signal.SIGTERM)) == (0, 0)
    for name, path in left.items():
        imported = path.read_text().split()
        assert f"certctl_{name}" in imported
        assert [module for module in imported if module.startswith(TRACING)] == [], name
