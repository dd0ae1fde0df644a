"""The programs that are measured: a server with everything embedded, and an agent beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import inventory
from certctl_agent.allowed import write_text
from certctl_sdk.client import Access, Client
from certctl_server import db
from certctl_server.db.migrate import migrate
from certctl_server.tables import TABLES

BIN = Path(sys.executable).parent
SECONDS_TO_START = 30.0


def environment(data_dir: Path) -> dict[str, str]:
    """Return the environment of a program: nothing of ours from outside, no rate limit for the one client there is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CERTCTL_")}
    return kept | {
        "CERTCTL_DATA_DIR": str(data_dir),
        "CERTCTL_RATE_LIMIT_ENABLED": "false",
        "CERTCTL_LOG_LEVEL": "warn",
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
def running(*command: str, data_dir: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program, ended in the end; what it says goes to ``log``."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment(data_dir), stdout=said, stderr=said)
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

    def __init__(self, root: Path) -> None:
        self.data_dir = root / "server"
        self.log = root / "server.log"
        self.url = ""
        self.pid = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Client]:
        """Start it, and lend a client once it answers."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = (str(BIN / "certctl"), "up", "--port", str(port))
        with running(*command, data_dir=self.data_dir, log=self.log) as process:
            self.pid = process.pid
            wait_for(lambda: (self.data_dir / "client.toml").exists() and self._answers(port), process, self.log)
            with Client(Access(self.url, (self.data_dir / "admin-key").read_text().strip())) as client:
                yield client

    @staticmethod
    def _answers(port: int) -> bool:
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
