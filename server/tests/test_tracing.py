import asyncio
from datetime import timedelta

import pytest
from certctl_core.errors import RejectedError
from certctl_sdk import tracing
from certctl_sdk.testing.collector import Collector
from certctl_server import db
from certctl_server.certificates import renewal
from certctl_server.leader import Leadership

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CLIENT}-01"
BROKEN = "BROKEN"


@pytest.fixture
def collector(monkeypatch):
    """Where this process exports to."""
    with Collector() as collector:
        for name, value in collector.environ.items():
            monkeypatch.setenv(name, value)
        tracing.configure("test", "certctl-server", collector.environ)
        yield collector
        tracing.close()


async def arrived(collector, *names):
    """The first span of each name, once they are all there."""
    async with asyncio.timeout(10):
        while not all(collector.named(name) for name in names):
            await asyncio.sleep(0.05)
    return [collector.named(name)[0] for name in names]


async def test_a_trace_goes_from_the_request_to_every_job_that_follows_from_it(fleet):
    machine = await fleet.machine("one")
    await fleet.target("t1", machine)
    fleet.people.headers["traceparent"] = GIVEN
    id = await fleet.certificate("a.example", targets=["t1"])
    del fleet.people.headers["traceparent"]
    [item] = await machine.work()
    assert item["traceparent"] == GIVEN
    await machine.csr(id, "a.example")
    assert [(row["type"], row["traceparent"]) for row in await fleet.jobs(id)] == [
        ("Issuance", GIVEN),
        ("Deployment", GIVEN),
    ]
    [item] = await machine.work()
    assert item["traceparent"] == GIVEN


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([("traceparent", "'; DROP TABLE job; --")], id="no traceparent"),
        pytest.param([("traceparent", GIVEN), ("traceparent", GIVEN)], id="two"),
        pytest.param([], id="none"),
    ],
)
async def test_what_is_no_trace_leaves_none_behind_while_nothing_is_exported(fleet, sent):
    machine = await fleet.machine("one")
    await fleet.target("t1", machine)
    body = {"sans": ["a.example"], "owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "target_ids": ["t1"]}
    answer = await fleet.people.post("/api/v1/certificates", json=body, headers=sent)
    assert answer.status_code == 201
    [item] = await machine.work()
    assert "traceparent" not in item


async def test_a_request_is_a_span_named_after_its_route(client, collector):
    await client.get("/api/v1/certificates/mc-1", headers={"traceparent": GIVEN})
    await client.get("/api/v1/nothing-here")
    await client.get("/health")
    found, lost = await arrived(collector, "GET /api/v1/certificates/{id}", "GET other")
    assert (found.kind, found.trace_id, found.parent_id) == ("server", TRACE, CLIENT)
    assert found.attributes["http.route"] == "/api/v1/certificates/{id}"
    assert (found.attributes["http.response.status_code"], found.error) == (404, None)
    assert lost.parent_id == ""
    tracing.close()
    assert collector.named("GET /health") == []


async def test_an_answer_that_is_our_fault_is_a_failed_span(client, collector, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError(BROKEN)

    monkeypatch.setattr("certctl_server.telemetry.figures._count", broken)
    answer = await client.get("/api/v1/metrics", headers={"traceparent": GIVEN})
    assert answer.status_code == 500
    [span] = await arrived(collector, "GET /api/v1/metrics")
    assert (span.attributes["error.type"], span.error) == ("500", "")
    assert BROKEN not in str(span)


async def test_what_a_connector_refuses_fails_its_span_and_its_job_s_with_the_cause(
    fleet, runner, collector, monkeypatch
):
    async def refuse(*_):
        raise RejectedError("no such name")

    machine = await fleet.machine("one")
    await fleet.target("t1", machine)
    id = await fleet.certificate("a.example", targets=["t1"])
    monkeypatch.setattr(type(await runner.instances.issuer("iss-local")), "issue", refuse)
    await machine.csr(id, "a.example")
    call, run = await arrived(collector, "issue GenericCA", "run Issuance")
    assert (call.kind, call.parent_id, call.error) == ("client", run.span_id, "no such name")
    assert call.attributes["error.type"] == "RejectedError"
    assert (run.kind, run.error, run.attributes["error.type"]) == ("consumer", "no such name", "rejected")
    assert run.attributes["certctl.job.attempt"] == 1


async def test_an_order_that_nobody_asked_for_begins_a_trace(fleet, collector):
    machine = await fleet.machine("one")
    id = await fleet.served(machine)
    await db.fetch(db.Sql("UPDATE certificate SET renew_due_at = {now} WHERE id = $1"), id)
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    await leadership.campaign()
    await renewal.scan(leadership)
    [begun] = await arrived(collector, "create Renewal")
    [job] = await fleet.jobs(id, type="Renewal")
    assert job["traceparent"].startswith(f"00-{begun.trace_id}-{begun.span_id}-")
    assert (begun.kind, begun.parent_id, begun.attributes["certctl.job.id"]) == ("producer", "", job["id"])
