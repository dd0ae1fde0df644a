import asyncio
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from certctl_core.plugins import Plugins
from certctl_sdk.http import httpx
from certctl_sdk.testing.postgres import Postgres
from certctl_server import db
from certctl_server.app import make_app
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.context import Context
from certctl_server.db.migrate import migrate
from certctl_server.sealing import Cipher
from certctl_server.settings import Settings
from certctl_server.tables import TABLES


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


@pytest.fixture(scope="session")
def postgres():
    """A private PostgreSQL with a migrated template database."""
    with Postgres() as cluster:
        _apart(_migrated(cluster.create("template_certctl")))
        yield cluster


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """Where a fresh, migrated database of each dialect is."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite://{path}"
        return
    cluster = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    cluster.run(f"CREATE DATABASE {name} TEMPLATE template_certctl STRATEGY file_copy")
    yield cluster.url(name)
    cluster.run(f"DROP DATABASE {name} WITH (FORCE)")


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
    ctx.engine = SimpleNamespace(instances=Instances(ctx, loop))
    yield ctx.engine
    await ctx.engine.instances.aclose()
    await loop.stop()
