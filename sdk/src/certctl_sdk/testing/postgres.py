"""A private PostgreSQL on a free loopback port, gone without a trace when it is left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

#: Durability costs time, and this cluster outlives no power failure anyway.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "timezone": "America/New_York",
}


class Postgres:
    """One cluster, running while it is entered; everybody on this machine may connect as its superuser.

    Its time zone is not UTC, so that nobody gets away with trusting the server's.
    """

    def __init__(self, **settings: str) -> None:
        """``settings`` are parameters of ``postgresql.conf`` that replace or join ``SETTINGS``."""
        self.user = "postgres"
        self.port = 0
        """Where it listens on 127.0.0.1."""
        self.environ: dict[str, str] = {}
        """What its programs find in their environment, beside what is there."""
        self._settings = {**SETTINGS, **settings}
        self._programs = _programs()
        # It refuses to run as root, so root hands it to the user that its package made.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._place = Path()

    def url(self, name: str) -> str:
        """Return where the database ``name`` is."""
        return f"postgres://{self.user}@127.0.0.1:{self.port}/{name}"

    def run(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement; return what it printed, rows as lines.

        Raises:
            subprocess.CalledProcessError: the server refused it.
        """
        arguments = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statement, self.url(database)]
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  # ours

    def create(self, name: str) -> str:
        """Make an empty database; return where it is."""
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def dump(self, name: str) -> bytes:
        """Return a backup of the database ``name``, as SQL."""
        arguments = ["pg_dump", "--inserts", self.url(name)]
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603  # ours

    def start(self) -> None:
        """Let it run, after a stop with all its data; it keeps its port."""
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        where = f"-p {self.port} -h 127.0.0.1 -k {self._place} {options}"
        self._call("pg_ctl", "-D", self._data, "-w", "-l", self._place / "log", "-o", where, "start")

    def stop(self) -> None:
        """End it at once, as a crash would."""
        self._call("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def __enter__(self) -> Self:
        # Not below pytest's own directory, which is closed to other users.
        self._place = Path(tempfile.mkdtemp(prefix="certctl-postgres-"))
        try:
            if self._as_user:
                shutil.chown(self._place, "postgres")
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = int(free.getsockname()[1])
            self._call(
                "initdb", "-D", self._data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"
            )
            self.start()
        except BaseException:
            shutil.rmtree(self._place)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if (self._data / "postmaster.pid").exists():
                self.stop()
        finally:
            shutil.rmtree(self._place)

    @property
    def _data(self) -> Path:
        return self._place / "data"

    def _call(self, program: str, *arguments: str | Path) -> None:
        command = [*self._as_user, self._programs / program, *arguments]
        environ = os.environ | self.environ
        subprocess.run(command, check=True, cwd=self._place, env=environ, stdout=subprocess.DEVNULL)  # noqa: S603  # ours


def _programs() -> Path:
    """Find PostgreSQL's server programs; skip the test where they are missing, but not in CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).parent
    reason = "PostgreSQL's server programs are not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    return pytest.skip(reason)
