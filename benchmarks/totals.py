"""What exact totals cost a big installation, and how fast they are told, against stated goals.

``python benchmarks/totals.py [--quick]``. Starts a PostgreSQL of its own. Prints a table and, last, ``N of M goals
met``. Ends with 0 if all are met, 1 if one is missed, 2 if PostgreSQL is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import inventory
import pytest
from certctl_core.plugins import Plugins
from certctl_sdk.http import httpx
from certctl_sdk.testing.postgres import Postgres
from certctl_server import db, tally
from certctl_server.app import make_app
from certctl_server.audit.record import SYSTEM
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates.create import Wanted, create
from certctl_server.context import Context
from certctl_server.db.migrate import migrate
from certctl_server.jobs import bell
from certctl_server.leader import Leadership
from certctl_server.sealing import Cipher
from certctl_server.settings import RateLimit, Settings
from engine import DURABLE, on_database, run_all
from goals import Goal, tell

CONNECTIONS = 16
ROUNDS = 5
OWNERS = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-plenty", "renewal_policy_id": "rp-plenty"}
#: By path, the least that a server process shall answer per second.
ASKED = {
    "certificates?per_page=50": 100.0,
    "certificates?status=Active&per_page=1": 200.0,
    "jobs?per_page=1": 200.0,
    "stats/summary": 300.0,
    "stats/certificates-by-status": 300.0,
    "stats/expiration-timeline?days=365": 5.0,
    "stats/job-trends?days=365": 5.0,
    "stats/issuance-rate?days=365": 5.0,
}
TRIGGERS = "ALTER TABLE {} {} TRIGGER USER"
TALLIED = ("certificate", "job")
BULK = db.Sql("UPDATE certificate SET environment = 'moved' || $1")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, not what is asked for."""

    certificates: int
    seconds: float
    creates: int


FULL, QUICK = Size(100_000, 4.0, 1_500), Size(10_000, 0.7, 300)


async def rate(work: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Return how often per second ``work`` is done by clients that wait for each other only where it does."""
    done, began = 0, time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await work()
            done += 1

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return done / (time.perf_counter() - began)


async def asked(size: Size, directory: Path) -> list[Goal]:
    """How often per second the API answers, its own work included, the network left out."""
    settings = Settings(data_dir=directory, rate_limit=RateLimit(enabled=False))
    cipher = Cipher([secrets.token_bytes(32)])
    ctx = Context(settings, Plugins(), cipher, lambda: datetime.now(UTC), bell, datetime.now(UTC))
    _, key = await create_key("bench", Role.ADMIN)
    found = []
    transport, headers = httpx.ASGITransport(app=make_app(ctx)), {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://bench", headers=headers) as client:
        for path, least in ASKED.items():

            async def ask(path: str = path) -> None:
                answer = await client.get(f"/api/v1/{path}")
                answer.raise_for_status()

            note = f"in-process, {CONNECTIONS} at once"
            found.append(Goal(path, await rate(ask, size.seconds), least, "/s", most=False, note=note))
    return found


async def create_many(count: int) -> float:
    """Return how many orders per second are stored."""
    names = iter([f"{secrets.token_hex(8)}.example.com" for _ in range(count)])

    async def client() -> None:
        for name in names:
            await create(Wanted(common_name=name, sans=(name,), **OWNERS), SYSTEM)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - began)


async def with_triggers(verb: str) -> None:
    """``ENABLE`` or ``DISABLE`` what counts."""
    for table in TALLIED:
        await db.fetch(db.Sql(TRIGGERS.format(table, verb)))


async def bulk(value: str) -> float:
    """Return how long one statement over all certificates takes."""
    began = time.perf_counter()
    await db.fetch(BULK, value)
    took = time.perf_counter() - began
    await db.fetch(db.Sql("VACUUM certificate"))
    return took


async def compared(size: Size) -> list[Goal]:
    """Creates, and one statement over everything, with what counts and without; rounds take turns."""
    rates: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
    bulks: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
    leader = Leadership("bench", timedelta(minutes=10), alone=True)
    await leader.campaign()
    await create_many(size.creates // 4)
    for number in range(ROUNDS):
        for verb, told in rates.items():
            await with_triggers(verb)
            enough = asyncio.Event()
            folding = asyncio.create_task(_fold(leader, enough))
            told.append(await create_many(size.creates))
            enough.set()
            await folding
            bulks[verb].append(await bulk(f"{number} {verb}"))
    await with_triggers("ENABLE")
    on, off = (median(rates[verb]) for verb in ("ENABLE", "DISABLE"))
    slow, fast = (median(bulks[verb]) for verb in ("ENABLE", "DISABLE"))
    note = f"{on:.0f}/s against {off:.0f}/s without, median of {ROUNDS} rounds"
    found = [Goal("creates: part of the speed that is kept", on / off, 0.85, "", most=False, note=note)]
    note = f"{slow:.2f} s against {fast:.2f} s without"
    return [*found, Goal("UPDATE of all certificates: times as long", slow / fast, 1.5, "", most=True, note=note)]


async def _fold(leader: Leadership, enough: asyncio.Event) -> None:
    while not enough.is_set():
        await tally.fold(leader)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await enough.wait()


async def doubted(size: Size) -> list[Goal]:
    """What was counted without triggers is found and corrected."""
    began = time.perf_counter()
    wrong = len(await tally.recount())
    took = time.perf_counter() - began
    note = f"{wrong} were wrong after what was done without triggers"
    if await tally.amiss():
        raise RuntimeError("totals are wrong after a recount")
    return [Goal(f"recount of {size.certificates} certificates", took, 5.0, "s", most=True, note=note)]


def goals(size: Size, url: str, directory: Path) -> Iterator[Goal]:
    """Measure one after the other."""

    async def fill() -> None:
        await migrate()
        await run_all(inventory.statements(size.certificates))

    on_database(url, fill)
    yield from on_database(url, lambda: asked(size, directory))
    yield from on_database(url, lambda: compared(size))
    yield from on_database(url, lambda: doubted(size))


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Measure, tell, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the inventory, within 45 seconds")
    size = QUICK if parser.parse_args(arguments).quick else FULL
    say(f"{size.certificates} certificates, {2 * size.certificates} jobs")
    try:
        with Postgres(**DURABLE) as cluster, tempfile.TemporaryDirectory(prefix="certctl-bench-") as directory:
            return tell(goals(size, cluster.create("totals"), Path(directory)), say)
    except pytest.skip.Exception as exc:
        say(str(exc))
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
