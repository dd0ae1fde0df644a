import asyncio
import json
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from certctl_core import plugins
from certctl_core.plugins import Plugins
from certctl_sdk.http import httpx
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_sdk.testing.postgres import Postgres
from certctl_server import db
from certctl_server.app import make_app
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.context import Context
from certctl_server.db.migrate import migrate
from certctl_server.doorbell import Answers, LocalDoorbell
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs import bell
from certctl_server.jobs.runner import Runner
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.people.tables import Owner, Team
from certctl_server.rules.tables import RenewalPolicy
from certctl_server.sealing import Cipher
from certctl_server.settings import Scheduler, Settings
from certctl_server.tables import TABLES
from certctl_server.targets.tables import Target


async def _migrated(url):
    await db.connect(url, TABLES)
    try:
        await migrate()
    finally:
        await db.close()


def _apart(work):
    """Run a coroutine to its end on a loop of its own, whatever the test's loop is doing."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A migrated file that tests copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _apart(_migrated(f"sqlite://{path}"))
    return path


class Databases:
    """Migrated databases of one PostgreSQL: the next one is made, and the last one dropped, beside the tests."""

    def __init__(self, cluster):
        self.cluster = cluster
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(self._make)

    def _make(self):
        name = f"test_{secrets.token_hex(6)}"
        self.cluster.run(f"CREATE DATABASE {name} TEMPLATE template_certctl STRATEGY wal_log")
        return name

    def take(self):
        name, self._next = self._next.result(), self._thread.submit(self._make)
        return name

    def drop(self, name):
        self._thread.submit(self.cluster.run, f"DROP DATABASE {name} WITH (FORCE)")

    def close(self):
        self._thread.shutdown()


@pytest.fixture(scope="session")
def postgres():
    """A private PostgreSQL with a migrated template database."""
    with Postgres() as cluster:
        _apart(_migrated(cluster.create("template_certctl")))
        yield cluster


@pytest.fixture(scope="session")
def databases(postgres):
    """Fresh databases, one after the other."""
    made = Databases(postgres)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """Where a fresh, migrated database of each dialect is."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite://{path}"
        return
    databases = request.getfixturevalue("databases")
    name = databases.take()
    yield databases.cluster.url(name)
    databases.drop(name)


@pytest.fixture
async def database(database_url):
    """A fresh, migrated, open database of each dialect; its value is the dialect."""
    await db.connect(database_url, TABLES, connections=10)
    yield db.dialect()
    await db.close()


@dataclass
class Bells:
    """Remembers what was rung."""

    lanes: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)

    def ring(self, lane):
        self.lanes.append(lane)

    def ring_agent(self, agent_id):
        self.agents.append(agent_id)


@dataclass
class Clock:
    """The real time, moved on by tests."""

    ahead: timedelta = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def ctx(database, settings):
    """What every handler gets, on a fresh database. Its clock's ``ahead`` may be set."""
    return Context(
        settings=settings,
        plugins=Plugins(),
        cipher=Cipher([secrets.token_bytes(32)]),
        clock=Clock(),
        bell=Bells(),
        started_at=datetime.now(UTC),
    )


@pytest.fixture
def app(ctx):
    return make_app(ctx)


@pytest.fixture
def connect(app):
    """Make a client that speaks with ``key``, in this process and on this loop."""

    def client(key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://certctl.test", headers=headers
        )

    return client


@pytest.fixture
async def client(connect):
    """A client with a stored admin key; the key's name, so the actor of its deeds, is ``ada``."""
    _, key = await create_key("ada", Role.ADMIN)
    async with connect(key) as client:
        yield client


@pytest.fixture
async def engine(ctx):
    """Connector instances in this process, as a running engine has them."""
    loop = ConnectorLoop()
    loop.start()
    ctx.engine = SimpleNamespace(instances=Instances(ctx, loop), doorbell=LocalDoorbell(Answers(None, None)))
    yield ctx.engine
    await ctx.engine.instances.aclose()
    await loop.stop()


@pytest.fixture
async def leadership(database):
    """Who leads alone, for half a minute from now."""
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    assert await leadership.campaign()
    return leadership


@pytest.fixture
async def grounds(ctx):
    """What every certificate refers to: team t, owner o, rp-default, and our own CA as iss-local."""
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Team.insert(Team(id="t", name="t", **times))
    await Owner.insert(Owner(id="o", name="o", team_id="t", **times))
    await RenewalPolicy.insert(RenewalPolicy(id="rp-default", name="default", **times))
    await Issuer.insert(Issuer(id="iss-local", name="own", type="GenericCA", status="ready", **times))


@pytest.fixture
async def employ(ctx, grounds):
    """Start workers that answer bells, and look by themselves so often; returns the runner."""
    ctx.plugins = plugins.load()
    instances, hired = Instances(ctx, ConnectorLoop()), []
    instances.loop.start()

    def start(looks_every):
        scheduler = Scheduler(job_processor_interval=looks_every)
        ctx.settings = ctx.settings.model_copy(update={"scheduler": scheduler})
        hired.append(runner := Runner(ctx, instances, owner="this"))
        runner.start()
        bell.connect(runner.look, lambda *_: None)
        return runner

    yield start
    bell.connect(None, None)
    for runner in hired:
        await runner.stop()
    await instances.aclose()
    await instances.loop.stop()


