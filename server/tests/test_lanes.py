import asyncio
import json
import time
from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta

import pytest
import server_flow
from certctl_core.config import ConnectorConfig
from certctl_core.errors import RejectedError, TransientError
from certctl_core.issuer import IssuedCertificate, Revoker
from certctl_core.issuer import Issuer as IssuerConnector
from certctl_core.job import Cause, JobType
from certctl_core.x509 import read_csr
from certctl_sdk.http import Client
from certctl_sdk.testing.fake_ca import FakeCA, csr_pem
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates.orders import Order, order
from certctl_server.certificates.revoke import revocation_job
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs import bell, budgets, lanes
from certctl_server.jobs import state as job_state
from certctl_server.jobs.budgets import Bucket, decide, keys_of
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.lanes import ASKED_TO_WAIT, WAITS, Circuit, Failure, after_failure, after_success, fault_of
from certctl_server.jobs.priorities import FREE, NORMAL, URGENT
from certctl_server.jobs.state import claim, end, move, requeue
from certctl_server.jobs.tables import Budget, Job, Lane
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from server_flow import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)
HOUR = budgets.Rate(1, timedelta(hours=1), "account")
ISSUERS = "/api/v1/issuers"
EKU = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


class WebCA(FakeCA):
    """Signs for servers."""

    def sign(self, csr_pem):
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        wanted = [*csr.extensions, x509.Extension(EKU.oid, critical=False, value=EKU)]
        return self._build(csr.subject, csr.public_key(), wanted, ca=False).public_bytes(Encoding.PEM).decode()


SHARED = WebCA()
SOAK = [pytest.mark.soak, pytest.mark.timeout(1800)]


class PeerConfig(ConnectorConfig):
    url: str = ""


class Peer(IssuerConnector):
    """Does as the test says: over HTTP if it has an address, else by ``script``."""

    kind = "Peer"
    Config = PeerConfig
    script = None

    def __init__(self, config, host):
        super().__init__(config, host)
        self.http = Client("peer", host, config.url) if config.url else None

    async def issue(self, request, run):
        if self.http:
            await self.http.request("POST", f"/order/{'+'.join(map(str, request.sans))}", json={})
        elif type(self).script and (outcome := await type(self).script(request, run)):
            return outcome
        return IssuedCertificate(cert_pem=SHARED.sign(request.csr_pem), chain_pem=SHARED.cert_pem, reference="r")

    async def aclose(self):
        if self.http:
            await self.http.aclose()


class RevokingPeer(Peer):
    kind = "RevokingPeer"
    revoked = ()

    async def revoke(self, request, run):
        type(self).revoked += (request.cert_pem,)


assert issubclass(RevokingPeer, Revoker)


@pytest.fixture
def script(monkeypatch):
    """Set what a peer does with an order: a coroutine function that gets request and run."""
    return lambda work: monkeypatch.setattr(Peer, "script", staticmethod(work))


@pytest.fixture
async def peers(runner, ctx):
    """Workers with two issuers of which the test is the peer: iss-a and iss-b."""
    ctx.plugins.issuers |= {"Peer": Peer, "RevokingPeer": RevokingPeer}
    for id in ("iss-a", "iss-b"):
        await put_issuer(id)
    return runner


@pytest.fixture
async def quiet(runner):
    """No worker hears a bell or looks around: tests claim themselves."""
    bell.connect(None, None)
    await runner.stop()


async def put_issuer(id, kind="Peer", *, rates=(), most=25, **config):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Issuer.insert(Issuer(id=id, name=id, type=kind, status="ready", config=json.dumps(config), **times))
    await Lane.insert(Lane(name=f"issuer:{id}", concurrency=most, rates=json.dumps(rates)))


def just_now():
    """A moment that is past by the database's clock as well, which may be behind ours."""
    return db.now() - timedelta(seconds=1)


def rate(count, per_seconds, scope):
    return {"count": count, "per_seconds": per_seconds, "scope": scope}


async def set_rates(lane, *rates):
    await Lane.update(rates=json.dumps(rates)).where(Lane.name == lane)


async def ordered(*sans, issuer="iss-a", priority=None):
    """An order from one of the issuers of this file, which is due."""
    more = {} if priority is None else {"priority": priority, "urgency": priority}
    return await server_flow.ordered(*sans, issuer=issuer, due_at=just_now(), **more)


async def row_of(job_id):
    return await Job.select().where(Job.id == job_id).first()


