"""The programs that are measured: a server with everything embedded, and an agent beside it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import inventory
from certctl_agent.allowed import write_text
from certctl_sdk.client import Access, Client
from certctl_server import db
from certctl_server.db.migrate import migrate
from certctl_server.tables import TABLES

BIN = Path(sys.executable).parent
SECONDS_TO_START = 30.0


def environment(data_dir: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program: nothing of ours from outside, no rate limit for the one client there is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CERTCTL_")}
    return kept | {
        "CERTCTL_DATA_DIR": str(data_dir),
        "CERTCTL_RATE_LIMIT_ENABLED": "false",
        "CERTCTL_LOG_LEVEL": "warn",
        **(more or {}),
    }


async def _fill(path: Path, certificates: int) -> None:
    await db.connect(f"sqlite://{path}", TABLES)
    try:
        await migrate()
        for statement in inventory.statements(certificates):
            await db.fetch(statement)
    finally:
        await db.close()


def fill(data_dir: Path, certificates: int) -> None:
    """Make the database of a server that looks after so many certificates already."""
    data_dir.mkdir(mode=0o700, parents=True)
    asyncio.run(_fill(data_dir / "certctl.db", certificates))


@contextlib.contextmanager
def running(
    *command: str, data_dir: Path, log: Path, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program, ended in the end; what it says goes to ``log``, ``more`` joins its environment."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment(data_dir, more), stdout=said, stderr=said)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SECONDS_TO_START)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Server:
    """``certctl up`` on a port and a directory of its own."""

    def __init__(self, root: Path, more: Mapping[str, str] | None = None) -> None:
        self.data_dir = root / "server"
        self.log = root / "server.log"
        self.url = ""
        self.pid = 0
        self._more = more

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Client]:
        """Start it, and lend a client once it answers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = (str(BIN / "certctl"), "up", "--port", str(port))
        with running(*command, data_dir=self.data_dir, log=self.log, more=self._more) as process:
            self.pid = process.pid
            wait_for(lambda: (self.data_dir / "client.toml").exists() and answers(port), process, self.log)
            with Client(Access(self.url, (self.data_dir / "admin-key").read_text().strip())) as client:
                yield client


class Scaled:
    """``certctl-server`` and any number of ``certctl-server worker`` over PostgreSQL and Redis."""

    def __init__(self, root: Path, database: str, broker: str, more: Mapping[str, str] | None = None) -> None:
        self.url = ""
        self._root = root
        self._key = secrets.token_urlsafe(32)
        self.environment = {
            "CERTCTL_DATABASE_URL": database,
            "CERTCTL_BROKER_URL": broker,
            "CERTCTL_CONFIG_ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "CERTCTL_AUTH_SECRET": self._key,
            **(more or {}),
        }

    @contextlib.contextmanager
    def server(self) -> Iterator[int]:
        """Start the server and lend its process id once it answers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        log, more = self._root / f"server-{port}.log", {**self.environment, "CERTCTL_SERVER_PORT": str(port)}
        with running(str(BIN / "certctl-server"), data_dir=self._root / "scaled", log=log, more=more) as process:
            wait_for(lambda: answers(port), process, log)
            yield process.pid

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[list[int]]:
        """Start workers and lend their process ids; what they do first says that they are there."""
        with contextlib.ExitStack() as stack:
            pids = []
            for number in range(count):
                place, log = self._root / f"worker-{number}", self._root / f"worker-{number}.log"
                command = (str(BIN / "certctl-server"), "worker")
                process = stack.enter_context(running(*command, data_dir=place, log=log, more=self.environment))
                pids.append(process.pid)
            yield pids


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


class Agent:
    """``certctl-agent run``, enrolled at ``server`` and allowed one directory and NGINX's two commands."""

    def __init__(self, root: Path, server: Server) -> None:
        self.state_dir = root / "agent"
        self.log = root / "agent.log"
        self._server = server

    @contextlib.contextmanager
    def __call__(self, directory: Path, commands: dict[str, tuple[str, ...]]) -> Iterator[int]:
        """Start it and lend its process id."""
        config = self.state_dir / "agent.toml"
        self.state_dir.mkdir(mode=0o700)
        config.write_text(write_text([directory], commands, []))
        config.chmod(0o600)
        where = ("--state-dir", str(self.state_dir), "--config", str(config))
        program, data_dir = str(BIN / "certctl-agent"), self._server.data_dir
        token = ("--token-file", str(data_dir / "enrol-token"), "--server", self._server.url)
        subprocess.run(
            [program, "enroll", "--yes", *where, *token],
            env=environment(self.state_dir),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with running(program, "run", *where, data_dir=self.state_dir, log=self.log) as process:
            wait_for(lambda: b"agent started" in self.log.read_bytes() or process.poll() is None, process, self.log)
            yield process.pid


def wait_for(there: object, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once ``there`` says so.

    Raises:
        RuntimeError: the program ended or took too long; the message is what it said.
    """
    end = time.monotonic() + SECONDS_TO_START
    while not there():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args} did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def resident_mib(pid: int) -> float:
    """Return the memory that a process holds now, as the kernel counts it (VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
