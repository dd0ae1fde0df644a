"""Clocks that are set by hours, of a process or of the database's machine: nothing stops, nothing happens twice.

libfaketime moves the clocks of single processes; the machine's own is never touched.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import pytest
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_sdk.testing.postgres import Postgres

LEASE_SECONDS = 2
LONG_AGO = "-30d"
CACHED_SECONDS = 1.5
"""How long libfaketime takes at most to notice."""
PHASE_SECONDS = 3 * LEASE_SECONDS
SETTINGS = {
    "CERTCTL_JOB_LEASE": f"{LEASE_SECONDS}s",
    "CERTCTL_RATE_LIMIT_ENABLED": "false",
    "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL": "1s",
}
#: libfaketime refuses the call by which Python sleeps (clock_nanosleep until a moment).
SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"


class Clock:
    """What a process that is told ``environ`` takes for the time."""

    def __init__(self, path):
        self._path = path
        [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1") or [None]
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set("+0")

    def set(self, offset):
        """Put it ``+2h`` ahead, or ``-2h`` behind."""
        made = self._path.with_suffix(".new")
        made.write_text(offset)
        made.chmod(0o644)
        made.rename(self._path)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    if not list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
        if os.environ.get("CI") == "true":
            pytest.fail("libfaketime is not installed")
        pytest.skip("libfaketime is not installed")
    # Not below pytest's own directory, which is closed to PostgreSQL's user.
    with tempfile.TemporaryDirectory(prefix="certctl-clocks-") as place:
        Path(place).chmod(0o755)
        yield {name: Clock(Path(place) / name) for name in ("database", "server", "worker", "embedded")}


@pytest.fixture(scope="module")
def cluster(clocks):
    cluster = Postgres()
    cluster.environ |= clocks["database"].environ
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def packages(stage):
    """Where the thinking issuer is installed."""
    place = stage.thinker(PHASE_SECONDS)
    (place / "sitecustomize.py").write_text(SLEEP)
    return {"PYTHONPATH": str(place)}


@pytest.fixture(scope="module")
def scaled(stage, cluster, redis, clocks, packages, waiting):
    """A server and a worker, each with a clock of its own; another worker stands by."""
    clocks["database"].set(LONG_AGO)
    time.sleep(CACHED_SECONDS)
    shared = {"CERTCTL_BROKER_URL": redis.url, "CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex()}
    shared |= SETTINGS | packages | {"database_url": cluster.create("clocks")}
    server = stage.server(**shared, **clocks["server"].environ).start()
    everybody = [server]
    for name in ("worker", "other"):
        worker = stage.worker(server, name)
        worker.environ |= packages | (clocks["worker"].environ if name == "worker" else {})
        everybody.append(worker.start())
    own_ca(server)
    clocks["database"].set("+0")
    for program in everybody:
        waiting(lambda program=program: program.events("the clock was set"), "the present to be noticed")
    return server


@pytest.fixture(scope="module")
def embedded(stage, clocks, packages, waiting):
    clocks["embedded"].set(LONG_AGO)
    server = stage.server(**SETTINGS, **packages, **clocks["embedded"].environ).start()
    own_ca(server)
    clocks["embedded"].set("+0")
    waiting(lambda: "the clock was set" in server.said, "the present to be noticed")
    return server


@pytest.fixture
def installation(request, victim):
    return request.getfixturevalue("embedded" if victim == "embedded" else "scaled")


def own_ca(server):
    """Let it come to be: one that was made a moment ago is not valid two hours before."""
    server.sign(server.order("first.example.com")["id"], "first.example.com")


@pytest.mark.parametrize("offset", ["+2h", "-2h"])
@pytest.mark.parametrize("victim", ["database", "server", "worker", "embedded"])
def test_a_clock_that_is_set_stops_nothing_and_doubles_nothing(clocks, installation, waiting, victim, offset):
    server, name = installation, f"{victim}{'ahead' if offset == '+2h' else 'behind'}.example.com"
    issuer = server.post("issuers", {"name": name, "type": "Thinker", "config": {}})["id"]
    profile = server.post("profiles", {"name": name, "max_ttl_seconds": 5400})["id"]
    plain = server.order(name)["id"]
    short = server.order(f"short.{name}", certificate_profile_id=profile)["id"]
    thinking = server.order(f"thinking.{name}", issuer_id=issuer)["id"]
    for id, each in ((plain, name), (short, f"short.{name}")):
        server.sign(id, each)
    leading = len(server.events("leading"))
    server.post(f"certificates/{thinking}/renew", {"csr_pem": csr_pem(f"thinking.{name}")})
    signed = []
    for time_ in (offset, "+0"):
        noticed = len(server.events("the clock was set"))
        clocks[victim].set(time_)
        if victim in {"database", "embedded"}:  # nobody else's clock counts
            waiting(lambda: len(server.events("the clock was set")) > noticed, "the time to be noticed")  # noqa: B023
        time.sleep(CACHED_SECONDS)  # what is signed by one clock and looked at by the other is refused, rightly
        end = time.monotonic() + PHASE_SECONDS
        while time.monotonic() < end:
            signed.append(server.sign(plain, name))
    assert max(signed) < 15, signed
    assert statistics.median(signed) < 2, signed
    assert len(server.fingerprints(plain)) == len(signed) + 1
    [thought] = server.jobs(thinking)
    assert (thought["attempts"], thought["last_error"]) == (1, "thought about it")
    assert {job["attempts"] for job in server.jobs(plain)} == {1}
    assert len(server.events("leading")) == leading
    # What lives for 90 minutes is due two hours later, by the clock that counts, and ordered once.
    became_due = victim in {"database", "embedded"} and offset == "+2h"
    assert [job["type"] for job in server.jobs(short)] == ["Issuance", *(["Renewal"] if became_due else [])]
