"""Processes that are stopped for long and go on where they were: the others take over, nothing happens twice."""

import contextlib
import os
import signal
import time

import pytest
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_sdk.testing.postgres import Postgres

LEASE_SECONDS = 2
THOUGHT_SECONDS = 3
LEADER_SECONDS = 15
SETTINGS = {
    "CERTCTL_JOB_LEASE": f"{LEASE_SECONDS}s",
    "CERTCTL_RATE_LIMIT_ENABLED": "false",
    "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL": "1s",
}
STOPS = [
    pytest.param(3 * LEASE_SECONDS, id="three leases"),
    pytest.param(600, id="ten minutes", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
]


@pytest.fixture(scope="module")
def packages(stage):
    """Where the thinking issuer is installed."""
    return {"PYTHONPATH": str(stage.thinker(THOUGHT_SECONDS))}


@pytest.fixture(scope="module")
def servers(stage, redis, packages):
    """Two servers and two workers on one PostgreSQL; those who were last to start are at the end."""
    shared = SETTINGS | packages | {"CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex()}
    cluster = stage.stack.enter_context(Postgres())
    shared |= {"CERTCTL_BROKER_URL": redis.url, "database_url": cluster.create("stopped")}
    return [stage.server(**shared).start() for _ in range(2)]


@pytest.fixture(scope="module")
def workers(stage, servers, packages):
    made = [stage.worker(servers[0], f"worker{number}") for number in range(2)]
    for worker in made:
        worker.environ |= packages
    return [worker.start() for worker in made]


@contextlib.contextmanager
def stopped(*programs):
    """Let processes stand still meanwhile."""
    for program in programs:
        os.kill(program.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for program in programs:
            os.kill(program.pid, signal.SIGCONT)


def begun(server, name, waiting):
    """Order of the thinking issuer; return the certificate and the number of the process that has its job."""
    issuer = server.post("issuers", {"name": name, "type": "Thinker", "config": {}})["id"]
    id = server.order(name, issuer_id=issuer)["id"]
    server.post(f"certificates/{id}/renew", {"csr_pem": csr_pem(name)})
    waiting(lambda: server.jobs(id)[0]["status"] == "Running", "the order to be placed")
    [run] = server.all("audit", action="job_running", resource_id=server.jobs(id)[0]["id"])
    return id, int(run["details"]["worker"].split(":")[-2])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", STOPS)
def test_others_take_over_from_who_stands_still_and_it_writes_nothing_when_it_goes_on(
    servers, workers, waiting, seconds
):
    leader = max(servers, key=lambda server: [each["epoch"] for each in server.events("leading")][-1:])
    other = next(server for server in servers if server is not leader)
    plain = other.order(f"plain{seconds}.example.com")["id"]
    other.sign(plain, f"plain{seconds}.example.com")
    thinking, pid = begun(other, f"thinking{seconds}.example.com", waiting)
    worker = next(worker for worker in workers if worker.pid == pid)
    signed, led = [], len(other.events("leading"))
    began = time.monotonic()
    with stopped(leader, worker):
        while time.monotonic() - began < seconds:
            signed.append(other.sign(plain, f"plain{seconds}.example.com"))
            time.sleep(min(1.0, seconds / 60))
        waiting(lambda: other.jobs(thinking)[0]["status"] == "Failed", "the other worker to take over")
        waiting(lambda: len(other.events("leading")) > led, "the other server to lead", LEADER_SECONDS)
        [job] = other.jobs(thinking)
        told = other.audit(job["id"])
    waiting(leader.ready, "the server to be back")
    signed += [leader.sign(plain, f"plain{seconds}.example.com") for _ in range(5)]
    assert sorted(signed)[len(signed) // 2] < 2, signed
    assert len(other.fingerprints(plain)) == len(signed) + 1
    assert {each["attempts"] for each in other.jobs(plain)} == {1}
    assert (job["attempts"], job["last_error"]) == (2, "thought about it")
    assert other.jobs(thinking) == [job]
    assert other.audit(job["id"]) == told
    assert len(other.events("leading")) == led + 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", STOPS)
def test_one_process_that_stood_still_goes_on_alone(stage, packages, waiting, seconds):
    server = stage.server(**SETTINGS, **packages).start()
    plain = server.order("plain.example.com")["id"]
    server.sign(plain, "plain.example.com")
    thinking, _ = begun(server, "thinking.example.com", waiting)
    with stopped(server):
        time.sleep(seconds)
    assert server.sign(plain, "plain.example.com") < 5
    waiting(lambda: server.jobs(thinking)[0]["status"] == "Failed", "the order to end")
    [job] = server.jobs(thinking)
    # Ten minutes are as long as any call may take.
    assert job["last_error"] in {"thought about it", "no result within 600 s"}
    assert job["attempts"] <= 2
    assert len(server.fingerprints(plain)) == 2
    assert [each["attempts"] for each in server.jobs(plain)] == [1, 1]
