"""A fleet renews while everything around it is killed, stopped, cut off, flushed and restarted.

Embedded, and with two servers and two workers: nothing is lost, nothing is done twice, everything ends served.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.crash import Journal, seed, tell
from certctl_sdk.testing.postgres import Postgres
from chaos_network import Network, possible, relay
from chaos_sites import DYING, SHORT_LEASES, Observer, Site, fits, nothing_was_doubled

OPEN = ("Pending", "AwaitingCSR", "Running")
LEASE_SECONDS = 1.0
PATIENCE = 240
LEADER_SECONDS = 15


@dataclass(frozen=True)
class Size:
    machines: int
    certificates: int
    renewals: int
    kills: int
    cut_seconds: float
    stop_seconds: float

    @property
    def each(self):
        return self.renewals // (self.machines * self.certificates)


SHORT = Size(machines=2, certificates=5, renewals=100, kills=15, cut_seconds=6, stop_seconds=3 * LEASE_SECONDS)
FULL = Size(machines=5, certificates=20, renewals=1000, kills=100, cut_seconds=60, stop_seconds=10)


@dataclass
class Machine:
    """An agent and an NGINX of its own, in a network of their own."""

    network: Network
    nginx: object
    agent: object
    sites: dict = field(default_factory=dict)
    """By certificate id."""

    def reload(self):
        self.network.inside(lambda: subprocess.run(self.nginx.reload_command, check=True))


class Fleet:
    """Everything that runs, and what became of it."""

    def __init__(self, stage, size, journal, database_url="", cluster=None, redis=None):
        self.stage, self.size, self.journal = stage, size, journal
        self.cluster, self.redis = cluster, redis
        own = {"PYTHONPATH": str(DYING), "CRASH_LOG": str(journal.path), "CRASH_PROGRAM": "server", "CRASH_AT": ""}
        shared = SHORT_LEASES | own | {"CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex()}
        if redis:
            shared |= {"CERTCTL_BROKER_URL": redis.url, "BELLS": "unreliable"}
        self.servers = [stage.server(database_url=database_url, **shared).start() for _ in range(2 if redis else 1)]
        self.workers = [stage.worker(self.servers[0], f"worker{n}").start() for n in range(2 if redis else 0)]
        self.machines = []
        self.url = database_url or f"sqlite://{self.servers[0].data_dir / 'certctl.db'}"
        self.killed, self.retried, self.errors = Counter(), [], {}

    def api(self):
        """A server that answers, or None."""
        return next((server for server in random.sample(self.servers, len(self.servers)) if server.ready()), None)

    def machine(self, number, port):
        network = self.stage.stack.enter_context(Network(number))
        keep = self.stage.stack.enter_context
        keep(relay(network.outside, port, [f"127.0.0.1:{server.port}" for server in self.servers]))
        network.inside(lambda: keep(relay("127.0.0.1", port, [f"{network.outside}:{port}"])))
        nginx = network.inside(self.stage.nginx)
        agent = self.stage.agent(self.servers[0], name=f"agent{number}", CERTCTL_VERIFY_DELAY="50ms")
        agent.environ["CERTCTL_SERVER_URL"] = f"http://127.0.0.1:{port}"
        agent.allow_all_of(nginx)
        launch = agent.launch
        agent.launch = lambda: network.inside(launch)
        agent.start()
        self.machines.append(Machine(network, nginx, agent))

    def order_all(self):
        for machine in self.machines:
            for number in range(self.size.certificates):
                site = Site(machine.nginx, f"site{number}.{machine.agent.name}.example.com")
                machine.sites[site.order(self.servers[0], machine.agent)] = site
            machine.reload()

    @property
    def sites(self):
        return {id: site for machine in self.machines for id, site in machine.sites.items()}


class Renewals:
    """Asks for one renewal after the other, until every certificate had its share."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.left = Counter(dict.fromkeys(fleet.sites, fleet.size.each))
        self.asked = Counter()
        self.next = 0.0

    def ask(self):
        """Ask for some more, if few are under way."""
        if time.monotonic() < self.next or not (server := self.fleet.api()):
            return
        self.next = time.monotonic() + 0.3
        with contextlib.suppress(httpx.TransportError):
            busy = {row["certificate_id"] for row in of_states(server, *OPEN)}
            for id in [id for id, left in self.left.items() if left > 0 and id not in busy][:8]:
                status, body = server.call("POST", f"certificates/{id}/renew", {})
                assert status in {202, 409, 503}, body
                # A 409: still in its first issue, or renewed already by a request whose answer was lost.
                if status == 202:
                    self.left[id] -= 1
                    self.asked[id] += 1

    def calm(self):
        """Whether everything was asked for and nothing is to be done; what crashed its worker is tried again."""
        if +self.left or not (server := self.fleet.api()):
            return False
        with contextlib.suppress(httpx.TransportError):
            failed = of_states(server, "Failed")
            self.fleet.errors |= {job["id"]: job["last_error"] for job in failed}
            for job in failed:
                status, body = server.call("POST", f"jobs/{job['id']}/retry", {})
                assert status in {200, 409, 503}, body
                if status == 200:
                    self.fleet.retried.append(job["id"])
            return not failed and not of_states(server, *OPEN)
        return False


def of_states(server, *states):
    found = []
    for state in states:
        status, body = server.call("GET", "jobs", status=state, per_page=500)
        if status == 503:
            raise httpx.TransportError("the database is away")
        assert status == 200, body
        found += [job for job in body["data"] if "certificate_id" in job]
    return found