async def ended(job_id):
    row = await row_of(job_id)
    return row if row["status"] not in {"Pending", "AwaitingCSR", "Running"} else None


async def ids(lane="issuer:iss-a", limit=100, owner="one"):
    return [job.id for job in await claim(owner, lane, limit=limit, lease=LEASE)]


async def actions(prefix="issuer_"):
    rows = await AuditEvent.select(AuditEvent.action).where(AuditEvent.action.like(f"{prefix}%")).order_by("number")
    return [row["action"] for row in rows]


# Budgets


@pytest.mark.parametrize(
    ("sans", "domains"),
    [
        (["a.example.co.uk", "b.example.co.uk"], ["example.co.uk"]),
        (["*.a.example.com", "other.org"], ["example.com", "other.org"]),
        (["me.github.io", "you.github.io"], ["me.github.io", "you.github.io"]),
        (["host", "192.0.2.1"], ["192.0.2.1", "host"]),
        (["me@mail.example.com", "https://www.example.com/x"], ["example.com"]),
    ],
)
def test_names_count_under_their_registered_domain(sans, domains):
    row = {"common_name": sans[0], "sans": json.dumps(sans)}
    assert keys_of(row, {"domain"}) == [f"domain {each}" for each in domains]


def test_one_set_of_names_is_one_however_it_is_spelt():
    one = keys_of({"common_name": "A.example", "sans": '["b.example"]'}, {"names", "account"})
    other = keys_of({"common_name": "", "sans": '["B.example.", "a.example"]'}, {"names", "account"})
    assert one == other
    assert keys_of({"common_name": "a.example", "sans": "[]"}, {"names"}) != one[1:]


def candidate(id, key="domain a", priority=NORMAL, waits_for=""):
    return {"id": id, "type": "Renewal", "priority": priority, "waits_for": waits_for}


def test_orders_that_wait_keep_their_place_and_urgent_ones_go_in_front():
    pace = timedelta(hours=1)
    bucket = Bucket("domain a", 0, 5, NOW, NOW + pace, pace, {NORMAL: NOW + 10 * pace})
    rows = [candidate("new"), candidate("urgent", priority=URGENT), candidate("known", waits_for="domain a")]
    choice = decide(rows, {row["id"]: ["domain a"] for row in rows}, {"domain a": bucket}, 25)
    at = {each["id"]: datetime.fromisoformat(each["due_at"]) for each in choice.later}
    assert at == {"new": NOW + 11 * pace, "urgent": NOW + pace, "known": NOW + pace}
    assert choice.take == []


@pytest.mark.parametrize("scope", ["account", "domain", "names"])
async def test_no_more_orders_begin_than_a_rate_allows_whoever_claims(peers, quiet, scope):
    await set_rates("issuer:iss-a", rate(3, 3600, scope))
    jobs = [(await ordered("a.example" if scope == "names" else f"{n}.a.example"))[1] for n in range(8)]
    taken = await asyncio.gather(*(ids(limit=2, owner=f"worker {n}") for n in range(6)))
    assert sorted(map(len, taken), reverse=True) == [2, 1, 0, 0, 0, 0]
    assert {id for some in taken for id in some} == set(jobs[:3])
    [spent] = {row["key"] for row in await Budget.select()}
    assert spent.partition(" ")[0] == scope
    assert await ids() == []
    # The oldest order leaves the window: exactly as many as have left it may follow.
    first = await Budget.select().order_by(Budget.total).first()
    long_ago = db.now() - timedelta(seconds=3600 + 61)
    await Budget.update(at=long_ago, arrived_at=long_ago).where(Budget.total == first["total"])
    await Job.update(due_at=just_now()).where(Job.due_at.is_not_null())
    await Lane.update(room_at=None).where(Lane.name == "issuer:iss-a")
    assert len(await ids()) == first["orders"]


async def test_a_full_domain_costs_no_claim_and_does_not_hold_up_the_others(peers, quiet):
    await set_rates("issuer:iss-a", rate(1, 3600, "domain"))
    full = [(await ordered(f"{n}.full.example"))[1] for n in range(5)]
    other = (await ordered("a.other.example"))[1]
    assert await ids(limit=10) == [full[0], other]
    window = HOUR.window
    moments = []
    for number, id in enumerate(full[1:], start=1):
        row = await row_of(id)
        assert (row["status"], row["attempts"], row["waits_for"]) == ("AwaitingCSR", 0, "domain full.example")
        assert abs(row["due_at"] - (db.now() + number * window)) < timedelta(seconds=30)
        moments.append(row["due_at"])
    assert moments == sorted(moments)