@pytest.fixture
async def runner(employ):
    """Workers of this process, which answer bells and find nothing by themselves."""
    return employ(timedelta(hours=1))


@dataclass
class Machine:
    """An agent, as far as the server can tell."""

    id: str
    http: httpx.AsyncClient
    keys: dict = field(default_factory=dict)

    @property
    def path(self):
        return f"/api/v1/agents/{self.id}"

    async def beat(self, **said):
        answer = await self.http.post(f"{self.path}/heartbeat", json=said)
        assert answer.status_code == 200, answer.text

    async def work(self, **query):
        answer = await self.http.get(f"{self.path}/work", params=query)
        assert answer.status_code == 200, answer.text
        assert answer.json()["count"] == len(answer.json()["jobs"])
        return answer.json()["jobs"]

    async def csr(self, certificate_id, *sans, key=None, pem=None):
        self.keys[certificate_id] = pem or csr_pem(*sans, key=key)
        body = {"csr_pem": self.keys[certificate_id], "certificate_id": certificate_id}
        return await self.http.post(f"{self.path}/csr", json=body)

    async def answer_orders(self):
        """Answer every order that is offered; return the ids of their jobs."""
        items = [item for item in await self.work() if item["status"] == "AwaitingCSR"]
        for item in items:
            answer = await self.csr(item["certificate_id"], *(item["sans"] or [item["common_name"]]))
            assert (answer.status_code, answer.json()) == (202, {"status": "csr_signed"})
        return [item["id"] for item in items]

    async def report(self, job_id, status, **more):
        return await self.http.post(f"{self.path}/jobs/{job_id}/status", json={"status": status, **more})

    async def verify(self, item, actual=None, **more):
        expected = item["expected_fingerprint"]
        body = {"target_id": item["target_id"], "expected_fingerprint": expected}
        body |= {"actual_fingerprint": actual or expected, "verified": actual in {None, expected}}
        return await self.http.post(f"/api/v1/jobs/{item['id']}/verify", json=body | more)

    async def deploy_all(self):
        """Deploy what is offered, and see it served; return the items."""
        items = [item for item in await self.work() if item["type"] == "Deployment"]
        for item in items:
            assert (await self.report(item["id"], "Running")).status_code == 200
            assert (await self.verify(item)).status_code == 200
            assert (await self.report(item["id"], "Completed")).status_code == 200
        return items


@dataclass
class Fleet:
    """Machines, targets and certificates, by way of the API where it has one."""

    connect: object
    people: httpx.AsyncClient
    machines: dict = field(default_factory=dict)

    async def machine(self, id, capabilities=("verify",)):
        answer = await self.people.post("/api/v1/agents", json={"id": id, "name": id, "hostname": f"{id}.example"})
        assert answer.status_code == 201, answer.text
        self.machines[id] = Machine(id, self.connect(answer.json()["api_key"]))
        await self.machines[id].beat(**({"capabilities": list(capabilities)} if capabilities else {}))
        return self.machines[id]

    async def target(self, id, machine, **config):
        times = {"created_at": db.now(), "updated_at": db.now()}
        row = {"id": id, "name": id, "type": "NGINX", "agent_id": machine.id, "config": json.dumps(config)}
        await Target.insert(Target(**row, status="ready", **times))
        return id

    async def certificate(self, *sans, targets=(), **more):
        body = {"sans": sans, "owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "target_ids": targets, **more}
        answer = await self.people.post("/api/v1/certificates", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def served(self, *machines, sans=("a.example",)):
        """A certificate that is Active on one target of each machine."""
        targets = [await self.target(f"tgt-{machine.id}", machine) for machine in machines]
        id = await self.certificate(*sans, targets=targets)
        for machine in machines:
            await machine.answer_orders()
        for machine in machines:
            await machine.deploy_all()
        return id

    async def get(self, path):
        answer = await self.people.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path, **body):
        return await self.people.post(f"/api/v1/{path}", json=body)

    async def status(self, id):
        found = await self.get(f"certificates/{id}")
        return found["status"], found["deployment_state"]

    async def jobs(self, id, **more):
        """The jobs of a certificate, oldest first."""
        rows = await Job.select().where(Job.certificate_id == id).order_by(Job.created_at, Job.id)
        return [row for row in rows if all(row[name] == value for name, value in more.items())]


@pytest.fixture
async def fleet(connect, client, runner):
    """An installation with workers, into which tests put machines."""
    fleet = Fleet(connect, client)
    yield fleet
    for machine in fleet.machines.values():
        await machine.http.aclose()


@pytest.fixture
async def machine(fleet):
    """The machine ``ag-1``, with a target ``tgt``."""
    machine = await fleet.machine("ag-1")
    await fleet.target("tgt", machine)
    return machine
