"""Totals are kept, not counted, and are what a full count would say, whatever happens to the rows."""

import asyncio
import json
import random
from collections import Counter
from datetime import timedelta

import pytest
from certctl_core.certificate import Status
from certctl_core.job import JobState, JobType
from certctl_server import db, restored, tally
from certctl_server.agents.health import AgentStatus
from certctl_server.agents.tables import Agent
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates.create import archive, create
from certctl_server.certificates.tables import Certificate
from certctl_server.db import migrate as migration
from certctl_server.db.migrations import STEPS, m0007_tally
from certctl_server.discovery.tables import DiscoveredCertificate
from certctl_server.jobs.create import NewJob
from certctl_server.jobs.create import create as create_jobs
from certctl_server.jobs.retention import forget
from certctl_server.jobs.state import claim, move
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership, NotLeading
from certctl_server.main import main
from certctl_server.notices.tables import Notification
from certctl_server.people.tables import Owner, Team
from certctl_server.rules.tables import CertificateProfile
from certctl_server.stats.tables import Tally
from certctl_server.tables import TABLES
from click.testing import CliRunner
from server_flow import wanted

LEASE = timedelta(seconds=30)
OWNERS, TEAMS = ("o", "o-2", "o-3"), ("t", "t-2")
ENVIRONMENTS = ("", "production", "staging", "wei\u00df")
TOLD = db.Sql("SELECT details FROM audit_event WHERE action = 'totals_corrected'")
NOW = db.Sql(
    "SELECT dimension, value, detail, CAST(sum(n) AS BIGINT) AS n FROM tally_now GROUP BY dimension, value, detail"
)
DELTAS = db.Sql(postgres="SELECT count(*) AS n FROM tally_delta", sqlite="SELECT 0 AS n")
WRONG = db.Sql("INSERT INTO tally (dimension, value, detail, n) VALUES ('certificate.status', 'Gone', '', 7)")


async def counted():
    """What there is, counted row by row, without any SQL of the product."""
    found = Counter()
    for row in await Certificate.select():
        for name in ("status", "environment", "owner_id", "team_id", "issuer_id", "certificate_profile_id"):
            if row[name] is not None:
                found[f"certificate.{name}", row[name], ""] += 1
    for row in await Job.select(Job.type, Job.status):
        found["job", row["type"], row["status"]] += 1
    for row in await Agent.select():
        if row["id"] != "server-scanner":
            found["agent", row["status"], "retired" if row["retired_at"] else ""] += 1
    for row in await DiscoveredCertificate.select(DiscoveredCertificate.status):
        found["discovered_certificate", row["status"], ""] += 1
    for row in await Notification.select(Notification.status, Notification.type):
        found["notification", row["status"], row["type"]] += 1
    return dict(found)


async def kept():
    """What is told without counting."""
    return {(row["dimension"], row["value"], row["detail"]): row["n"] for row in await db.fetch(NOW) if row["n"]}


async def exact():
    """Whether both are the same just now, while nobody writes."""
    return await kept() == await counted() and await tally.amiss() == []


@pytest.fixture
async def leader(database):
    found = Leadership("test", timedelta(minutes=5), alone=True)
    assert await found.campaign()
    return found


@pytest.fixture
async def many(grounds):
    """Some of everything that certificates are counted by."""
    times = {"created_at": db.now(), "updated_at": db.now()}
    for id in OWNERS[1:]:
        await Owner.insert(Owner(id=id, name=id, team_id="t", **times))
    await Team.insert(Team(id="t-2", name="t-2", **times))
    await CertificateProfile.insert(CertificateProfile(id="cp", name="cp", **times))


def certificate(id, chance):
    times = {"created_at": db.now(), "updated_at": db.now()}
    status = chance.choice(list(Status))
    return Certificate(
        id=id, name=id, common_name=id, environment=chance.choice(ENVIRONMENTS), owner_id=chance.choice(OWNERS),
        team_id=chance.choice(TEAMS), issuer_id="iss-local", renewal_policy_id="rp-default", status=status,
        certificate_profile_id=chance.choice(["cp", None]), decided=status, **times,
    )  # fmt: skip


def agent(id, **more):
    times = {"created_at": db.now(), "updated_at": db.now(), "registered_at": db.now()}
    return Agent(id=id, name=id, **times, **more)


class Interrupted(Exception):
    """What a crash looks like to a transaction."""


def crash():
    raise Interrupted