async def test_what_waits_for_room_is_shown_and_measured_anew_when_the_limits_change(client, peers, quiet):
    await client.put(f"{ISSUERS}/iss-a", json={"limits": {"rates": [rate(1, 3600, "domain")]}})
    jobs = [(await ordered(f"{n}.full.example"))[1] for n in range(3)]
    assert await ids() == jobs[:1]
    assert (await client.get(f"/api/v1/jobs/{jobs[1]}")).json()["waits_for"] == "domain full.example"
    await client.put(f"{ISSUERS}/iss-a", json={"limits": {"rates": [rate(2, 3600, "domain")]}})
    assert await ids() == jobs[1:2]
    await client.put(f"{ISSUERS}/iss-a", json={"limits": None})
    assert await ids() == jobs[2:]
    assert "waits_for" not in (await client.get(f"/api/v1/jobs/{jobs[2]}")).json()


async def test_what_is_put_off_while_the_limits_change_is_measured_anew(client, peers, quiet):
    await client.put(f"{ISSUERS}/iss-a", json={"limits": {"rates": [rate(1, 3600, "domain")]}})
    await ordered("a.full.example")
    assert len(await ids()) == 1
    _, job_id = await ordered("b.full.example")
    put_off = asyncio.Event()

    async def claims():
        async with db.transaction():
            assert await ids() == []
            put_off.set()
            await asyncio.sleep(0.5)

    async def changes():
        await put_off.wait()
        await client.put(f"{ISSUERS}/iss-a", json={"limits": {"rates": [rate(2, 3600, "domain")]}})

    await asyncio.gather(claims(), changes())
    assert await ids() == [job_id]


async def test_whoever_waits_for_a_lane_reads_the_clock_when_it_has_it(peers, quiet):
    held = asyncio.Event()

    async def holds():
        async with db.transaction():
            await lanes.room("issuer:iss-a", 1)
            held.set()
            await asyncio.sleep(0.5)
            return await db.present()

    async def waits():
        await held.wait()
        async with db.transaction():
            return (await lanes.room("issuer:iss-a", 1)).now

    released, seen = await asyncio.gather(holds(), waits())
    assert seen >= released


async def test_while_the_account_has_no_room_what_needs_none_still_goes(peers, quiet):
    await set_rates("issuer:iss-a", rate(2, 3600, "account"))
    asked = [(await ordered(f"{n}.example"))[1] for n in range(3)]
    [polled, crashed] = await claim("one", "issuer:iss-a", limit=5, lease=LEASE)
    await end(polled, job_state.JobState.PENDING, due_at=just_now())
    await job_state.release(Job.id == crashed.id, reason="test")
    await Job.update(due_at=just_now()).where(Job.id == crashed.id)
    certificate = (await row_of(asked[0]))["certificate_id"]
    [revocation] = await create([revocation_job(certificate, "iss-a", "01", {"reason": 1})], SYSTEM)
    await Job.update(due_at=just_now()).where(Job.id == revocation.id)
    assert sorted(await ids()) == sorted([polled.id, crashed.id, revocation.id])
    assert (await row_of(asked[2]))["attempts"] == 0
    lane = await Lane.select().where(Lane.name == "issuer:iss-a").first()
    assert abs(lane["room_at"] - db.now() - HOUR.window) < timedelta(seconds=30)


async def test_an_order_that_failed_needs_room_again(peers, quiet):
    await set_rates("issuer:iss-a", rate(1, 3600, "account"))
    _, job_id = await ordered("a.example")
    [job] = await claim("one", "issuer:iss-a", limit=5, lease=LEASE)
    assert (await row_of(job_id))["priority"] == FREE
    await end(job, job_state.JobState.FAILED, next_retry_at=db.now())
    assert (await row_of(job_id))["priority"] == URGENT
    await requeue(Job.id == job_id)
    assert await ids() == []


