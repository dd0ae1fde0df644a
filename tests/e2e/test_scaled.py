"""Two servers and two workers on one PostgreSQL and one Redis are one installation, whichever of them is away."""

import contextlib
import os
import signal
import subprocess
import time

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.postgres import Postgres

LEASES = {"CERTCTL_JOB_LEASE": "3s", "CERTCTL_AGENT_OFFER_LEASE": "5s", "CERTCTL_RATE_LIMIT_ENABLED": "false"}
LEADER_SECONDS = 15


@pytest.fixture(scope="module")
def cluster():
    """A PostgreSQL of the module's own: it is stopped meanwhile."""
    with Postgres(synchronous_commit="on") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(cluster, redis):
    """What every process of the installation is told."""
    key = os.urandom(32).hex()
    return {
        "database_url": cluster.create("scaled"),
        "CERTCTL_BROKER_URL": redis.url,
        "CERTCTL_CONFIG_ENCRYPTION_KEY": key,
        **LEASES,
    }


@pytest.fixture(scope="module")
def servers(stage, shared):
    return [stage.server(**shared).start() for _ in range(2)]


@pytest.fixture(scope="module")
def workers(stage, servers):
    return [stage.worker(servers[0], f"worker{number}").start() for number in range(2)]


@pytest.fixture(scope="module")
def nginx(stage):
    return stage.nginx()


@pytest.fixture(scope="module")
def agent(stage, servers, nginx):
    agent = stage.agent(servers[0], CERTCTL_VERIFY_DELAY="50ms")
    agent.allow_all_of(nginx)
    return agent.start()


@pytest.fixture(scope="module")
def certificate(servers, workers, agent, nginx):
    """One that is served, ordered of the server that its agent does not ask."""
    target = servers[0].target(agent, nginx)
    made = servers[1].order("scaled.example.com", target)
    servers[1].served(made["id"])
    return made["id"]


def renewed(server, certificate, seconds=60.0):
    """Renew it and return how long it took until it was served."""
    before = len(server.fingerprints(certificate))
    began = time.monotonic()
    server.post(f"certificates/{certificate}/renew")
    fits = lambda row: row["deployment_state"] == "served" and row["status"] == "Active"  # noqa: E731
    while len(server.fingerprints(certificate)) == before:
        assert time.monotonic() - began < seconds, server.jobs(certificate)
        time.sleep(0.05)
    server.until(f"certificates/{certificate}", fits, "the renewed certificate to be served", seconds)
    return time.monotonic() - began


def test_servers_answer_and_workers_work(servers, workers, certificate):
    told = [row["details"] for row in servers[0].all("audit", action="job_running")]
    owners = {int(each["worker"].split(":")[-2]) for each in told if each["type"] in {"Issuance", "Renewal"}}
    assert owners
    assert owners.isdisjoint(server.pid for server in servers)


def test_a_bell_rings_in_every_process(servers, certificate):
    # Polls and workers look by themselves every five seconds; two hops of that would take longer.
    assert min(renewed(servers[1], certificate) for _ in range(2)) < 4


def test_without_redis_everything_takes_seconds_longer(servers, workers, certificate, redis, waiting):
    redis.stop()
    try:
        assert renewed(servers[1], certificate) < 40
        assert [server.ready() for server in servers] == [True, True]
        waiting(lambda: "unreachable" in httpx.get(f"{servers[1].url}/ready").text, "/ready to tell the truth")
    finally:
        redis.start()
    waiting(lambda: "unreachable" not in httpx.get(f"{servers[1].url}/ready").text, "the broker to be back", 30)
    assert min(renewed(servers[1], certificate) for _ in range(2)) < 4


def test_without_the_database_nobody_is_ready_and_nobody_ends(servers, workers, agent, certificate, cluster, waiting):
    everybody = [*servers, *workers, agent]
    pids = [program.pid for program in everybody]
    cluster.stop()
    try:
        for server in servers:
            waiting(lambda server=server: not server.ready(), "/ready to tell the truth")
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert server.call("GET", "certificates")[0] == 503
    finally:
        cluster.start()
    for server in servers:
        waiting(server.ready, "the server to find the database again")
    assert renewed(servers[0], certificate) < 60
    assert [program.pid for program in everybody if program.running] == pids


@pytest.fixture(scope="module")
def another(stage, redis):
    """A second PostgreSQL with our tables in it, whose installation is ended, and what its processes are told."""
    with Postgres(synchronous_commit="on") as cluster:
        told = {
            "database_url": cluster.create("another"),
            "CERTCTL_BROKER_URL": redis.url,
            "CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex(),
        }
        server = stage.server(**told).start()
        assert server.end() == 0
        yield cluster, server


@contextlib.contextmanager
def locked(cluster, table):
    """Let everybody who comes to the table wait; hand out whether somebody does."""
    take = f"BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600)"
    holder = subprocess.Popen(["psql", "-X", "-q", "-c", take, cluster.url("another")], stderr=subprocess.DEVNULL)
    locks = f"SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND granted = "
    try:
        while int(cluster.run(f"{locks} true AND mode = 'AccessExclusiveLock'", database="another")) == 0:
            time.sleep(0.05)
        yield lambda: int(cluster.run(f"{locks} false", database="another"))
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("table", ["setting", "issuer"])
def test_a_server_waits_for_a_database_that_goes_away_amid_its_start(another, waiting, table):
    cluster, server = another
    with locked(cluster, table) as waits:
        server.launch()
        waiting(waits, f"the start to come to the table {table}")
        cluster.stop()
    cluster.start()
    waiting(server.ready, "the server to be ready")
    assert server.end() == 0


def test_a_worker_waits_for_a_database_that_goes_away_amid_its_start(another, stage, waiting):
    cluster, server = another
    worker = stage.worker(server, "late")
    with locked(cluster, "setting") as waits:
        worker.launch()
        waiting(waits, "the start to come to its settings")
        cluster.stop()
    cluster.start()
    waiting(lambda: worker.events("worker ready"), "the worker to be ready")
    assert worker.end() == 0


def beats(server):
    return {row["name"]: row["finished_at"] for row in server.get("health")["loops"]}


def test_leadership_moves_when_the_leader_dies(servers, certificate, waiting):
    leader = next(server for server in servers if server.events("leading"))
    other = next(server for server in servers if server is not leader)
    known = len(other.events("leading"))
    leader.kill()
    waiting(lambda: len(other.events("leading")) > known, "the other server to lead", LEADER_SECONDS)
    leader.start()
    leader.speak(leader.key)
    assert renewed(other, certificate) < 30


def test_a_worker_that_dies_is_replaced_and_one_that_is_told_to_stop_ends_well(servers, workers, certificate):
    first, second = workers
    first.kill()
    assert renewed(servers[0], certificate) < 30
    first.start()
    began = time.monotonic()
    assert second.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15
    assert renewed(servers[0], certificate) < 30
    second.start()


def test_it_does_not_start_without_a_key_and_says_how_to_make_one(stage, shared):
    server = stage.server(**shared | {"CERTCTL_CONFIG_ENCRYPTION_KEY": ""})
    server.launch()
    assert server.end(signal.SIGCONT) == 1
    assert "CERTCTL_CONFIG_ENCRYPTION_KEY" in server.said
    assert "openssl rand" in server.said


def test_a_worker_alone_says_what_it_needs(stage, shared):
    server = stage.server()
    worker = stage.worker(server, "alone")
    worker.launch()
    assert worker.end(signal.SIGCONT) == 1
    assert "CERTCTL_BROKER_URL" in worker.said