class Havoc:
    """Draws what happens next, does it, and puts it right later."""

    def __init__(self, fleet, dice):
        self.fleet, self.dice = fleet, dice
        self.done = Counter()
        self._mend = []
        self._next = time.monotonic()
        programs = [*fleet.servers, *fleet.workers, *(machine.agent for machine in fleet.machines)]
        kinds = {"kill": 6, "stop": 2, "cut": 1}
        if fleet.redis:
            kinds |= {"flush redis": 1, "restart redis": 1, "restart postgres": 1}
        self._programs = programs
        self._deck = [kind for kind, share in kinds.items() for _ in range(share)]
        self._stack = []

    @property
    def enough(self):
        return self.done["kill"] >= self.fleet.size.kills and all(self.done[kind] for kind in set(self._deck))

    def turn(self):
        """Put right what is due, raise the dead, and let the next thing happen."""
        now = time.monotonic()
        for moment, mend in [each for each in self._mend if each[0] <= now]:
            mend()
            self._mend.remove((moment, mend))
        for program in self._programs:
            if not program.running:
                assert program.end() == -signal.SIGKILL, f"{program.name} ended by itself"
                program.launch()
        if now >= self._next and not self.enough:
            self._next = now + self.dice.uniform(0.2, 1.5)
            if not self._stack:
                self._stack = self.dice.sample(self._deck, len(self._deck))
            kind = self._stack.pop()
            getattr(self, f"_{kind.replace(' ', '_')}")()
            self.done[kind] += 1

    def rest(self):
        """Put everything right."""
        for _, mend in self._mend:
            mend()
        self._mend.clear()
        self.turn()

    def _later(self, seconds, mend):
        self._mend.append((time.monotonic() + seconds, mend))

    def _kill(self):
        program = self.dice.choice(self._programs)
        if program.running:
            program.end(signal.SIGKILL)
            self.fleet.killed[program.name] += 1

    def _stop(self):
        program = self.dice.choice(self._programs)
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGSTOP)
            self._later(self.fleet.size.stop_seconds, lambda: self._resume(program.pid))

    @staticmethod
    def _resume(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _cut(self):
        machine = self.dice.choice(self.fleet.machines)
        machine.network.link("down")
        self._later(self.fleet.size.cut_seconds, lambda: machine.network.link("up"))

    def _flush_redis(self):
        with contextlib.suppress(OSError):
            self.fleet.redis.say("FLUSHALL")

    def _restart_redis(self):
        self._restart(self.fleet.redis)

    def _restart_postgres(self):
        self._restart(self.fleet.cluster)

    def _restart(self, service):
        """Let it be away for a while, unless it is already."""
        if service.start not in [mend for _, mend in self._mend]:
            service.stop()
            self._later(2, service.start)


@pytest.fixture(params=["embedded", "scaled"])
def fleet(request, stage, tmp_path):
    """The installation of each shape, with its machines."""
    possible()
    size = request.getfixturevalue("size")
    journal = Journal(tmp_path / "journal")
    stage.stack.callback(journal.close)
    if request.param == "embedded":
        made = Fleet(stage, size, journal)
    else:
        # What is committed stays, also when it is stopped as by a crash.
        cluster = stage.stack.enter_context(Postgres(synchronous_commit="on"))
        redis = request.getfixturevalue("redis")
        made = Fleet(stage, size, journal, cluster.create("fleet"), cluster, redis)
    offset = 100 if request.param == "scaled" else 1
    for number in range(size.machines):
        made.machine(offset + number, 8800 + number)
    return made


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(SHORT, id="short", marks=pytest.mark.timeout(600)),
        pytest.param(FULL, id="full", marks=pytest.mark.soak),
    ],
)
async def test_every_renewal_ends_served_whatever_happens(size, fleet):
    dice = random.Random(seed())
    fleet.order_all()
    renewals, havoc, began = Renewals(fleet), Havoc(fleet, dice), time.monotonic()
    with Observer(list(fleet.sites.values())) as observer:
        while not havoc.enough or +renewals.left:
            havoc.turn()
            renewals.ask()
            time.sleep(0.02)
        havoc.rest()
        end = time.monotonic() + PATIENCE
        while not renewals.calm():
            havoc.turn()
            assert time.monotonic() < end, "jobs are open still"
            time.sleep(0.2)
    report(fleet, havoc, renewals, observer, time.monotonic() - began)
    assert observer.wrong == []
    everything_is_served(fleet, renewals)
    for program in (*fleet.workers, *fleet.servers, *(machine.agent for machine in fleet.machines)):
        program.kill()
    jobs = await nothing_was_doubled(fleet.url, fleet.journal)
    deployments = [job for job in jobs if job["type"] == "Deployment" and job["status"] == "Completed"]
    assert max(Counter(job["version_id"] for job in deployments).values()) == 1


def report(fleet, havoc, renewals, observer, seconds):
    tell(f"{renewals.asked.total()} renewals, {fleet.killed.total()} kills in {seconds:.0f} s: {dict(fleet.killed)}")
    tell(f"and {dict(havoc.done)}")
    tell(f"{observer.reads} reads of {len(observer.seen)} pairs")
    tell(*(f"failed meanwhile: {id}: {error}" for id, error in fleet.errors.items()))
    tell(f"retried through the API: {len(fleet.retried)}")


def everything_is_served(fleet, renewals):
    server = fleet.api()
    for machine in fleet.machines:
        for id, site in machine.sites.items():
            row = server.get(f"certificates/{id}")
            assert (row["status"], row["deployment_state"]) == ("Active", "served"), row
            newest = server.fingerprints(id)[-1]
            served = machine.network.inside(lambda machine=machine, site=site: machine.nginx.served(site.name))
            assert sha256(served).hexdigest() == newest
            assert len(server.fingerprints(id)) > renewals.asked[id]
            key = (machine.agent.state_dir / "keys" / f"{id}.key").read_bytes()
            [*_, version] = server.all(f"certificates/{id}/versions")
            assert fits(version["pem_chain"].encode(), key)
