import asyncio
import re
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_core.job import JobState
from certctl_sdk.http import httpx
from certctl_server import db
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.jobs.state import EXPIRED
from certctl_server.jobs.sweeper import Sweeper
from certctl_server.leader import Leadership
from certctl_server.loops import Loop, Loops
from certctl_server.settings import Settings
from certctl_server.telemetry import figures, metrics
from certctl_server.telemetry.process import telling
from prometheus_client.parser import text_string_to_metric_families

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
CONTRACT = {
    "certctl_certificate_total": "gauge",
    "certctl_certificate_active": "gauge",
    "certctl_certificate_expiring_soon": "gauge",
    "certctl_certificate_expired": "gauge",
    "certctl_certificate_revoked": "gauge",
    "certctl_agent_total": "gauge",
    "certctl_agent_online": "gauge",
    "certctl_job_pending": "gauge",
    "certctl_uptime_seconds": "gauge",
    "certctl_job_completed_total": "counter",
    "certctl_job_failed_total": "counter",
}
LEASE = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Count anew with every question."""
    monkeypatch.setattr(figures, "FRESH_SECONDS", 0.0)


async def scrape(client):
    answer = await client.get("/api/v1/metrics/prometheus")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return answer.text


def samples(text, name):
    """The values of a sample by its labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def value(name, *labels):
    """What this process has counted so far, over all tests."""
    return metrics.REGISTRY.get_sample_value(name, dict(labels)) or 0.0


async def test_the_names_of_the_contract_are_there_with_their_types(client):
    text = await scrape(client)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: types.get(name) for name in CONTRACT} == CONTRACT
    assert all(len(samples(text, name)) == 1 for name in CONTRACT)


async def test_both_answers_say_what_is_in_the_database(client, fleet):
    machine = await fleet.machine("one")
    id = await fleet.served(machine)
    await fleet.certificate("b.example", targets=["tgt-one"])
    revoked = await fleet.certificate("c.example", targets=["tgt-one"])
    await machine.answer_orders()
    assert (await fleet.post(f"certificates/{revoked}/revoke", reason="superseded")).status_code == 200
    gone = await fleet.machine("gone")
    await db.fetch(db.Sql("UPDATE agent SET retired_at = {now} WHERE id = $1"), gone.id)
    statuses = {row["id"]: row["status"] for row in (await fleet.get("certificates"))["data"]}
    shown = "SELECT status FROM job WHERE type NOT IN ('Revocation', 'Scan', 'Notification', 'CrlBuild')"
    jobs = [row["status"] for row in await db.fetch(db.Sql(shown))]

    told = await fleet.get("metrics")
    gauge = told["gauge"]
    assert statuses[id] == "Active"
    assert gauge["certificate_total"] == len(statuses) == 3
    assert gauge["certificate_active"] == list(statuses.values()).count("Active")
    assert (gauge["certificate_revoked"], gauge["certificate_expired"], gauge["certificate_expiring_soon"]) == (1, 0, 0)
    assert (gauge["agent_total"], gauge["agent_online"]) == (1, 1)
    assert gauge["job_pending"] == sum(s in {"Pending", "AwaitingCSR", "AwaitingApproval", "Running"} for s in jobs)
    assert told["counter"] == {
        "job_completed_total": jobs.count("Completed"),
        "job_failed_total": jobs.count("Failed"),
    }
    assert told["uptime"]["uptime_seconds"] >= 0
    assert told["uptime"]["server_started"] < told["uptime"]["measured_at"]

    text = await scrape(client)
    flat = {f"certctl_{name}": n for part in ("gauge", "counter") for name, n in told[part].items()}
    assert {name: samples(text, name)[()] for name in flat} == flat
    by_status = samples(text, "certctl_certificates")
    assert len(by_status) == 8
    assert sum(by_status.values()) == 3
    assert by_status["Revoked",] == 1


async def test_viewers_may_read_metrics_and_agents_may_not(connect, client, fleet):
    _, key = await create_key("vera", Role.VIEWER)
    machine = await fleet.machine("one")
    async with connect(key) as viewer:
        for path in ("metrics", "metrics/prometheus"):
            assert (await viewer.get(f"/api/v1/{path}")).status_code == 200
            assert (await machine.http.get(f"/api/v1/{path}")).status_code == 403


