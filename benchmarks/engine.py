"""What the engine of a big installation can do, against stated goals.

``python benchmarks/engine.py [--quick]``. Starts PostgreSQL and Redis of its own. Prints a table of how the scan grows
with the inventory, a table of goals and, last, ``N of M goals met``. Ends with 0 if all are met, 1 if one is missed,
2 if PostgreSQL or Redis is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import instant
import inventory
import orders
import pytest
import uvloop
from certctl_sdk.testing.postgres import Postgres
from certctl_sdk.testing.redis import Redis
from certctl_server import db
from certctl_server.auth.keys import digest
from certctl_server.certificates import renewal
from certctl_server.db.migrate import migrate
from certctl_server.jobs.state import claim
from certctl_server.leader import Leadership
from certctl_server.listeners import settle_memory
from certctl_server.tables import TABLES
from goals import Goal, tell
from programs import Scaled, Server, cpu_seconds, environment, resident_mib

#: As a careful operator runs it: what is committed is on disk.
DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "max_connections": "200",
    "timezone": "UTC",
    "shared_preload_libraries": "pg_stat_statements",
}
CLAIMS, LIMIT = 100, 25
CONNECTIONS = 16
LEASE = timedelta(seconds=30)
SETTLED_SECONDS = 120.0
"""After which the memory of a process is compared with what it is in the end."""
T = TypeVar("T")
STATEMENTS = db.Sql("SELECT coalesce(sum(calls), 0)::int AS calls FROM pg_stat_statements")
MADE = db.Sql("SELECT count(*) AS jobs FROM job WHERE type = 'Renewal' AND certificate_id IN ({ids:$1})")
LANES = {"lane-most": 5 / 6, "lane-little": 1 / 6}
PUT_AGENTS = db.insert_rows("agent", {
    "id": "text", "name": "text", "status": "text", "capabilities": "text",
    **dict.fromkeys(("registered_at", "created_at", "updated_at"), "timestamptz"),
})  # fmt: skip
PUT_KEYS = db.insert_rows("api_key", {
    **dict.fromkeys(("id", "name", "role", "agent_id", "digest"), "text"), "created_at": "timestamptz",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, not what is asked for."""

    certificates: int
    """Of the scan; a tenth of them are due."""
    most: int
    """Of the scan with none due."""
    pending: int
    instant: int
    local: int
    lite: int
    agents: int
    poll_seconds: float
    live_seconds: float


FULL = Size(100_000, 1_000_000, 240_000, 8_000, 5_000, 3_000, 5_000, 10, 600)
QUICK = Size(10_000, 100_000, 24_000, 1_200, 900, 500, 500, 2, 3.5)


