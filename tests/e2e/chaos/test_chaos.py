"""Server and agent die again and again; every certificate still ends served, and no key was ever beside a wrong one."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.crash import Death, Journal, seed, tell
from chaos_sites import DYING, SHORT_LEASES, Observer, Site, fits, nothing_was_doubled
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

ANY_MOMENT = "at any moment"
#: In the order of docs/main-flow.md.
OF_SERVER = (
    *("accept the csr", "claim", "intent", "save", "sign", "store", "end in the transaction"),
    *("deploy in the transaction", "offer", "hear a report", "hand out the certificate"),
)
OF_AGENT = (
    *("make the key", "make the csr", "send the csr", "begin", "fetch", "flip", "check and reload", "verify", "commit"),
    *("promote the key", "say what is served"),
)
#: Which time, for steps that are gone through several times in one deployment.
TURNS = {"check and reload": 2, "begin": 2}
#: Only after such a death is there something to put right at the next start.
LEFT_BEHIND = {"flip": ("check and reload", "recover"), "claim": ("claim", "take over")}
PATIENCE = 150
LONGEST_LIFE = 45


class Mortal:
    """A program that dies one death after the other."""

    def __init__(self, program, which, deaths, journal):
        self.program = program
        self.died = Counter()
        self._left = list(deaths)
        self._death, self._until, self._since = None, 0.0, 0.0
        own = {"PYTHONPATH": str(DYING), "CRASH_LOG": str(journal.path), "CRASH_PROGRAM": which}
        self.program.environ |= own

    @property
    def done(self):
        return self._death is None and not self._left

    def live(self, dice):
        """Start the next life, the last of which has no end."""
        self._death = self._left.pop(0) if self._left else None
        self._since = time.monotonic()
        self._until = self._since + dice.uniform(1, 5)
        where = self._death.environment() if isinstance(self._death, Death) else {"CRASH_AT": ""}
        self.program.environ |= where
        self.program.launch()

    def watch(self, dice):
        """Kill it if that is its death, and let it rise again if it died."""
        if self._death == ANY_MOMENT and time.monotonic() > self._until:
            self.program.end(signal.SIGKILL)
        unreached = self._death not in {None, ANY_MOMENT} and time.monotonic() - self._since > LONGEST_LIFE
        if unreached:
            # No work led there in this life; it dies all the same, and the report says where it did not.
            self.program.end(signal.SIGKILL)
        if not self.program.running:
            assert self.program.end() == -signal.SIGKILL, "it ended by itself"
            assert self._death is not None, "it died of itself"
            self.died[f"{self._death}: not reached, killed" if unreached else str(self._death)] += 1
            self.live(dice)


def drawn(dice, steps, kills, *, all_sides):
    """Return one death after the other: at every step, before it or after it or both, and at any moment."""
    sides = ("before", "after")
    groups = [
        [Death(step, when, dice.randint(1, TURNS.get(step, 1)))]
        for step in steps
        for when in (sides if all_sides else (dice.choice(sides),))
    ]
    left, mended = LEFT_BEHIND["flip" if "flip" in steps else "claim"]
    groups += [[Death(left, "after"), Death(mended, when)] for when in sides]
    groups += [[ANY_MOMENT]] * max(2, kills - sum(map(len, groups)))
    dice.shuffle(groups)
    return [death for group in groups for death in group]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request):
    """Empty for a SQLite file of the server's own."""
    if request.param == "sqlite":
        return ""
    return request.getfixturevalue("postgres").create(f"chaos_{os.urandom(4).hex()}")


@pytest.fixture
def server(stage, database_url):
    return stage.server(database_url=database_url, **SHORT_LEASES).start()


@pytest.fixture
def agent(stage, server):
    return stage.agent(server, CERTCTL_VERIFY_DELAY="50ms", CERTCTL_VERIFY_TIMEOUT="5s")


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