async def test_an_order_counts_as_placed_only_when_it_must_have_arrived(peers, quiet):
    await set_rates("issuer:iss-a", rate(1, 1, "account"))
    for name in ("a.example", "b.example"):
        await ordered(name)
    [slow] = await claim("one", "issuer:iss-a", limit=5, lease=LEASE)
    await asyncio.sleep(1.2)  # it may just be about to reach the CA
    assert await ids() == []
    await end(slow, job_state.JobState.COMPLETED)
    assert await ids() == []
    await asyncio.sleep(1.1)
    assert len(await ids()) == 1
    await Budget.update(at=db.now() - budgets.ON_ITS_WAY).where(Budget.arrived_at.is_null())
    await ordered("c.example")
    assert await ids() == []
    await asyncio.sleep(1.1)
    assert len(await ids()) == 1, "one that hangs at the CA stops the others for a minute, not for ever"


async def test_budgets_are_forgotten_when_they_are_past_every_window(peers, quiet):
    await set_rates("issuer:iss-a", rate(1, 60, "account"), rate(5, 3600, "account"))
    await ordered("a.example")
    await ids()
    await budgets.forget()
    [kept] = await Budget.select()
    assert kept["until"] - kept["at"] == HOUR.window + budgets.ON_ITS_WAY
    await Budget.update(until=just_now()).where(Budget.total == 1)
    await budgets.forget()
    assert await Budget.count() == 0


