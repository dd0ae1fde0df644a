import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from certctl_core.plugins import Plugins
from certctl_sdk.http import httpx
from certctl_server import db
from certctl_server.app import make_app
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
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


@dataclass
class Cluster:
    """A private PostgreSQL with a migrated template database."""

    port: int
    user: str = "postgres"

    def url(self, name):
        return f"postgres://{self.user}@127.0.0.1:{self.port}/{name}"

    async def run(self, statement):
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def _postgres_programs():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).parent
    reason = "PostgreSQL's server programs are not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    return pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres():
    """PostgreSQL refuses to run as root, so root hands it to the user that its package made."""
    programs = _postgres_programs()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # Not below pytest's own directory, which is closed to other users.
    place = Path(tempfile.mkdtemp(prefix="certctl-postgres-"))
    if as_user:
        shutil.chown(place, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = Cluster(port)

    def call(program, *arguments):
        subprocess.run([*as_user, programs / program, *arguments], check=True, cwd=place, stdout=subprocess.DEVNULL)

    options = (
        f"-p {port} -h 127.0.0.1 -k {place} -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        " -c max_connections=60 -c shared_buffers=32MB -c timezone=America/New_York"
    )
    try:
        call("initdb", "-D", place / "data", "-U", cluster.user, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        call("pg_ctl", "-D", place / "data", "-w", "-l", place / "log", "-o", options, "start")
        _apart(cluster.run("CREATE DATABASE template_certctl"))
        _apart(_migrated(cluster.url("template_certctl")))
        yield cluster
        call("pg_ctl", "-D", place / "data", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request, tmp_path):
    """A fresh, migrated, open database of each dialect; its value is the dialect."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        await db.connect(f"sqlite://{path}", TABLES)
        yield "sqlite"
        await db.close()
        return
    cluster = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    await cluster.run(f"CREATE DATABASE {name} TEMPLATE template_certctl STRATEGY file_copy")
    await db.connect(cluster.url(name), TABLES, connections=10)
    yield "postgres"
    await db.close()
    await cluster.run(f"DROP DATABASE {name} WITH (FORCE)")


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
