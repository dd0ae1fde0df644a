"""Connector packages that are broken, or that block, hurt nobody but themselves."""

import contextlib
import itertools
import json
import threading
import time

import pytest
from certctl_sdk.testing.fake_ca import csr_pem

BLOCKED_SECONDS = 10
READY_SECONDS = 0.2
LEASE_SECONDS = 3
GOOD = '''
from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.issuer import Issuer

class Config(ConnectorConfig):
    """No options."""

class Stranger(Issuer):
    kind = "Stranger"
    Config = Config
    async def issue(self, request, run):
        raise NotImplementedError

@hookimpl
def certctl_issuers():
    return [Stranger]
'''
BLOCKING = GOOD.replace("Stranger", "Blocking").replace(
    "        raise NotImplementedError",
    f"        import time\n        time.sleep({BLOCKED_SECONDS})\n        raise RuntimeError('slept well')",
)
#: Distribution: what is wrong with it, and how that is told.
BROKEN = {
    "broken-import": (("from certctl_core import hookimpl", "import no_such_sdk"), "No module named 'no_such_sdk'"),
    "broken-exit": (("from certctl_core import hookimpl", "raise SystemExit(3)"), "SystemExit: 3"),
    "broken-syntax": (("class Stranger(Issuer):", "class Stranger(Issuer:"), "SyntaxError"),
    "broken-hook": (("def certctl_issuers", "def certctl_isuers"), "unknown hook"),
    "broken-abstract": (("async def issue", "async def sign"), "abstract: issue missing"),
    "broken-sync": (("async def issue", "def issue"), "issue is not 'async def'"),
    "broken-ours": (('"Stranger"', '"StepCA"'), "kind StepCA belongs to certctl-issuer-stepca"),
    "broken-twin-one": (('"Stranger"', '"Twin"'), "another package also brings Twin"),
    "broken-twin-two": (('"Stranger"', '"twin"'), "another package also brings twin"),
}


@pytest.fixture(scope="module")
def server(stage, tmp_path_factory):
    place = tmp_path_factory.mktemp("strange-packages")
    for name, ((right, wrong), _) in BROKEN.items():
        assert right in GOOD
        stage.distribution(place, name, GOOD.replace(right, wrong, 1), version="2.5")
    stage.distribution(place, "stranger", GOOD)
    stage.distribution(place, "blocking", BLOCKING, version="0.9")
    return stage.server(PYTHONPATH=str(place), CERTCTL_JOB_LEASE=f"{LEASE_SECONDS}s").start()


def assert_all_are_told(found):
    left_out = {each["distribution"]: each for each in found["failed"]}
    assert set(left_out) == set(BROKEN)
    for name, (_, told) in BROKEN.items():
        assert left_out[name]["version"] == "2.5"
        assert told in left_out[name]["error"]
    kinds = {each["kind"]: (each["distribution"], each["version"]) for each in found["loaded"]}
    assert (kinds["Stranger"], kinds["Blocking"]) == (("stranger", "1.0"), ("blocking", "0.9"))
    assert {"GenericCA", "NGINX", "Webhook"} <= set(kinds)
    assert not {"StepCA", "Twin", "twin"} & set(kinds)


def test_the_api_names_broken_packages_with_version_and_reason(server):
    assert_all_are_told(server.get("connectors"))


def test_the_command_line_names_them_too(stage, server):
    assert_all_are_told(json.loads(stage.run(server, "certctl", "--format", "json", "connectors").stdout))
    table = stage.run(server, "certctl", "connectors").stdout
    for name in BROKEN:
        assert name in table


def test_the_log_names_them_at_the_start(server):
    told = {each["dist"] for each in server.events("connector package left out")}
    assert told == {f"{name} 2.5" for name in BROKEN}


def test_everything_else_works_beside_them(server):
    certificate = server.order("unhurt.example.com")["id"]
    server.post(f"certificates/{certificate}/renew", {"csr_pem": csr_pem("unhurt.example.com")})
    assert server.until(f"certificates/{certificate}", lambda row: row.get("fingerprint"), "the certificate")
    row = server.post("issuers", {"name": "twin", "type": "StepCA", "config": {}})
    assert row["status"] == "incomplete"


class Pulse:
    """Asks /ready in a closed loop and keeps how long each answer took."""

    def __init__(self, server):
        self._server = server
        self.seconds = []

    @contextlib.contextmanager
    def taken(self):
        over = threading.Event()
        thread = threading.Thread(target=self._loop, args=(over,))
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def _loop(self, over):
        with self._server.client("nobody") as http:
            while not over.wait(0.01):
                begin = time.monotonic()
                good = http.get("/ready").status_code == 200
                self.seconds.append(time.monotonic() - begin if good else float("inf"))

    def p99(self):
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


def blocked(server, number):
    """Let a connector block; return the job, the beats of its lease and the answers meanwhile."""
    name = f"blocked-{number}.example.com"
    issuer = server.post("issuers", {"name": name, "type": "Blocking", "config": {}})["id"]
    certificate = server.order(name, issuer_id=issuer)["id"]
    job = server.post(f"certificates/{certificate}/renew", {"csr_pem": csr_pem(name)})["job_id"]
    server.until(f"jobs/{job}", lambda row: row["status"] == "Running", "the job to run")
    begin, leases = time.monotonic(), {}
    with Pulse(server).taken() as pulse:
        while (row := server.get(f"jobs/{job}"))["status"] == "Running":
            leases.setdefault(row["lease_until"], time.monotonic() - begin)
            assert time.monotonic() - begin < 3 * BLOCKED_SECONDS
            time.sleep(0.1)
    assert time.monotonic() - begin > BLOCKED_SECONDS - 1
    return row, sorted(leases.values()), pulse


def test_a_connector_that_blocks_delays_neither_answers_nor_the_beats_of_its_lease(server):
    slowest = []
    while not slowest or (slowest[-1] >= READY_SECONDS and len(slowest) < 3):  # others may be at work on this machine
        job, beats, pulse = blocked(server, len(slowest))
        # A beat every third of the lease, all the time.
        assert max(after - before for before, after in itertools.pairwise(beats)) < LEASE_SECONDS
        assert len(beats) >= BLOCKED_SECONDS / LEASE_SECONDS * 2
        assert job["attempts"] == 1
        assert "bug in blocking 0.9: RuntimeError: slept well" in job["last_error"]
        slowest.append(pulse.p99())
    assert len(pulse.seconds) > 100
    assert min(slowest) < READY_SECONDS
    told = server.events("a connector blocks all others")
    assert ["blocking.py" in event["at"] for event in told] == [True] * len(slowest)
