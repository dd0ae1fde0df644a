"""How fast the REST API answers on a big installation, against stated goals.

``python benchmarks/api.py [--quick]``. Starts PostgreSQL and Redis of its own; wrk is the client. Prints a table and,
last, ``N of M goals met``. Ends with 0 if all are met, 1 if one is missed, 2 if PostgreSQL, Redis or wrk is not
installed. The full run goes on to 1,000,000 certificates and tells, without goals, the same on SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import inventory
import pytest
import wrk
from certctl_sdk.testing.postgres import Postgres
from certctl_sdk.testing.redis import Redis
from certctl_server import db
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.db.migrate import migrate
from engine import DURABLE, enrolled, on_database, run_all
from fleet import BEAT
from goals import Goal, tell
from load import Connection
from programs import Scaled, Server, resident_mib
from wrk import Asked

CONNECTIONS = 16
FAST = 1000.0
"""From this goal on, answers a second, the slowest hundredth may take ``SHORT_MS``, else ``LONG_MS``."""
SHORT_MS, LONG_MS = 60, 150
STALE_SECONDS = 2
KEPT = 0.8
KEEPING = ("list 50", "summary", "cursor page")
"""What is asked again of the biggest inventory."""
FLAT_PERCENT = 5
MORE = 1.05
ROUNDS = 5
PATIENCE_SECONDS = 60.0
TIMELINE = "stats/expiration-timeline?days=365"
ORDER = {
    "owner_id": "o-1",
    "team_id": "t-1",
    "issuer_id": "iss-plenty",
    "renewal_policy_id": "rp-plenty",
    "environment": "production",
}
COUNTED = {
    "certificates?per_page=1": "SELECT count(*) AS n FROM certificate",
    "certificates?per_page=1&status=Expiring": "SELECT count(*) AS n FROM certificate WHERE status = 'Expiring'",
    "certificates?per_page=1&environment=production&owner_id=o-1": "SELECT count(*) AS n FROM certificate"
    " WHERE environment = 'production' AND owner_id = 'o-1'",
    "jobs?per_page=1": "SELECT count(*) AS n FROM job",
}
BY_STATUS = db.Sql("SELECT status, count(*) AS n FROM certificate GROUP BY status")
ENDING = db.Sql("SELECT count(*) AS n FROM certificate WHERE expires_at >= $1 AND expires_at < $2")
UNSEALED = db.Sql("SELECT EXISTS (SELECT 1 FROM audit_event WHERE sequence IS NULL) AS waits")
CALLS = db.Sql("SELECT count(*) AS n FROM audit_event WHERE resource_type = 'api'")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, not what is asked for."""

    certificates: int
    seconds: int
    """Of each load."""
    warm_seconds: int
    """Of the one before all, of everything in turns."""
    agents: int = 1000
    most: int = 0
    """Certificates that the inventory grows to in the end; 0: it stays."""


