"""The audit trail at size: how fast it is sealed, exported and verified, and how much memory that takes.

``python benchmarks/audit.py [--quick]``. Starts a server and PostgreSQL of its own. Prints a table and, last,
``N of M goals met``. Ends with 0 if all are met, 1 if one is missed, 2 if PostgreSQL is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TypeVar, cast

import pytest
import trail
from certctl_sdk import audit_file
from certctl_sdk.testing.postgres import Postgres
from certctl_server import sealing, settings, start
from certctl_server.audit.sealer import seal_pass
from certctl_server.context import Context
from certctl_server.leader import Leadership
from goals import Goal, tell
from programs import BIN, Server, environment, resident_mib

ROWS = 1_000_000
"""What the times are told for; of fewer rows they are what as many would take."""
LEASE = timedelta(seconds=30)
REST_SECONDS = 2.0
FLIPS, FLIPPED_ROWS = 200, 300
#: As a careful operator runs it: what is committed is on disk.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_wal_size": "4GB"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, not what is asked for."""

    rows: int
    sealed: int


FULL = Size(rows=ROWS, sealed=40_000)
QUICK = Size(rows=ROWS // 10, sealed=8_000)


@dataclass(frozen=True, slots=True)
class Place:
    """An installation: what it is called here, where its files are, and what its programs are told."""

    name: str
    data_dir: Path
    more: Mapping[str, str]

    def run(self, work: Callable[[settings.Settings, sealing.Cipher], Coroutine[Any, Any, T]]) -> T:
        """Do something in its open database."""
        read = settings.read({"CERTCTL_DATA_DIR": str(self.data_dir), **self.more})

        async def around() -> T:
            async with start.connected(read):
                await start.bring_up_to_date()
                return await work(read, await sealing.load(read))

        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        return asyncio.run(around())

    def command(self, *arguments: str) -> Cost:
        """Run one of our commands to its end."""
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(BIN / arguments[0]), *arguments[1:]],
            env=environment(self.data_dir, self.more),
            stdout=subprocess.DEVNULL,
        )
        with Peak(process.pid) as peak:
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
        return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, peak.most)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took."""

    seconds: float
    processor: float
    """Seconds, of its own process."""
    memory: float
    """MiB, the most it held."""

    def of_a_million(self, empty: Cost, rows: int) -> tuple[float, str]:
        """Return the seconds for a million rows if ``rows`` cost this and none ``empty``, and how that was measured."""
        note = f"{rows} rows in {self.seconds:.1f} s ({self.processor:.1f} s of processor), start {empty.seconds:.1f} s"
        return empty.seconds + (self.seconds - empty.seconds) * ROWS / rows, note


async def seal(read: settings.Settings, cipher: sealing.Cipher, count: int) -> float:
    """Write so many rows and let the sealer have them; return its seconds."""
    leader = Leadership("benchmark", LEASE, alone=True)
    await leader.campaign()
    # All that the sealer asks of it.
    ctx = cast("Context", SimpleNamespace(settings=read, cipher=cipher, clock=lambda: datetime.now(UTC)))
    await trail.write_waiting(count)
    began = time.perf_counter()
    while await seal_pass(ctx, leader):
        pass
    return time.perf_counter() - began


def verifying(place: Place, size: Size) -> Iterator[Goal]:
    """``certctl-server audit verify``, the whole command, then the sealer on what comes after."""
    verify = ("certctl-server", "audit", "verify")
    empty = place.command(*verify)
    place.run(lambda _, cipher: trail.fill(cipher, size.rows))
    cost = place.command(*verify)
    million, note = cost.of_a_million(empty, size.rows)
    yield Goal(f"{place.name}: verify 1,000,000 rows", million, 10, "s", most=True, note=note)
    yield Goal(f"{place.name}: verify, memory", cost.memory, 128, "MiB", most=True, note="resident, at most")
    speed = size.sealed / place.run(lambda read, cipher: seal(read, cipher, size.sealed))
    note = f"{size.sealed} that waited, behind {size.rows}"
    yield Goal(f"{place.name}: rows sealed", speed, 3000, "rows/s", most=False, note=note)


class Peak:
    """The most memory that a process holds while something happens."""

    def __init__(self, pid: int) -> None:
        self.before = self.most = resident_mib(pid)
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # until it is over
            while not self._over.wait(0.01):
                self.most = max(self.most, resident_mib(self._pid))


def exporting(place: Place, size: Size, root: Path) -> Iterator[Goal]:
    """``certctl audit export`` from a server that runs, then ``certctl audit verify`` on the file."""
    server, file, none = Server(root), root / "audit.ndjson", root / "none.ndjson"
    none.write_bytes(Place("none", root / "none", {}).run(lambda _, cipher: trail.exported(cipher)))
    with server():
        time.sleep(REST_SECONDS)
        with Peak(server.pid) as peak:
            cost = place.command("certctl", "audit", "export", str(file))
    note = f"{file.stat().st_size / 2**20:.0f} MiB in {cost.seconds:.1f} s, {peak.before:.0f} MiB before"
    yield Goal("export: memory of the server grown", peak.most - peak.before, 32, "MiB", most=True, note=note)
    empty = place.command("certctl", "audit", "verify", str(none))
    cost = place.command("certctl", "audit", "verify", str(file))
    million, note = cost.of_a_million(empty, size.rows)
    yield Goal("export: verify 1,000,000 rows", million, 10, "s", most=True, note=note)
    yield Goal("export: verify, memory", cost.memory, 96, "MiB", most=True, note="resident, at most")


def flips(root: Path) -> Goal:
    """One bit after the other, anywhere in an export."""

    async def work(read: settings.Settings, cipher: sealing.Cipher) -> bytes:
        await seal(read, cipher, FLIPPED_ROWS)
        return await trail.exported(cipher)

    raw = Place("flips", root / "flips", {}).run(work)
    if audit_file.verify([io.BytesIO(raw)]).faults.count:
        raise RuntimeError("the export does not verify as it is")
    found, chosen = 0, random.Random(1)  # the same ones every time
    for _ in range(FLIPS):
        at, bit = chosen.randrange(len(raw)), chosen.randrange(8)
        changed = raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        found += bool(audit_file.verify([io.BytesIO(changed)]).faults.count)
    return Goal("export: changes of one bit found", found, FLIPS, "", most=False, note=f"of {FLIPS}, anywhere in it")


def goals(size: Size, root: Path, postgres: Postgres) -> Iterator[Goal]:
    """Measure one after the other."""
    lite = Place("SQLite", root / "server", {})
    yield from verifying(lite, size)
    yield from exporting(lite, size, root)
    yield flips(root)
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    more = {"CERTCTL_DATABASE_URL": postgres.create("certctl"), "CERTCTL_CONFIG_ENCRYPTION_KEY": key}
    yield from verifying(Place("PostgreSQL", root / "scaled", more), size)


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Measure, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, within 45 seconds")
    size = QUICK if parser.parse_args(arguments).quick else FULL
    say(f"{size.rows} audit rows")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certctl-bench-")))
        try:
            postgres = stack.enter_context(Postgres(**DURABLE))
        except (pytest.skip.Exception, pytest.fail.Exception) as exc:
            say(str(exc))
            return 2
        return tell(goals(size, root, postgres), say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
