"""An order becomes a stored certificate, and becomes one once, wherever the engine is killed meanwhile."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from certctl_core.x509 import read_certificate, read_csr
from certctl_sdk.testing.crash import Death, Journal, broken_histories, seed, tell, unexplained_signatures
from certctl_server import db
from certctl_server.jobs.tables import Job
from server_flow import ordered

PROGRAM = Path(__file__).with_name("crashing_engine.py")
MAIN_FLOW = ("claim", "intent", "save", "sign", "store", "end in the transaction", "deploy in the transaction")
AROUND_IT = ("lead", "seal")
ANY_MOMENT = "at any moment"
PATIENCE = 60
LONGEST_LIFE = 30
DUE = db.Sql("SELECT count(*) AS n FROM job WHERE due_at IS NOT NULL")
# What an agent reports is a row of its own beside the move that follows from it.
MOVES = db.Sql(
    """
    SELECT resource_id, details FROM audit_event
    WHERE resource_type = 'job' AND action <> 'job_status_reported' ORDER BY number
    """
)
OPEN = db.Sql("SELECT count(*) AS n FROM job WHERE place IS NOT NULL")


class Engine:
    """One process after the other; what kills each is drawn beforehand."""

    def __init__(self, environ, journal):
        self._environ = environ
        self._journal = journal
        self._process = None
        self.death = None
        self._since = self._delay = 0.0

    def start(self, death=None, delay=0.0):
        self.death, self._delay, self._since = death, delay, time.monotonic()
        where = death.environment() if isinstance(death, Death) else {}
        self._process = subprocess.Popen([sys.executable, str(PROGRAM)], env=self._environ | where)

    @property
    def age(self):
        return time.monotonic() - self._since

    def ended(self):
        """Whether it is dead; a process that was to die at any moment does so here."""
        if self.death == ANY_MOMENT and self._worked_for() > self._delay:
            self.kill()
        return self._process.poll() is not None

    def _worked_for(self):
        started = [event["at"] for event in self._journal.events("started") if event["pid"] == self._process.pid]
        return time.monotonic() - started[-1] if started else -1

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        self._journal.note("killed", victim=self._process.pid)

    def reap(self):
        """Return how it ended."""
        return self._process.wait(10)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


@pytest.fixture
def engines(grounds, database, database_url, tmp_path, journal):
    """One where there can be one, two replicas on PostgreSQL."""
    environ = {
        **os.environ,
        "CERTCTL_DATA_DIR": str(tmp_path),
        "CERTCTL_DATABASE_URL": database_url,
        "CERTCTL_CONFIG_ENCRYPTION_KEY": os.urandom(32).hex(),
        "CERTCTL_JOB_LEASE": "1s",
        "CERTCTL_SCHEDULER_JOB_PROCESSOR_INTERVAL": "200ms",
        "CRASH_LOG": str(journal.path),
    }
    engines = [Engine(environ, journal) for _ in range(2 if database == "postgres" else 1)]
    yield engines
    for engine in engines:
        engine.kill()


async def new_order(number):
    """Order a certificate with a CSR made by the caller; return the job's id."""
    _, job_id = await ordered(f"site{number}.example", offer_at=None)
    return job_id