FULL, QUICK = Size(100_000, 10, 30, most=1_000_000), Size(10_000, 1, 6)


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that is asked."""

    name: str
    least: float
    """Answers a second; 0: told without a goal."""
    asked: Sequence[Asked]
    recorded: bool = True
    """Whether the audit trail keeps a row of each."""


async def _sealed() -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    # It is another process that does it.
    while (await db.fetch(UNSEALED))[0]["waits"] and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


@dataclass(slots=True)
class Site:
    """An installation that answers."""

    url: str
    database: str
    key: str
    agents: Sequence[tuple[str, str]]
    certificates: int
    answers: int = 0
    """Those so far that the audit trail has a row of each of."""

    def load(self, kind: Kind, seconds: int, *urls: str) -> wrk.Load:
        """Ask it over and over, once what was asked before is sealed: nobody is to pay for that."""
        on_database(self.database, _sealed)
        found = wrk.load(urls or (self.url,), self.key, kind.asked, connections=CONNECTIONS, seconds=seconds)
        self.answers += found.answers if kind.recorded else 0
        return found

    def client(self) -> Connection:
        """Return a client that asks one thing after the other."""
        return Connection(self.url, self.key)


def cursors(client: Connection) -> list[str]:
    """Return where pages begin, all over the list."""
    found, path = [""], "certificates?page_size=500&fields=id&cursor="
    while cursor := client.ask("GET", path + found[-1]).get("next_cursor"):
        found.append(cursor)
    return found


def kinds(site: Site) -> Iterator[Kind]:
    """Yield what is asked."""
    chosen = random.Random(1)  # the same ones every time
    ids = [f"mc-plenty-{chosen.randrange(site.certificates) + 1}" for _ in range(2000)]

    def gets(paths: Sequence[str]) -> list[Asked]:
        return [Asked(path) for path in paths]

    yield Kind("get one", 1800, gets([f"certificates/{id}" for id in ids]))
    yield Kind("list 50", 1000, gets(["certificates?per_page=50"]))
    yield Kind("page of 500", 300, gets(["certificates?per_page=500"]))
    pages = [f"certificates?page_size=50&cursor={cursor}" for cursor in cursors(site.client())]
    yield Kind("cursor page", 1000, gets(chosen.sample(pages, len(pages))))
    statuses = ("Active", "Expiring", "Revoked")
    yield Kind("by expiry, one status", 1000, gets([f"certificates?status={s}&sort=notAfter" for s in statuses]))
    # Those of an owner are in one environment.
    both = [f"certificates?environment=production&owner_id=o-{4 * n + 1}" for n in range(inventory.TEAMS // 4)]
    yield Kind("two filters", 300, gets(both))
    yield Kind("summary", 1500, gets(["stats/summary"]))
    yield Kind("certificates by status", 1500, gets(["stats/certificates-by-status"]))
    yield Kind("expiration timeline", 300, gets([TIMELINE]))
    orders = [json.dumps(ORDER | {"common_name": f"order-{number}.example.com"}) for number in range(30_000)]
    yield Kind("create", 550, [Asked("certificates", "POST", body=body) for body in orders])
    beat = json.dumps(BEAT)
    beats = [Asked(f"agents/{id}/heartbeat", "POST", key, beat) for id, key in site.agents]
    yield Kind("heartbeat", 2000, beats, recorded=False)
    yield Kind("q", 0, gets([f"certificates?q=ost-{number}" for number in range(50)]))


def mixed(asked: Sequence[Kind]) -> Kind:
    """Return all of it in turns."""
    return Kind(
        "all", 0, [kind.asked[-turn % len(kind.asked)] for turn in range(1, 200) for kind in asked], recorded=False
    )


def line(what: str, load: wrk.Load) -> str:
    """Return a row of the table that has no goal."""
    return f"{what:<44} {load.rate:>9.2f} {'':>9} {'/s':<7} {'':<7} p99 {load.p99_ms:.1f} ms"


def rates(
    site: Site, size: Size, asked: Sequence[Kind], found: dict[str, float], say: Callable[[str], None]
) -> Iterator[Goal]:
    """How often each is answered, and how late the latest hundredth; the rates go to ``found``."""
    for kind in asked:
        load = site.load(kind, size.seconds)
        found[kind.name] = load.rate
        if not kind.least:
            say(line(kind.name, load))
            continue
        note = f"{load.answers} in {size.seconds} s"
        yield Goal(kind.name, load.rate, kind.least, "/s", most=False, note=note)
        latest = SHORT_MS if kind.least >= FAST else LONG_MS
        yield Goal(f"{kind.name}, p99", load.p99_ms, latest, "ms", most=True, note="")


def stale(site: Site) -> Goal:
    """How long it takes at most until the summary knows of a certificate."""
    client, worst = site.client(), 0.0
    for number in range(ROUNDS):
        before = client.ask("GET", "stats/summary")["total_certificates"]
        client.ask("POST", "certificates", ORDER | {"common_name": f"late-{number}.example.com"})
        began = time.perf_counter()
        while client.ask("GET", "stats/summary")["total_certificates"] == before:
            time.sleep(0.01)
        worst = max(worst, time.perf_counter() - began)
    return Goal("summary: stale", worst, STALE_SECONDS, "s", most=True, note=f"worst of {ROUNDS}")


async def _counted() -> dict[str, Any]:
    today = db.now().replace(hour=0, minute=0, second=0, microsecond=0)
    found: dict[str, Any] = {path: (await db.fetch(db.Sql(text)))[0]["n"] for path, text in COUNTED.items()}
    found["stats/summary"] = found["certificates?per_page=1"]
    found["stats/certificates-by-status"] = {row["status"]: row["n"] for row in await db.fetch(BY_STATUS)}
    found[TIMELINE] = (await db.fetch(ENDING, today, today + timedelta(days=365)))[0]["n"]
    found["calls"] = (await db.fetch(CALLS))[0]["n"]
    return found


def exact(site: Site) -> Iterator[Goal]:
    """What is told, against a full count while nobody changes anything; and the rows of what was called."""
    client = site.client()
    told: dict[str, Any] = {path: client.ask("GET", path)["total"] for path in COUNTED}
    told["stats/summary"] = client.ask("GET", "stats/summary")["total_certificates"]
    statuses: Any = client.ask("GET", "stats/certificates-by-status")
    told["stats/certificates-by-status"] = {each["status"]: each["count"] for each in statuses if each["count"]}
    days: Any = client.ask("GET", TIMELINE)
    told[TIMELINE] = sum(each["count"] for each in days)
    time.sleep(1)  # calls are written down twice a second
    truth = on_database(site.database, _counted)
    lost = max(0, site.answers - truth.pop("calls"))
    wrong = sorted(name for name, value in truth.items() if told[name] != value)
    yield Goal("totals that are not exact", len(wrong), 0, "", most=True, note=", ".join(wrong) or f"of {len(truth)}")
    yield Goal("calls without an audit row", lost, 0, "", most=True, note=f"of {site.answers}")


def doubled(site: Site, other: str, asked: Sequence[Kind], seconds: int) -> Iterator[Goal]:
    """What a second server process on the same database brings."""
    for kind in asked:
        alone, both = (site.load(kind, seconds, *urls).rate for urls in ((site.url,), (site.url, other)))
        note = f"{both:.0f}/s against {alone:.0f}/s"
        yield Goal(f"{kind.name}: times with a second server", both / alone, MORE, "", most=False, note=note)


def grown(site: Site, size: Size, found: dict[str, float]) -> Iterator[Goal]:
    """What is left of the rates once there are many more certificates, of which all are asked for."""
    on_database(site.database, partial(fill, size.certificates + 1, size.most))
    site.certificates = size.most
    asked = [kind for kind in kinds(site) if kind.name in KEEPING]
    site.load(mixed(asked), size.warm_seconds)
    for kind in asked:
        rate = site.load(kind, size.seconds).rate
        note = f"{rate:.0f}/s against {found[kind.name]:.0f}/s"
        what = f"{kind.name}: part kept at {size.most}"
        yield Goal(what, rate / found[kind.name], KEPT, "", most=False, note=note)


async def fill(first: int, last: int) -> None:
    """Let the open database hold certificates ``first`` to ``last``; the first time with all that belongs to them."""
    await run_all(
        [
            *(inventory.statements(last) if first == 1 else inventory.more(first, last)),
            inventory.varied(first, last),
        ]
    )


async def prepare(size: Size) -> tuple[str, list[tuple[str, str]]]:
    """Make the inventory in an empty database; return a key to ask with, and the agents and theirs."""
    await migrate()
    await fill(1, size.certificates)
    _, key = await create_key("bench", Role.OPERATOR)
    return key, await enrolled(size.agents)


def on_postgres(size: Size, root: Path, peers: tuple[str, str], say: Callable[[str], None]) -> Iterator[Goal]:
    """Measure one after the other; ``peers`` are where the database and the broker are."""
    url, broker = peers
    key, agents = on_database(url, lambda: prepare(size))
    scaled, found = Scaled(root, url, broker), dict[str, float]()
    with scaled.server() as pid:
        site = Site(scaled.url, url, key, agents, size.certificates)
        asked = list(kinds(site))
        by_name = {kind.name: kind for kind in asked}
        # What is loaded, prepared and cached once, is so afterwards.
        site.load(mixed(asked), size.warm_seconds)
        site.load(by_name["heartbeat"], 1)  # the first beat of an agent's run has more to do
        half = len(asked) // 2
        yield from rates(site, size, asked[:half], found, say)
        before = resident_mib(pid)
        yield from rates(site, size, asked[half:], found, say)
        after = resident_mib(pid)
        note = f"{before:.0f} MiB after half of it, {after:.0f} MiB in the end"
        yield Goal("memory grown", 100 * (after / before - 1), FLAT_PERCENT, "%", most=True, note=note)
        yield stale(site)
        yield from exact(site)
        with scaled.server():
            both = [by_name[name] for name in ("get one", "list 50")]
            yield from doubled(site, scaled.url, both, size.seconds)
        if size.most:
            yield from grown(site, size, found)


def on_sqlite(size: Size, root: Path, say: Callable[[str], None]) -> None:
    """Tell the same of one process and a file."""
    (root / "lite").mkdir()
    server = Server(root / "lite")
    server.data_dir.mkdir(mode=0o700)
    url = f"sqlite://{server.data_dir / 'certctl.db'}"
    key, agents = on_database(url, lambda: prepare(size))
    with server():
        site = Site(server.url, url, key, agents, size.certificates)
        asked = list(kinds(site))
        site.load(mixed(asked), size.warm_seconds)
        for kind in asked:
            say(line(f"SQLite: {kind.name}", site.load(kind, size.seconds)))


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Measure, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the inventory, within 45 seconds")
    quick = parser.parse_args(arguments).quick
    size = QUICK if quick else FULL
    kind = f"quick: {QUICK.certificates / FULL.certificates:.0%} of the full inventory" if quick else "full"
    many = f"{size.certificates} certificates, {2 * size.certificates} jobs, {10 * size.certificates} audit rows"
    say(f"{many}, {CONNECTIONS} connections ({kind})")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certctl-bench-")))
        try:
            wrk.find()
            postgres = stack.enter_context(Postgres(**DURABLE))
            broker = stack.enter_context(Redis()).url
        except (FileNotFoundError, pytest.skip.Exception, pytest.fail.Exception) as exc:
            say(str(exc))
            return 2
        peers = postgres.create("certctl"), broker

        def goals() -> Iterator[Goal]:
            yield from on_postgres(size, root, peers, say)
            if not quick:
                on_sqlite(size, root, say)

        return tell(goals(), say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