def on_database(url: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what ``work`` comes to with the database open in this process."""

    async def around() -> T:
        settle_memory()  # as a server has it
        await db.connect(url, TABLES)
        try:
            return await work()
        finally:
            await db.close()

    return uvloop.run(around())


async def run_all(statements: list[db.Sql]) -> None:
    """Run them, then let the planner know and the disk rest."""
    for statement in statements:
        await db.fetch(statement)
    await tidy()


async def tidy(tables: str = "") -> None:
    """Do now what the database would do during a measurement, for ``tables`` or all of them."""
    if db.dialect() == "sqlite":  # it plans by statistics of ours
        return
    await db.fetch(db.Sql(f"VACUUM (ANALYZE) {tables}"))
    await db.fetch(db.Sql("CHECKPOINT"))


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan."""

    certificates: int
    due: int
    milliseconds: float
    statements: int

    def line(self) -> str:
        """Return its row of the table of growth."""
        return f"{self.certificates:>12} {self.due:>8} {self.milliseconds:>10.2f} {self.statements:>11}"


async def scan(certificates: int, first: int, due: int, rounds: int = 1) -> Scan:
    """Let certificates from ``first`` on be due, scan, and check that each has its job."""
    if due:
        for statement in inventory.due(first, first + due - 1):
            await db.fetch(statement)
        await tidy("certificate, certificate_version")
    leadership = Leadership("benchmark", LEASE, alone=True)
    await leadership.campaign()
    times, counts = [], []
    for _ in range(rounds):
        [before] = await db.fetch(STATEMENTS)
        began = time.perf_counter()
        await renewal.scan(leadership)
        times.append((time.perf_counter() - began) * 1000)
        [after] = await db.fetch(STATEMENTS)
        counts.append(after["calls"] - before["calls"] - 1)
    await leadership.resign()
    [made] = await db.fetch(MADE, json.dumps([f"mc-plenty-{n}" for n in range(first, first + due)]))
    if made["jobs"] != due:
        raise RuntimeError(f"{made['jobs']} jobs were made for {due} certificates")
    return Scan(certificates, due, median(times), max(counts))


async def grow(size: Size) -> list[Scan]:
    """Scan inventories of growing size, with none due and with some."""
    await db.fetch(db.Sql("CREATE EXTENSION pg_stat_statements"))
    await migrate()
    found, there, tenth = list[Scan](), 0, size.certificates // 10
    for certificates in (tenth, size.certificates, size.most):
        more = inventory.more(there + 1, certificates) if there else inventory.statements(certificates)
        await run_all(more)
        if not there:
            await scan(certificates, 1, inventory.DUE)  # what is due from the beginning
        found.append(await scan(certificates, 1, 0, rounds=21))
        found.append(await scan(certificates, there + inventory.DUE + 1, tenth // 2))
        if certificates == size.certificates:
            found.append(await scan(certificates, there + tenth + 1, certificates // 10))
        there = certificates
    return found


def scans(size: Size, url: str, say: Callable[[str], None]) -> Iterator[Goal]:
    """The renewal scan."""
    found = on_database(url, lambda: grow(size))
    say(f"{'certificates':>12} {'due':>8} {'scan in ms':>10} {'statements':>11}")
    for each in found:
        say(each.line())
    [due] = [each for each in found if each.due == each.certificates // 10 and each.certificates == size.certificates]
    [none] = [each for each in found if not each.due and each.certificates == size.most]
    note = f"{due.due} of {due.certificates} due"
    yield Goal("scan, jobs created", due.milliseconds / 1000, 2, "s", most=True, note=note)
    yield Goal("scan, statements", due.statements, 20, "", most=True, note=note)
    yield Goal("scan, none due", none.milliseconds, 5, "ms", most=True, note=f"{none.certificates}, median of 21")


async def claims(size: Size) -> dict[str, float]:
    """Claim from lanes with much and with little to do; return the median of each, in milliseconds."""
    for lane, share in LANES.items():
        for statement in inventory.waiting(lane, round(size.pending * share)):
            await db.fetch(statement)
    await tidy("job, lane")
    found = {}
    for lane in LANES:
        await db.fetch(db.Sql("UPDATE lane SET concurrency = 1000000 WHERE name = $1"), lane)
        times = []
        for _ in range(CLAIMS):
            began = time.perf_counter()
            if len(await claim("benchmark", lane, limit=LIMIT, lease=LEASE)) != LIMIT:
                raise RuntimeError("less was claimed than there is")
            times.append((time.perf_counter() - began) * 1000)
        found[lane] = median(times)
    await db.fetch(db.Sql("DELETE FROM job WHERE lane LIKE 'lane-%'"))
    return found


def claiming(size: Size, url: str) -> Goal:
    """Claims from a long queue."""
    found = on_database(url, lambda: claims(size))
    note = f"{size.pending} pending, {LIMIT} at once, slowest lane's median of {CLAIMS}"
    return Goal("claim", max(found.values()), 5, "ms", most=True, note=note)


def drained(url: str, issuer_id: str, count: int) -> tuple[float, str]:
    """Wait until workers that run by now have done the orders of an issuer; return how many a second, and a note."""
    seconds = on_database(url, lambda: orders.done(issuer_id, count))
    return count / seconds, f"{count} in {seconds:.1f} s"


def working(size: Size, url: str, scaled: Scaled, root: Path) -> Iterator[Goal]:
    """What one worker does with an issuer that takes no time, and all of the machine with our own CA."""
    pems = {"iss-instant": orders.csrs("iss-instant", size.instant), "iss-own": orders.csrs("iss-own", size.local)}
    names = orders.names("iss-instant", size.instant)
    (root / "signed.json").write_text(uvloop.run(instant.signed(names, pems["iss-instant"])))
    config = {"iss-instant": ("Instant", {"path": str(root / "signed.json")}), "iss-own": ("GenericCA", {})}
    plan = [
        ("jobs of an instant issuer, one worker", "iss-instant", 1, 400.0),
        ("orders to stored certificates, PostgreSQL", "iss-own", os.cpu_count() or 1, 250.0),
    ]
    for what, issuer_id, workers, limit in plan:

        async def put(issuer_id: str = issuer_id) -> None:
            await orders.issuer(issuer_id, *config[issuer_id])
            await orders.put(issuer_id, pems[issuer_id])
            await tidy("job, certificate, lane")

        on_database(url, put)
        with scaled.workers(workers):
            rate, note = drained(url, issuer_id, len(pems[issuer_id]))
        yield Goal(what, rate, limit, "/s", most=False, note=f"{note}, {workers} worker(s)")


def lite(size: Size, root: Path) -> Goal:
    """The same on SQLite, all in one process."""
    server = Server(root / "lite")
    (root / "lite").mkdir()
    server.data_dir.mkdir(mode=0o700)
    url = f"sqlite://{server.data_dir / 'certctl.db'}"

    async def put() -> None:
        await migrate()
        for statement in inventory.statements(size.certificates // 10):
            await db.fetch(statement)
        await orders.issuer("iss-own", "GenericCA", {})
        await orders.put("iss-own", orders.csrs("iss-own", size.lite))

    on_database(url, put)
    with server():
        rate, note = drained(url, "iss-own", size.lite)
    what = "orders to stored certificates, SQLite"
    return Goal(what, rate, 150, "/s", most=False, note=f"{note}, everything in one process")


async def enrolled(count: int) -> list[tuple[str, str]]:
    """Put so many agents into the open database; return their ids and keys."""
    keys = [(f"ag-live-{number}", f"cca_live_{number}") for number in range(count)]
    now = str(db.now())
    times = dict.fromkeys(("registered_at", "created_at", "updated_at"), now)
    agents = [{"id": id, "name": id, "status": "Offline", "capabilities": '["verify"]', **times} for id, _ in keys]
    owned = [
        {"id": f"key-{id}", "name": id, "role": "agent", "agent_id": id, "digest": digest(key), "created_at": now}
        for id, key in keys
    ]
    await db.fetch(PUT_AGENTS, json.dumps(agents))
    await db.fetch(PUT_KEYS, json.dumps(owned))
    await tidy("agent, api_key")
    return keys


def ask(*arguments: str, root: Path) -> dict[str, float]:
    """Run the simulated agents in a process of their own and return what they tell."""
    command = [sys.executable, str(Path(__file__).with_name("fleet.py")), *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(root))
    found: dict[str, float] = json.loads(told.stdout)
    return found


def agents(size: Size, url: str, scaled: Scaled, root: Path) -> Iterator[Goal]:
    """Polls as fast as they go, then a fleet at its real pace; the memory of processes if that takes long enough."""
    keys = on_database(url, lambda: enrolled(size.agents))
    file = root / "keys"
    file.write_text("".join(f"{id} {key}\n" for id, key in keys))
    with scaled.server() as server, scaled.workers(1) as [worker]:
        found = ask("poll", scaled.url, str(file), str(size.poll_seconds), str(CONNECTIONS), root=root)
        rate = found["polls"] / found["seconds"]
        yield Goal("work polls", rate, 2000, "/s", most=False, note=f"{CONNECTIONS} connections, one server")
        watch = Watch({"server": server, "worker": worker})
        found = ask("live", scaled.url, str(file), str(size.live_seconds), root=root)
        note = f"{found['answers']:.0f} answers, {found['broken']:.0f} broken, worst {found['worst']:.1f} s"
        yield Goal("a fleet at its pace: answer late, p99", found["p99"] * 1000, 200, "ms", most=True, note=note)
        used = watch.cores("server")
        yield Goal("a fleet at its pace: cores of the server", used, 1, "", most=True, note=f"{size.agents} agents")
        if size.live_seconds > SETTLED_SECONDS:
            yield from watch.growth()


class Watch:
    """Looks at processes from its making on, in a thread."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._began = time.perf_counter()
        self._used = {name: cpu_seconds(pid) for name, pid in pids.items()}
        self._early: dict[str, float] = {}
        self._timer = threading.Timer(SETTLED_SECONDS, self._note)
        self._timer.daemon = True
        self._timer.start()

    def _note(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was over before
            self._early = {name: resident_mib(pid) for name, pid in self._pids.items()}

    def cores(self, name: str) -> float:
        """Return how many cores a process has used on average."""
        return (cpu_seconds(self._pids[name]) - self._used[name]) / (time.perf_counter() - self._began)

    def growth(self) -> Iterator[Goal]:
        """The memory of each process, against what it was after two minutes."""
        for name, pid in self._pids.items():
            now, early = resident_mib(pid), self._early[name]
            grown = 100 * (now / early - 1)
            note = f"{early:.0f} MiB after {SETTLED_SECONDS:.0f} s, {now:.0f} MiB in the end"
            yield Goal(f"memory grown: {name}", grown, 5, "%", most=True, note=note)


def goals(size: Size, root: Path, peers: tuple[str, str], say: Callable[[str], None]) -> Iterator[Goal]:
    """Measure one after the other; ``peers`` are where the database and the broker are."""
    url, broker = peers
    yield from scans(size, url, say)
    yield claiming(size, url)
    scaled = Scaled(root, url, broker, instant.install(root / "packages"))
    yield from working(size, url, scaled, root)
    yield lite(size, root)
    yield from agents(size, url, scaled, root)


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Measure, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the inventory, within 45 seconds")
    quick = parser.parse_args(arguments).quick
    size = QUICK if quick else FULL
    kind = f"quick: {QUICK.certificates / FULL.certificates:.0%} of the full inventory" if quick else "full"
    say(f"{size.certificates} to {size.most} certificates, {size.pending} pending jobs, {size.agents} agents ({kind})")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certctl-bench-")))
        try:
            postgres = stack.enter_context(Postgres(**DURABLE))
            broker = stack.enter_context(Redis()).url
        except (pytest.skip.Exception, pytest.fail.Exception) as exc:
            say(str(exc))
            return 2
        url = postgres.create("certctl")
        return tell(goals(size, root, (url, broker), say), say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