class Workload:
    """One client that does whatever comes to its mind, some of it in transactions that fail."""

    def __init__(self, number, seed):
        self._number, self._chance, self._made = number, random.Random(f"{seed} {number}"), 0

    def _new(self, kind):
        self._made += 1
        return f"{kind}-{self._number}-{self._made}"

    @property
    def _own(self):
        return f"mc-{self._number}-%"

    async def insert(self):
        rows = [certificate(self._new("mc"), self._chance) for _ in range(self._chance.randint(1, 40))]
        await Certificate.insert(*rows)

    async def change_many(self):
        """As bulk actions do."""
        column, values = self._chance.choice(
            [("owner_id", OWNERS), ("team_id", TEAMS), ("environment", ENVIRONMENTS), ("status", list(Status)),
             ("certificate_profile_id", ("cp", None))]
        )  # fmt: skip
        value, limit = self._chance.choice(values), self._chance.randint(1, 60)
        text = f"SELECT id FROM certificate WHERE id LIKE $1 ORDER BY updated_at, id LIMIT {limit}"
        ids = json.dumps([row["id"] for row in await db.fetch(db.Sql(text), self._own)])
        await db.fetch(
            db.Sql(f"UPDATE certificate SET {column} = $2, updated_at = {{now}} WHERE id IN ({{ids:$1}})"), ids, value
        )

    async def change_nothing_counted(self):
        await Certificate.update(last_error=self._new("error")).where(Certificate.id.like(self._own))

    async def delete(self):
        text = "DELETE FROM certificate WHERE id LIKE $1 AND status IN ('Pending', 'Revoked')"
        await db.fetch(db.Sql(text), self._own)

    async def order(self):
        id, _ = await create(wanted(f"{self._new('a')}.example"), SYSTEM)
        if self._chance.random() < 0.5:
            await archive((await Certificate.select().where(Certificate.id == id))[0], SYSTEM)

    async def run_jobs(self):
        lane = f"lane-{self._number}"
        new = [
            NewJob(type=kind, place=self._new("place"), lane=lane, due=True) for kind in (JobType.SCAN, JobType.RENEWAL)
        ]
        await create_jobs(new, SYSTEM)
        for job in await claim(f"owner-{self._number}", lane, limit=2, lease=LEASE):
            state = self._chance.choice([JobState.COMPLETED, JobState.FAILED, JobState.PENDING])
            await move(Job.id == job.id, JobState.RUNNING, state)

    async def agents(self):
        id = self._new("ag")
        await Agent.insert(agent(id, status=AgentStatus.ONLINE))
        mine = Agent.id.like(f"ag-{self._number}-%")
        await Agent.update(last_heartbeat_at=db.now()).where(mine)
        await Agent.update(status=self._chance.choice(list(AgentStatus))).where(mine)
        if self._chance.random() < 0.3:
            await Agent.update(retired_at=db.now()).where(Agent.id == id)
        if self._chance.random() < 0.2:
            await Agent.delete().where(Agent.id == id)

    async def step(self):
        """One thing; what is interrupted leaves nothing."""
        things = [self.insert, self.change_many, self.change_many, self.change_nothing_counted, self.delete]
        thing = self._chance.choice([*things, self.order, self.run_jobs, self.agents])
        if self._chance.random() < 0.25:
            try:
                async with db.transaction():
                    await thing()
                    crash()
            except Interrupted:
                return
        await thing()


async def folding(leader, chance, done):
    """The folder, which crashes now and then in the middle."""
    while not done.is_set():
        try:
            async with db.transaction():
                await tally.fold(leader)
                if chance.random() < 0.4:
                    crash()
        except Interrupted:
            pass
        await asyncio.sleep(chance.random() / 100)


async def looking(done, looks):
    """Whoever reads meanwhile sees exact totals at every moment."""
    while not done.is_set():
        assert await tally.amiss() == []
        looks.append(1)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(3))
async def test_totals_are_exact_at_every_moment_of_a_random_workload(many, leader, monkeypatch, seed):
    monkeypatch.setattr(tally, "MOST", 50)
    done, looks = asyncio.Event(), []
    beside = [asyncio.create_task(folding(leader, random.Random(seed), done), name="fold")]
    beside.append(asyncio.create_task(looking(done, looks), name="look"))

    async def client(number):
        load = Workload(number, seed)
        for _ in range(25):
            await load.step()

    try:
        await asyncio.gather(*(client(number) for number in range(6)))
    finally:
        done.set()
        await asyncio.gather(*beside)
    assert len(looks) > 5
    assert sum((await counted()).values()) > 100
    assert await exact()
    while await tally.fold(leader):
        pass
    assert (await db.fetch(DELTAS))[0]["n"] == 0
    assert await exact()
    folded = {(row["dimension"], row["value"], row["detail"]): row["n"] for row in await Tally.select()}
    assert folded == await counted()