async def test_lanes_say_what_waits_and_runs_in_them_and_since_when(client, fleet, runner):
    machine = await fleet.machine("one")
    await fleet.target("t1", machine)
    for name in ("a", "b"):
        await fleet.certificate(f"{name}.example", targets=["t1"])
    due = db.Sql("UPDATE job SET status = $1, due_at = {after:-90} WHERE status = 'AwaitingCSR'")
    await db.fetch(due, JobState.PENDING)
    text = await scrape(client)
    assert samples(text, "certctl_queue_depth") == {("issuer:iss-local", "Pending"): 2}
    assert 89 <= samples(text, "certctl_oldest_due_job_age_seconds")[()] < 120
    await db.fetch(db.Sql("UPDATE job SET status = 'Running', due_at = NULL WHERE status = 'Pending'"))
    text = await scrape(client)
    assert samples(text, "certctl_queue_depth") == {("issuer:iss-local", "Running"): 2}
    assert samples(text, "certctl_oldest_due_job_age_seconds")[()] == 0


async def test_thousands_of_lanes_do_not_become_thousands_of_samples(client, monkeypatch):
    monkeypatch.setattr(figures, "LANES", 2)
    lanes = {(f"issuer:{n}", "Pending"): n for n in range(1, 6)}

    counted = await figures.figures()
    monkeypatch.setattr(figures, "_count", lambda: _answer(replace(counted, lanes=lanes)))
    shown = samples(await scrape(client), "certctl_queue_depth")
    assert shown == {("issuer:5", "Pending"): 5, ("issuer:4", "Pending"): 4, ("other", "Pending"): 6}


async def _answer(value):
    return value


async def test_figures_are_counted_once_however_many_ask_at_once(client, monkeypatch):
    monkeypatch.setattr(figures, "FRESH_SECONDS", 60.0)
    counted = []
    inner = db.moment

    async def noted(sql, *args):
        counted.append(sql)
        return await inner(sql, *args)

    monkeypatch.setattr(db, "moment", noted)
    answers = await asyncio.gather(*(client.get("/api/v1/metrics") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert counted == [figures.OLDEST]


async def test_jobs_are_timed_by_type_and_end_whoever_did_them(client, fleet):
    def count(name, type_, outcome):
        return value(f"certctl_job_{name}_seconds_count", ("type", type_), ("outcome", outcome))

    ends = [("run", "Issuance", "Completed"), ("run", "Deployment", "Completed"), ("latency", "Deployment", "Failed")]
    before = [count(*end) for end in ends]
    calls = ("connector", "issuer"), ("kind", "GenericCA"), ("call", "issue"), ("outcome", "ok")
    called = value("certctl_connector_call_seconds_count", *calls)
    machine = await fleet.machine("one")
    await fleet.served(machine)
    await fleet.certificate("b.example", targets=["tgt-one"])
    await machine.answer_orders()
    [item] = [item for item in await machine.work() if item["type"] == "Deployment"]
    await machine.report(item["id"], "Running")
    await machine.report(item["id"], "Failed", error="no")
    after = [count(*end) for end in ends]
    assert [a - b for a, b in zip(after, before, strict=True)] == [2, 1, 1]
    assert value("certctl_connector_call_seconds_count", *calls) - called == 2


async def test_polls_of_agents_count_by_whether_there_was_work(client, fleet):
    before = [value("certctl_agent_polls_total", ("result", result)) for result in ("work", "idle")]
    machine = await fleet.machine("one")
    await machine.work()
    await fleet.target("t1", machine)
    await fleet.certificate("a.example", targets=["t1"])
    assert len(await machine.work()) == 1
    after = [value("certctl_agent_polls_total", ("result", result)) for result in ("work", "idle")]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1]


async def test_requests_are_called_by_their_route_and_never_by_what_a_client_made_up(client):
    await client.get("/api/v1/certificates/mc-hostile-id")
    await client.get("/api/v1/hostile-path")
    await client.request("HOSTILE", "/api/v1/certificates")
    await client.get("/health")
    text = await scrape(client)
    seen = {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "certctl_http_request_seconds_count"
    }
    assert {("/api/v1/certificates/{id}", "GET", "404"), ("/health", "GET", "200"), ("other", "GET", "404")} <= seen
    assert {method for _, method, _ in seen} <= metrics.METHODS | {"other"}
    assert "hostile" not in text.lower()


async def test_a_lease_that_ran_out_counts_by_whose_it_was(fleet, ctx):
    before = [value("certctl_lease_expiries_total", ("owner", owner)) for owner in ("agent", "worker")]
    machine = await fleet.machine("one")
    await fleet.target("t1", machine)
    await fleet.certificate("a.example", targets=["t1"])
    await machine.answer_orders()
    [item] = [item for item in await machine.work() if item["type"] == "Deployment"]
    await machine.report(item["id"], "Running")
    await db.fetch(db.Sql("UPDATE job SET lease_until = {after:-5} WHERE id = $1"), item["id"])
    assert len(await db.fetch(EXPIRED)) == 1
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    await leadership.campaign()
    await Sweeper(lambda _: False, timedelta(), alone=True).sweep(leadership)
    after = [value("certctl_lease_expiries_total", ("owner", owner)) for owner in ("agent", "worker")]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 0]