class Inventory:
    """The certificates, and what is asked for meanwhile over an API that is not always there."""

    def __init__(self, server, agent, nginx, count):
        self.server = server
        self.sites = {}
        self.retried = []
        self.errors = {}
        for number in range(count):
            site = Site(nginx, f"site{number}.example.com")
            self.sites[site.order(server, agent)] = site
        subprocess.run(nginx.reload_command, check=True)
        agent.allow_all_of(nginx)
        self.unrenewed = list(self.sites)

    def keep_busy(self, dice, *, ends):
        """Renew something if there is too little to do; with ``ends``, only what was never renewed."""
        with contextlib.suppress(httpx.TransportError):
            if not self._jobs("Pending", "AwaitingCSR", "Running"):
                # One death takes all orders with it that were under way at once.
                self._try_again(self._jobs("Failed"))
            if len(self._jobs("Pending", "AwaitingCSR", "Running")) < 4 and (self.unrenewed or not ends):
                id = self.unrenewed[0] if self.unrenewed else dice.choice(list(self.sites))
                # What is still in its first issue cannot be renewed.
                issued = self.server.get(f"certificates/{id}/versions")["data"]
                status, _ = self.server.call("POST", f"certificates/{id}/renew", {}) if issued else (409, None)
                assert status in {202, 409}
                if self.unrenewed:
                    del self.unrenewed[0]
                    self.unrenewed += [id] if status == 409 else []

    def calm(self):
        """Whether nothing is to be done any more; what crashed its worker three times is tried again."""
        with contextlib.suppress(httpx.TransportError):
            failed = self._jobs("Failed")
            self.errors |= {job["id"]: job["last_error"] for job in failed}
            assert not [error for error in self.errors.values() if "no private key" in error], self.errors
            self._try_again(failed)
            return not failed and not self._jobs("Pending", "AwaitingCSR", "Running")
        return False

    def _try_again(self, failed):
        for job in failed:
            if job.get("last_error") == "crashed its worker" and "next_retry_at" not in job:
                status, body = self.server.call("POST", f"jobs/{job['id']}/retry", {})
                # While another order of that certificate is open, it waits for the next look.
                assert status in {200, 409}, body
                self.retried += [job["id"]] if status == 200 else []

    def _jobs(self, *states):
        return [job for state in states for job in self.server.get("jobs", status=state, per_page=500)["data"]]


SHORT = pytest.param(10, 12, marks=pytest.mark.timeout(600), id="short")
FULL = pytest.param(100, 30, marks=pytest.mark.soak, id="full")


@pytest.mark.parametrize(("count", "kills"), [SHORT, FULL])
async def test_every_certificate_ends_served_whoever_is_killed(
    count, kills, stage, server, agent, journal, database_url
):
    dice = random.Random(seed())
    nginx = stage.nginx()
    inventory = Inventory(server, agent, nginx, count)
    server.end(signal.SIGKILL)
    whole = count > 10
    mortals = [
        Mortal(server, "server", drawn(dice, OF_SERVER, kills, all_sides=whole), journal),
        Mortal(agent, "agent", drawn(dice, OF_AGENT, kills, all_sides=whole), journal),
    ]
    began = time.monotonic()
    with Observer(list(inventory.sites.values())) as observer:
        die_often(mortals, inventory, dice)
        come_to_rest(mortals, inventory, dice)
    report(mortals, inventory, observer, time.monotonic() - began)
    assert observer.wrong == []
    served_are_the_newest(server, agent, nginx, inventory)
    for mortal in mortals:
        assert mortal.died.total() >= kills
        mortal.program.end(signal.SIGKILL)
    await nothing_was_doubled(database_url or f"sqlite://{server.data_dir / 'certctl.db'}", journal)


def die_often(mortals, inventory, dice):
    for mortal in mortals:
        mortal.live(dice)
    while not all(mortal.done for mortal in mortals):
        for mortal in mortals:
            mortal.watch(dice)
        inventory.keep_busy(dice, ends=False)
        time.sleep(0.05)


def come_to_rest(mortals, inventory, dice):
    end = time.monotonic() + PATIENCE + 2 * len(inventory.sites)
    while inventory.unrenewed or not inventory.calm():
        for mortal in mortals:
            mortal.watch(dice)
        inventory.keep_busy(dice, ends=True)
        assert time.monotonic() < end, "jobs are open still"
        time.sleep(0.1)


def report(mortals, inventory, observer, seconds):
    for mortal in mortals:
        tell(f"{mortal.program.name}: {mortal.died.total()} kills")
        tell(*(f"  {count:3} {death}" for death, count in sorted(mortal.died.items())))
    tell(f"{seconds:.0f} s, {observer.reads} reads of {len(observer.seen)} pairs")
    tell(*(f"failed meanwhile: {id}: {error}" for id, error in inventory.errors.items()))
    tell(f"retried after three crashes: {', '.join(inventory.retried) or 'none'}")


def served_are_the_newest(server, agent, nginx, inventory):
    """As a client sees it in a handshake; and the agent has the key in its place."""
    for id, site in inventory.sites.items():
        versions = server.all(f"certificates/{id}/versions")
        assert len(versions) >= 2
        der = x509.load_pem_x509_certificate(versions[-1]["pem_chain"].encode())
        assert x509.load_der_x509_certificate(nginx.served(site.name)).fingerprint(SHA256()) == der.fingerprint(
            SHA256()
        )
        row = server.get(f"certificates/{id}")
        assert (row["status"], row["deployment_state"]) == ("Active", "served"), row
        key = (agent.state_dir / "keys" / f"{id}.key").read_bytes()
        assert fits(versions[-1]["pem_chain"].encode(), key)