async def test_what_is_forgotten_by_retention_is_not_counted(many, leader):
    await create_jobs([NewJob(type=JobType.SCAN, place=str(n), lane="old", due=True) for n in range(5)], SYSTEM)
    for job in await claim("me", "old", limit=5, lease=LEASE):
        await move(Job.id == job.id, JobState.RUNNING, JobState.COMPLETED)
    await Job.update(kept_since=db.now() - timedelta(days=999)).where(Job.lane == "old")
    await forget(leader, timedelta(days=1))
    assert await Job.count() == 0
    assert await exact()


async def test_a_folder_that_leads_no_more_writes_nothing(many, leader):
    await Certificate.insert(certificate("mc-1", random.Random(1)))
    await Certificate.delete().where(Certificate.id == "mc-1")
    successor = Leadership("successor", LEASE, alone=True)
    await successor.campaign()
    before = await Tally.select(), await db.fetch(DELTAS)
    with pytest.raises(NotLeading):
        await tally.fold(leader)
    assert (await Tally.select(), await db.fetch(DELTAS)) == before
    await tally.fold(successor)
    assert await Tally.count() == 0
    assert await exact()


async def test_a_folder_that_finds_much_takes_it_in_parts(many, leader, monkeypatch):
    if db.dialect() == "sqlite":
        pytest.skip("nothing gathers there")
    monkeypatch.setattr(tally, "MOST", 3)
    await Certificate.insert(*(certificate(f"mc-{n}", random.Random(n)) for n in range(20)))
    turns = 0
    while await tally.fold(leader):
        turns += 1
        assert await exact()
    assert turns > 2
    assert (await db.fetch(DELTAS))[0]["n"] == 0


async def test_a_heartbeat_costs_no_count(many):
    await Agent.insert(agent("ag-1", status=AgentStatus.ONLINE), agent("server-scanner"))
    before = await db.fetch(DELTAS), await Tally.select()
    await Agent.update(last_heartbeat_at=db.now(), status=AgentStatus.ONLINE).where(Agent.id == "ag-1")
    assert (await db.fetch(DELTAS), await Tally.select()) == before
    assert (await tally.statuses()).agents == {"Online": 1, "Offline": 0, "Degraded": 0}