async def test_a_loop_that_hangs_is_overdue_and_its_turns_are_timed(client):
    name = f"hanging on {db.dialect()}"  # counters outlive a test
    hang = asyncio.Event()
    turns = []

    async def work(_):
        turns.append(1)
        if len(turns) > 1:
            await hang.wait()

    loops = Loops(Leadership("test", LEASE, alone=True), [Loop(name, timedelta(milliseconds=60), work)], LEASE)
    loops.start()
    async with asyncio.timeout(10):
        while len(turns) < 2 or value("certctl_loop_lag_seconds", ("loop", name)) < 0.3:
            await asyncio.sleep(0.05)
    assert value("certctl_loop_turn_seconds_count", ("loop", name), ("outcome", "done")) == 1
    finished = samples(await scrape(client), "certctl_loop_last_finish_timestamp_seconds")
    assert abs(finished[name,] - db.now().timestamp()) < 30
    await loops.stop()


async def test_a_connector_that_blocks_is_counted_and_timed():
    before = [value(f"certctl_connector_loop_blocked{part}_total") for part in ("", "_seconds")]
    loop = ConnectorLoop()
    loop.start()

    async def block():
        time.sleep(2.5)

    await loop.call(block)
    await asyncio.sleep(1)
    await loop.stop()
    after = [value(f"certctl_connector_loop_blocked{part}_total") for part in ("", "_seconds")]
    times, seconds = (a - b for a, b in zip(after, before, strict=True))
    assert times == 1
    assert 1 <= seconds <= 3.5


async def test_the_event_loop_s_lag_and_the_port_of_a_process_without_an_api(unused_port):
    before = value("certctl_event_loop_lag_seconds_count")
    async with telling("certctl-worker", Settings(metrics_port=unused_port)):
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(None, lambda: urlopen(f"http://127.0.0.1:{unused_port}/").read().decode())
        assert {"certctl_job_run_seconds", "process_resident_memory_bytes"} <= {
            family.name for family in text_string_to_metric_families(text)
        }
        async with asyncio.timeout(10):
            while value("certctl_event_loop_lag_seconds_count") == before:
                await asyncio.sleep(0.1)
        with pytest.raises(MisconfiguredError, match="CERTCTL_METRICS_PORT"):
            async with telling("certctl-worker", Settings(metrics_port=unused_port)):
                pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{unused_port}/")


@pytest.fixture
def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def test_every_metric_is_documented_and_every_documented_one_is_there(client, fleet):
    await fleet.served(await fleet.machine("one"))
    text = await scrape(client)
    told = {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if name.startswith("certctl_")}
    documented = set(re.findall(r"^\| `(certctl_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    assert told == documented