class StrictCA:
    """Counts orders in sliding windows and refuses what is too much, as a real one does."""

    def __init__(self, *rates):
        self.rates = rates
        self.seen = defaultdict(deque)
        self.orders = self.refused = 0

    async def answer(self, request):
        name = request.target.rpartition("/")[2]
        keys = {"account": "", "domain": name.partition(".")[2], "names": name}
        now = time.monotonic()
        for each in self.rates:
            moments = self.seen[each["scope"], keys[each["scope"]]]
            if sum(now - moment < each["per_seconds"] for moment in moments) >= each["count"]:
                self.refused += 1
                return Reply(429, headers={"Retry-After": "3600"}, json={})
        for scope, key in {(each["scope"], keys[each["scope"]]) for each in self.rates}:
            self.seen[scope, key].append(now)
        self.orders += 1
        return Reply(json={})


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=SOAK)])
async def test_a_burst_of_orders_never_meets_a_refusal(peers, ctx, count):
    per_second = max(20, count // 100)
    rates = [rate(per_second, 1, "account"), rate(max(5, count // 20), 3, "domain")]
    ca = StrictCA(*rates)
    async with HttpPeer(ca.answer) as peer:
        await put_issuer("iss-strict", rates=rates, url=peer.url)
        jobs = [(await ordered(f"h{n}.d{n % 5}.example", issuer="iss-strict"))[1] for n in range(count)]
        bell.ring("issuer:iss-strict")
        done = db.Sql("SELECT count(*) AS n FROM job WHERE status = 'Completed' AND issuer_id = 'iss-strict'")

        async def all_done():
            [row] = await db.fetch(done)
            return ca.refused or row["n"] == len(jobs)

        await until(all_done, seconds=60 + count / 5)
    assert (ca.refused, ca.orders) == (0, count)


# Urgency


async def test_urgent_work_goes_first_and_routine_becomes_urgent_in_time(peers, quiet):
    routine = [(await ordered(f"{n}.example", priority=NORMAL))[1] for n in range(3)]
    late = routine[2]
    await Job.update(urgent_at=just_now()).where(Job.id == late)
    assert await lanes.hurry() == ["issuer:iss-a"]
    asked = (await ordered("asked.example"))[1]
    assert await ids() == [late, asked, *routine[:2]]
    assert await lanes.hurry() == []


@pytest.mark.parametrize(
    ("left", "priority", "urgent_in"),
    [(29.5, NORMAL, 15.5), (13, URGENT, None), (-1, URGENT, None)],
    ids=["just due", "people are warned", "expired"],
)
async def test_what_is_warned_of_is_urgent(peers, quiet, left, priority, urgent_in):
    id, job_id = await ordered("a.example")
    await move(Job.id == job_id, job_state.JobState.AWAITING_CSR, job_state.JobState.CANCELLED)
    end_at = db.now() + timedelta(days=left)
    await CertificateVersion.insert(
        CertificateVersion(
            id="v",
            certificate_id=id,
            version=1,
            issuer_id="iss-a",
            agent_id="",
            job_id=job_id,
            serial_number="01",
            not_before=end_at - timedelta(days=90),
            not_after=end_at,
            fingerprint_sha256="f",
            public_key_sha256="k",
            pem_chain="",
            csr_pem="",
            key_algorithm="",
            key_size=0,
            reference="",
            created_at=db.now(),
        )
    )
    [made] = await order([id], Order(type=JobType.RENEWAL), SYSTEM)
    row = await row_of(made.id)
    assert (row["priority"], row["urgency"]) == (priority, priority)
    if urgent_in is None:
        assert row["urgent_at"] is None
    else:
        assert abs(row["urgent_at"] - db.now() - timedelta(days=urgent_in)) < timedelta(minutes=1)


# The circuit


def test_five_certificates_in_a_row_open_the_circuit_and_waits_grow_up_to_an_hour():
    circuit, waits = Circuit(), []
    for number in range(4):
        circuit = after_failure(circuit, Failure("f", f"mc-{number}"), NOW)
    assert after_failure(circuit, Failure("f", "mc-0"), NOW).until is None, "the same one again says nothing new"
    assert after_failure(circuit, Failure("other", "mc-9"), NOW).until is None
    now = NOW
    for _ in range(6):
        circuit = after_failure(circuit, Failure("f", "mc-4"), now)
        waits.append(circuit.until - now)
        assert after_failure(circuit, Failure("f", "mc-5"), now) == circuit, "it was under way before"
        now = circuit.until
    assert waits == [*WAITS, WAITS[-1], WAITS[-1]]
    assert after_success(circuit, now) == Circuit()


def test_a_probe_that_is_refused_for_itself_closes_the_circuit():
    circuit = Circuit("f", ("a",), 2, NOW)
    assert after_failure(circuit, Failure("", "mc-9", refused=True), NOW) == Circuit()
    assert after_failure(circuit, Failure("g", "mc-9", refused=True), NOW) == Circuit("g", ("mc-9",))
    assert after_failure(circuit, Failure("g", "mc-9"), NOW).opened == 3


def test_what_the_peer_asked_for_holds_whatever_else_succeeds():
    asked = after_failure(Circuit(), Failure("f", "mc", retry_after=timedelta(minutes=5)), NOW)
    assert asked == Circuit(ASKED_TO_WAIT, (), 1, NOW + timedelta(minutes=5))
    assert after_success(asked, NOW) == asked
    assert after_success(asked, NOW + timedelta(minutes=5)) == Circuit()
    assert after_failure(asked, Failure("f", "mc", retry_after=timedelta(minutes=1)), NOW) == asked
    longest = after_failure(asked, Failure("f", "mc", retry_after=timedelta(days=3)), NOW)
    assert longest.until == NOW + timedelta(hours=1)


def test_numbers_and_names_do_not_make_failures_different():
    one = {"common_name": "a.example", "sans": '["*.b.example"]'}
    two = {"common_name": "c.example", "sans": "[]"}
    text = "order 17 for {} was not done: request 0b4f3d5e-5f2d-4c07-9b1c-0d3c3a3f1e11"
    assert fault_of(Cause.TRANSIENT, text.format("b.example"), one) == fault_of(
        Cause.TRANSIENT, text.replace("17", "18").format("c.example"), two
    )
    assert fault_of(Cause.REJECTED, text.format("a.example"), one) == "", "it is about its own names"
    assert fault_of(Cause.REJECTED, "the account is blocked", one) == fault_of(
        Cause.REJECTED, "the account is blocked", two
    )
    assert fault_of(Cause.TRANSIENT, "no answer", one) != fault_of(Cause.MISCONFIGURED, "no answer", one)


async def test_the_same_failure_closes_the_lane_until_a_probe_succeeds(client, peers, script):
    tried = []

    async def down(request, run):
        tried.append(str(request.sans[0]))
        raise TransientError(f"the CA did not answer request {len(tried)}: connection refused")

    script(down)
    jobs = [(await ordered(f"{n}.example"))[1] for n in range(5)]
    bell.ring("issuer:iss-a")
    for job_id in jobs:
        await until(lambda job_id=job_id: ended(job_id))
    lane = await Lane.select().where(Lane.name == "issuer:iss-a").first()
    assert abs(lane["circuit_until"] - db.now() - WAITS[0]) < timedelta(seconds=10)
    assert (await client.get(f"{ISSUERS}/iss-a")).json()["status"] == "failing"
    assert (await client.get(f"{ISSUERS}?status=failing")).json()["total"] == 1
    more = [(await ordered(f"more{n}.example"))[1] for n in range(3)]
    bell.ring("issuer:iss-a")
    await asyncio.sleep(0.3)
    assert len(tried) == 5

    # Half open: one is let through, and fails.
    await Lane.update(circuit_until=just_now()).where(Lane.name == "issuer:iss-a")
    bell.ring("issuer:iss-a")
    await until(lambda: ended(more[0]))
    await asyncio.sleep(0.2)
    assert len(tried) == 6
    lane = await Lane.select().where(Lane.name == "issuer:iss-a").first()
    assert (lane["opened"], lane["circuit_until"] > db.now() + WAITS[1] / 2) == (2, True)

    # Half open again: it succeeds, and everybody goes.
    script(None)
    await Lane.update(circuit_until=just_now()).where(Lane.name == "issuer:iss-a")
    bell.ring("issuer:iss-a")
    for job_id in more[1:]:
        assert (await until(lambda job_id=job_id: ended(job_id)))["status"] == "Completed"
    assert (await client.get(f"{ISSUERS}/iss-a")).json()["status"] == "ready"
    assert await actions() == ["issuer_circuit_opened", "issuer_circuit_opened", "issuer_circuit_closed"]


async def test_a_success_in_between_breaks_the_row(peers, script):
    async def sometimes(request, run):
        if not str(request.sans[0]).startswith("good"):
            raise TransientError("the CA did not answer")

    script(sometimes)
    for round_ in range(3):
        for name in (f"bad{round_}a", f"bad{round_}b", f"good{round_}"):
            _, job_id = await ordered(f"{name}.example")
            bell.ring("issuer:iss-a")
            await until(lambda job_id=job_id: ended(job_id))

    async def calm():
        lane = await Lane.select().where(Lane.name == "issuer:iss-a").first()
        return (lane["opened"], lane["fault"], lane["circuit_until"]) == (0, "", None)

    assert await until(calm)


async def test_a_changed_configuration_is_tried_at_once(client, peers):
    await Lane.update(fault="f", opened=3, circuit_until=db.now() + timedelta(hours=1)).where(
        Lane.name == "issuer:iss-a"
    )
    await client.put(f"{ISSUERS}/iss-a", json={"name": "renamed"})
    assert (await client.get(f"{ISSUERS}/iss-a")).json()["status"] == "failing"
    await client.put(f"{ISSUERS}/iss-a", json={"config": {"url": "http://127.0.0.1:9"}})
    assert (await client.get(f"{ISSUERS}/iss-a")).json()["status"] == "ready"


async def test_a_name_that_always_fails_costs_few_orders_a_day(peers, script):
    tried = []

    async def never(request, run):
        tried.append(request)
        raise TransientError("validation of this name did not come to an end")

    script(never)
    id, job_id = await ordered("never.example")
    for _ in range(20):  # whatever is due on the first day is due now
        bell.ring("issuer:iss-a")
        row = await until(lambda: ended(job_id))
        if row["next_retry_at"] is None:
            break
        await Lane.update(opened=0, circuit_until=None, fault="").where(Lane.name == "issuer:iss-a")
        await requeue(Job.id == job_id)
    assert len(tried) <= 5
    due_at = (await Certificate.select().where(Certificate.id == id).first())["renew_due_at"]
    assert due_at >= row["completed_at"] + timedelta(hours=23)
    for _ in range(3):
        before = len(tried)
        [fresh] = await order([id], Order(type=JobType.ISSUANCE), SYSTEM)
        csr = read_csr(csr_pem("never.example"))
        await Job.update(csr_pem=csr.pem, csr_sha256=csr.sha256, due_at=just_now()).where(Job.id == fresh.id)
        bell.ring("issuer:iss-a")
        row = await until(lambda fresh=fresh: ended(fresh.id))
        assert (row["next_retry_at"], len(tried)) == (None, before + 1)


async def test_a_retry_after_closes_the_lane_and_retries_the_job(client, peers):
    async def busy(_):
        return Reply(429, headers={"Retry-After": "120"}, json={})

    async with HttpPeer(busy) as peer:
        await put_issuer("iss-busy", url=peer.url, most=1)
        jobs = [(await ordered(f"{n}.example", issuer="iss-busy"))[1] for n in range(3)]
        bell.ring("issuer:iss-busy")
        failed = await until(lambda: ended(jobs[0]))
        await asyncio.sleep(0.2)
    assert abs(failed["next_retry_at"] - db.now() - timedelta(seconds=120)) < timedelta(seconds=15)
    lane = await Lane.select().where(Lane.name == "issuer:iss-busy").first()
    assert abs(lane["circuit_until"] - db.now() - timedelta(seconds=120)) < timedelta(seconds=15)
    assert [(await row_of(id))["attempts"] for id in jobs] == [1, 0, 0]
    assert (await client.get(f"{ISSUERS}/iss-busy")).json()["status"] == "failing"


# Fairness

NUMBERS = {
    "postgres": "generate_series(1, {count}) AS many (n)",
    "sqlite": "(WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < {count}) "
    "SELECT n FROM more) AS many",
}
BACKLOG = [
    """
    INSERT INTO certificate (id, name, common_name, sans, status, decided, owner_id, team_id, issuer_id,
        renewal_policy_id, environment, created_at, updated_at)
    SELECT 'mc-many-' || n, 'many-' || n, 'busy.example', '[]', 'Pending', 'Pending', 'o', 't',
        'iss-busy', 'rp-default', '', {now}, {now} FROM MANY
    """,
    """
    INSERT INTO job (id, type, certificate_id, issuer_id, lane, status, place, due_at, csr_pem, csr_sha256,
        scheduled_at, created_at)
    SELECT 'job-many-' || n, 'Issuance', 'mc-many-' || n, 'iss-busy', 'issuer:iss-busy', 'Pending', 'many|' || n,
        {after:-3600}, '', 'x', {now}, {now} FROM MANY
    """,
]


GIVE_CSR = db.update_rows("job", "id", {"csr_pem": "text"})


async def put_backlog(count):
    many = NUMBERS[db.dialect()].format(count=count)
    for statement in BACKLOG:
        await db.fetch(db.Sql(statement.replace("MANY", many)))
    for start in range(0, count, 5_000):
        numbers = range(start + 1, start + 5_001)
        given = [{"id": f"job-many-{n}", "csr_pem": csr_pem("busy.example")} for n in numbers]
        await db.fetch(GIVE_CSR, json.dumps(given))


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=SOAK)])
async def test_an_issuer_that_refuses_everything_delays_nobody_else(peers, count):
    served = []

    async def busy(request):
        served.append(request.target)
        return Reply(429, headers={"Retry-After": "2"}, json={})

    async with HttpPeer(busy) as peer:
        await put_issuer("iss-busy", url=peer.url)
        await put_backlog(count)
        bell.ring("issuer:iss-busy")
        await until(lambda: asyncio.sleep(0, len(served)))
        waits = []
        for number in range(10):
            _, other = await ordered(f"quick{number}.example", issuer="iss-b")
            began = time.monotonic()
            bell.ring("issuer:iss-b")
            bell.ring("issuer:iss-busy")
            await until(lambda other=other: ended(other))
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        await ordered("urgent.busy.example", issuer="iss-busy")
        await until(lambda: asyncio.sleep(0, any("urgent" in target for target in served)), seconds=20)
        first_after = [target for target in served if "urgent" in target]
    assert max(waits) < 2, waits
    assert first_after
    assert len(served) < 200, "the backlog is not hammered against it"


# Cancelling


async def cancelled_while_it_runs(client, script, *, told):
    loop = asyncio.get_running_loop()
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless(request, run):
        loop.call_soon_threadsafe(begun.set)
        try:
            await asyncio.sleep(3600)
        finally:
            loop.call_soon_threadsafe(stopped.set)

    script(endless)
    _, job_id = await ordered("a.example")
    bell.ring("issuer:iss-a")
    async with asyncio.timeout(10):
        await begun.wait()
    began = time.monotonic()
    assert (await client.post(f"/api/v1/jobs/{job_id}/cancel")).json() == {"status": "job_cancelled"}
    async with asyncio.timeout(told):
        await stopped.wait()
    row = await row_of(job_id)
    assert (row["status"], row["last_error"], row["lease_until"]) == ("Cancelled", "cancelled by user", None)
    [intent] = await db.fetch(db.Sql("SELECT status FROM intent WHERE job_id = $1"), job_id)
    assert intent["status"] == "open", "what the CA came to is for the reconciler to find out"
    return time.monotonic() - began


async def test_cancelling_a_job_cancels_its_connector_at_once(client, peers, script):
    assert await cancelled_while_it_runs(client, script, told=2) < 1


async def test_a_job_cancelled_by_another_process_is_noticed_within_seconds(client, peers, script, monkeypatch):
    monkeypatch.setattr(job_state, "_watchers", set())
    assert await cancelled_while_it_runs(client, script, told=10) < 8


async def test_what_was_signed_while_it_was_called_off_is_revoked(client, peers, script, monkeypatch):
    monkeypatch.setattr(RevokingPeer, "revoked", ())
    await put_issuer("iss-r", "RevokingPeer")
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    async def stubborn(request, run):
        loop.call_soon_threadsafe(begun.set)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:  # the CA has signed at this very moment
            return IssuedCertificate(cert_pem=SHARED.sign(request.csr_pem), chain_pem=SHARED.cert_pem, reference="r")

    script(stubborn)
    id, job_id = await ordered("a.example", issuer="iss-r")
    bell.ring("issuer:iss-r")
    async with asyncio.timeout(10):
        await begun.wait()
    await client.post(f"/api/v1/jobs/{job_id}/cancel")
    await until(lambda: asyncio.sleep(0, RevokingPeer.revoked))
    assert await actions("certificate_orphaned") == ["certificate_orphaned"]
    assert (await row_of(job_id))["status"] == "Cancelled"
    assert await CertificateVersion.count() == 0
    await settle([id])


async def test_a_ca_is_told_of_the_revocation_of_what_was_archived_since(client, peers, monkeypatch):
    async def refuse(self, request, run):
        raise RejectedError("not now")

    await put_issuer("iss-r", "RevokingPeer")
    id, job_id = await ordered("a.example", issuer="iss-r")
    bell.ring("issuer:iss-r")
    await until(lambda: server_flow.job_in(job_id, "Completed"))
    with monkeypatch.context() as patch:
        patch.setattr(RevokingPeer, "revoke", refuse)
        assert (await client.post(f"/api/v1/certificates/{id}/revoke", json={})).is_success
        telling = await Job.select().where(Job.type == JobType.REVOCATION).first()
        await until(lambda: server_flow.job_in(telling["id"], "Failed"))
    assert (await client.delete(f"/api/v1/certificates/{id}")).status_code == 204
    answer = await client.post(f"/api/v1/jobs/{telling['id']}/retry")
    assert answer.status_code == 200, answer.text
    await until(lambda: server_flow.job_in(telling["id"], "Completed"))
    assert (await Certificate.select().where(Certificate.id == id).first())["revocation_state"] == "confirmed"


# Limits of an issuer


async def test_limits_are_kept_shown_and_checked_whole(client, peers):
    limits = {"max_concurrent": 3, "rates": [rate(300, 10800, "account"), rate(50, 604800, "domain")]}
    body = {"id": "iss-new", "name": "new", "type": "Peer", "limits": limits}
    assert (await client.post(ISSUERS, json=body)).json()["limits"] == limits
    assert (await client.get(f"{ISSUERS}/iss-new")).json()["limits"] == limits
    lane = await Lane.select().where(Lane.name == "issuer:iss-new").first()
    assert (lane["concurrency"], json.loads(lane["rates"])) == (3, limits["rates"])
    wrong = {"max_concurrent": 0, "rates": [{"count": 0, "per_seconds": 0, "scope": "planet"}, {"count": 1}]}
    answer = await client.put(f"{ISSUERS}/iss-new", json={"limits": wrong})
    assert answer.status_code == 400
    assert {each["field"] for each in answer.json()["details"]} == {
        "limits.max_concurrent",
        *(f"limits.rates[0].{name}" for name in ("count", "per_seconds", "scope")),
        *(f"limits.rates[1].{name}" for name in ("per_seconds", "scope")),
    }
    await client.put(f"{ISSUERS}/iss-new", json={"limits": None})
    lane = await Lane.select().where(Lane.name == "issuer:iss-new").first()
    assert (lane["concurrency"], lane["rates"]) == (None, "[]")
    await Budget.insert(Budget(lane="issuer:iss-new", key="account", total=1, orders=1, at=NOW, until=NOW))
    assert (await client.delete(f"{ISSUERS}/iss-new")).status_code == 204
    assert await Budget.count() == 0


async def test_jobs_of_other_types_need_no_room(peers, quiet):
    await set_rates("issuer:iss-a", rate(1, 3600, "account"))
    await create([NewJob(type=JobType.SCAN, place=f"{n}", lane="issuer:iss-a", due=True) for n in range(3)], SYSTEM)
    assert len(await ids()) == 3
    assert await Budget.count() == 0