@pytest.fixture(params=["sqlite", "postgres"])
def old_url(request, tmp_path):
    """Where a database is that knows nothing."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'old.db'}"
    cluster = request.getfixturevalue("postgres")
    cluster.run("DROP DATABASE IF EXISTS old_certctl WITH (FORCE)")
    return cluster.create("old_certctl")


async def test_an_existing_database_is_counted_when_it_is_brought_up_to_date(old_url, monkeypatch):
    await db.connect(old_url, TABLES)
    try:
        monkeypatch.setattr(migration, "STEPS", tuple(step for step in STEPS if step is not m0007_tally))
        await migration.migrate()
        times = {"created_at": db.now(), "updated_at": db.now()}
        await Team.insert(*(Team(id=id, name=id, **times) for id in TEAMS))
        await Owner.insert(*(Owner(id=id, name=id, team_id="t", **times) for id in OWNERS))
        await CertificateProfile.insert(CertificateProfile(id="cp", name="cp", **times))
        ground = "INSERT INTO {} (id, name, {}created_at, updated_at) VALUES ($1, $1, {}$2, $2)"
        await db.fetch(db.Sql(ground.format("issuer", "type, ", "'GenericCA', ")), "iss-local", db.now())
        await db.fetch(db.Sql(ground.format("renewal_policy", "", "")), "rp-default", db.now())
        chance = random.Random(7)
        await Certificate.insert(*(certificate(f"mc-{n}", chance) for n in range(60)))
        await Agent.insert(agent("ag-1", status="Online"), agent("server-scanner"))
        monkeypatch.setattr(migration, "STEPS", STEPS)
        assert await migration.migrate() == ["m0007_tally"]
        assert len(await kept()) > 10
        assert await exact()
        await Certificate.insert(certificate("mc-new", chance))
        assert await exact()
    finally:
        await db.close()


async def test_a_recount_finds_what_is_wrong_and_corrects_it_while_others_write(many, leader):
    load = Workload(1, "recount")
    await load.insert()
    await db.fetch(WRONG)
    [row] = await tally.amiss()
    assert row == {"dimension": "certificate.status", "value": "Gone", "detail": "", "n": -7}

    async def write():
        for _ in range(20):
            await load.step()

    answers = await asyncio.gather(write(), tally.recount(), tally.recount())
    assert sorted(answers[1:], key=len) == [[], [row]]
    assert await exact()
    [told] = await db.fetch(TOLD)
    assert json.loads(told["details"]) == {"by": {"certificate.status/Gone": -7}}
    assert await tally.recount() == []


async def test_a_restore_counts_anew(ctx, many):
    await db.fetch(WRONG)
    await restored.declare(ctx.settings, ctx.cipher, "a test says so")
    assert await exact()
    [told] = await db.fetch(db.Sql("SELECT details FROM audit_event WHERE action = 'database_restored'"))
    assert json.loads(told["details"])["totals_corrected"] == 1


def test_the_command_says_what_it_corrected(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path))
    first = CliRunner().invoke(main, ["recount"])
    assert (first.exit_code, first.stdout) == (0, "every total was right\n")

    async def spoil():
        await db.connect(f"sqlite://{tmp_path}/certctl.db", TABLES)
        await db.fetch(WRONG)
        await db.close()

    asyncio.run(spoil())
    second = CliRunner().invoke(main, ["recount"])
    assert (second.exit_code, second.stdout.splitlines()) == (
        0,
        ["certificate.status Gone : corrected by -7", "1 totals were wrong"],
    )


LISTS = {
    "certificates": True,
    "certificates?status=active": True,
    "certificates?status=Active,Expiring": True,
    "certificates?environment=production": True,
    "certificates?owner_id=o-2": True,
    "certificates?owner_id=o,o-2": True,
    "certificates?owner_id=nobody": True,
    "certificates?team_id=t-2": True,
    "certificates?issuer_id=iss-local": True,
    "certificates?profile_id=cp": True,
    "certificates?certificate_profile_id=cp": True,
    "certificates?status=Active&environment=production": False,
    "certificates?name=mc-3": False,
    "certificates?created_after=2020-01-01T00:00:00Z": False,
    "jobs": True,
    "jobs?status=Pending": True,
    "jobs?type=Renewal": True,
    "jobs?type=Scan,Renewal&status=pending,failed": True,
    "jobs?agent_id=ag-1": False,
    "agents": True,
    "agents?status=Online": True,
    "agents?os=linux": False,
    "discovered-certificates": True,
    "discovered-certificates?status=Unmanaged": True,
    "discovered-certificates?agent_id=ag-1": False,
    "notifications": True,
    "notifications?status=sent&type=Revocation": True,
    "notifications?channel=Email": False,
    "audit": True,
    "audit?actor=system": False,
}


@pytest.fixture
async def inventory(many, client):
    """Some of everything, so that each list has more than a page of one."""
    chance = random.Random("inventory")
    await Certificate.insert(*(certificate(f"mc-{n}", chance) for n in range(80)))
    kinds = (JobType.SCAN, JobType.RENEWAL) * 6
    new = [NewJob(type=kind, place=f"{n}", lane="x") for n, kind in enumerate(kinds)]
    await create_jobs(new, SYSTEM)
    retired = agent("ag-3", status="Online", retired_at=db.now())
    await Agent.insert(agent("ag-1", status="Online", os="linux"), agent("ag-2", os="linux", status="Offline"))
    await Agent.insert(retired, agent("server-scanner", status="Online"))
    times = {name: db.now() for name in ("created_at", "updated_at", "first_seen_at", "last_seen_at")}
    for n in range(4):
        place = {"fingerprint_sha256": f"{n:064}", "source_path": "/x", "agent_id": "ag-1", "status": "Unmanaged"}
        await DiscoveredCertificate.insert(DiscoveredCertificate(id=f"dc-{n}", **place, **times))
        note = {"type": "Revocation", "channel": "Email", "status": "sent", "occurrence": str(n)}
        await Notification.insert(Notification(id=f"n-{n}", created_at=db.now(), **note))
    return client


@pytest.mark.parametrize("path", LISTS)
async def test_the_total_of_a_list_is_the_number_of_its_rows(inventory, path, monkeypatch):
    asked = []
    inner = db.fetch

    async def noted(sql, *args):
        asked.append(sql.sqlite)
        return await inner(sql, *args)

    sign = "&" if "?" in path else "?"
    whole = (await inventory.get(f"/api/v1/{path}{sign}per_page=500")).json()
    monkeypatch.setattr(db, "fetch", noted)
    short = (await inventory.get(f"/api/v1/{path}{sign}per_page=1")).json()
    walked = (await inventory.get(f"/api/v1/{path}{sign}page_size=1")).json()
    monkeypatch.undo()
    told = [whole["total"], short["total"], walked["total"]]
    if path.startswith("audit"):  # calls leave rows there themselves
        assert len(whole["data"]) <= told[1] <= told[2]
    else:
        assert told == [len(whole["data"])] * 3
    counts = [text for text in asked if "count(*) AS total" in text]
    sums = [text for text in asked if "sum(item.n)" in text]
    assert (len(counts) == 0, len(sums) > 0) == ((True, True) if LISTS[path] else (False, False))