def drawn(dice, kills):
    """Return how each process dies: at every step of the flow, before and after, and the rest at any moment."""
    sides = ("before", "after")
    steps = [Death(step, when) for step in (*MAIN_FLOW, *AROUND_IT) for when in sides]
    while len(steps) < kills * 4 // 5:
        steps.append(Death(dice.choice(MAIN_FLOW), dice.choice(sides), dice.randint(1, 3)))
    deaths = [*steps, *[ANY_MOMENT] * max(2, kills - len(steps) - len(sides))]
    dice.shuffle(deaths)
    # There is something to take over only while somebody else goes on dying.
    deaths[len(deaths) // 2 : len(deaths) // 2] = [Death("take over", "before")]
    deaths[:0] = [Death("take over", "after")]
    return deaths


async def killed_again_and_again(engines, deaths, dice, orders):
    """Let the engines work while they die one death after the other; return how many they died of each kind."""
    left, died = list(deaths), Counter()
    busy = list(engines)
    for engine in busy:
        engine.start(left.pop(0), dice.uniform(0, 0.5))
    while busy:
        for engine in list(busy):
            unreached = engine.age > LONGEST_LIFE
            if unreached:
                # No work led there in this life; it dies all the same, and the report says where it did not.
                engine.kill()
            if unreached or engine.ended():
                assert engine.reap() == -signal.SIGKILL
                died[f"{engine.death}: not reached, killed" if unreached else str(engine.death)] += 1
                if left:
                    engine.start(left.pop(0), dice.uniform(0, 0.5))
                else:
                    busy.remove(engine)
        if (await db.fetch(DUE))[0]["n"] < 3:
            orders.append(await new_order(len(orders)))
        await asyncio.sleep(0.02)
    return died


async def all_done(client):
    """Wait until no order is open, trying those again that crashed their worker; return these."""
    crashed = []
    async with asyncio.timeout(PATIENCE):
        while True:
            failed = await Job.select(Job.id, Job.last_error).where(Job.status == "Failed")
            for job in failed:
                assert job["last_error"] == "crashed its worker"
                answer = await client.post(f"/api/v1/jobs/{job['id']}/retry", json={})
                assert answer.status_code == 200, answer.text
                crashed.append(job["id"])
            if not failed and (await db.fetch(OPEN))[0]["n"] == 0:
                return crashed
            await asyncio.sleep(0.1)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [22, pytest.param(100, marks=pytest.mark.soak)], ids=["short", "full"])
async def test_an_order_becomes_one_stored_certificate_through_any_number_of_kills(kills, engines, client, journal):
    dice, orders = random.Random(seed()), []
    died = await killed_again_and_again(engines, drawn(dice, kills), dice, orders)
    for engine in engines:
        engine.start()
    crashed = await all_done(client)
    tell(f"{sum(died.values())} kills, {len(orders)} orders; retried after three crashes: {crashed or 'none'}")
    tell(*(f"  {count:3} {death}" for death, count in sorted(died.items())))
    assert sum(died.values()) >= kills
    await no_order_is_lost(orders)
    await nothing_is_signed_twice_without_a_reason(journal)
    await every_state_follows_from_the_one_before()
    nobody_worked_beside_another(journal)


async def no_order_is_lost(orders):
    jobs = {job["id"]: job for job in await Job.select()}
    versions = await db.fetch(db.Sql("SELECT job_id, certificate_id, csr_pem, pem_chain FROM certificate_version"))
    assert {jobs[id]["status"] for id in orders} == {"Completed"}
    assert Counter(version["job_id"] for version in versions) == Counter(orders)
    for version in versions:
        csr = read_csr(version["csr_pem"])
        assert csr.sha256 == jobs[version["job_id"]]["csr_sha256"]
        assert read_certificate(version["pem_chain"]).public_key_sha256 == csr.public_key_sha256


async def nothing_is_signed_twice_without_a_reason(journal):
    intents = await db.fetch(db.Sql("SELECT * FROM intent ORDER BY job_id, number"))
    assert unexplained_signatures(journal, intents) == []
    assert {intent["status"] for intent in intents} == {"settled"}


async def every_state_follows_from_the_one_before():
    fences = {job["id"]: job["fence"] for job in await Job.select(Job.id, Job.fence)}
    assert broken_histories(await db.fetch(MOVES), fences) == []


def nobody_worked_beside_another(journal):
    """No order was worked on by two at once: one who was killed had ended before the next began."""
    dead = {event["pid"]: event["at"] for event in journal.events("died")}
    dead |= {event["victim"]: event["at"] for event in journal.events("killed")}
    left = {(event["job"], event["fence"]): event["at"] for event in journal.events("left")}
    began = defaultdict(list)
    for event in journal.events("began"):
        began[event["job"]].append(event)
    for job, turns in began.items():
        assert [turn["fence"] for turn in turns] == sorted({turn["fence"] for turn in turns})
        for turn, following in pairwise(turns):
            end = left.get((job, turn["fence"]), dead.get(turn["pid"]))
            assert end is not None
            assert end <= following["at"], f"{job}: fence {turn['fence']} and {following['fence']} at the same time"
