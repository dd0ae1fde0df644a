"""What ``certctl doctor`` sees in the open database. Nothing but reads; what fails is a finding."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
from certctl_core.errors import MisconfiguredError
from cryptography import x509

from certctl_server import db, sealing, tally
from certctl_server.agents.health import SKEW_MS
from certctl_server.audit import sealer, witness
from certctl_server.db.migrate import missing, unknown
from certctl_server.doctor_findings import Finding, State
from certctl_server.jobs import lanes
from certctl_server.leader import NAME
from certctl_server.settings import Settings

SKEW = timedelta(seconds=5)
"""Between this machine's clock and the database's."""
CA_SOON = timedelta(days=90)
VERSION = db.Sql(
    postgres="SELECT 'PostgreSQL ' || current_setting('server_version') AS version",
    sqlite="SELECT 'SQLite ' || sqlite_version() AS version",
)
LEADER = db.Sql("SELECT owner, epoch, (lease_until > {now}) AS leads FROM lease WHERE name = $1")
LOOPS = db.Sql("SELECT name, last_error, (late_at <= {now}) AS late FROM loop_beat ORDER BY name")
ISSUERS = db.Sql(
    f"SELECT item.id, {lanes.status_in_sql('issuer')} AS status FROM issuer item WHERE item.enabled ORDER BY item.id"  # noqa: S608  # ours
)
CHAINS = db.Sql(
    """
    SELECT i.id, v.pem_chain FROM issuer i JOIN certificate_version v ON v.id = (
        SELECT n.id FROM certificate_version n JOIN certificate c ON c.id = n.certificate_id
        WHERE n.issuer_id = i.id AND c.archived_at IS NULL ORDER BY n.created_at DESC, n.id DESC LIMIT 1)
    ORDER BY i.id
    """
)


@dataclass(frozen=True, slots=True)
class Count:
    """Rows of which there should be none."""

    check: str
    state: State
    rows: db.Sql
    words: str
    advice: str


COUNTS = (
    Count(
        "leases",
        State.FAIL,
        db.Sql("SELECT count(*) AS n FROM job WHERE lease_until IS NOT NULL AND lease_until <= {after:-600}"),
        "jobs are Running whose owner has been silent for over 10 minutes",
        "the leader takes them over: see to it that a server runs, and read its log",
    ),
    Count(
        "due jobs",
        State.WARN,
        db.Sql("SELECT count(*) AS n FROM job WHERE due_at IS NOT NULL AND due_at <= {after:-600}"),
        "jobs have been due for over 10 minutes",
        "start more workers, or look at their issuer: certctl jobs list --status Pending",
    ),
    Count(
        "offers",
        State.WARN,
        db.Sql(
            "SELECT count(*) AS n FROM job j JOIN agent a ON a.id = j.agent_id"
            " WHERE j.offer_at IS NOT NULL AND j.offer_at <= {after:-600} AND a.status = 'Offline'"
        ),
        "jobs wait for agents that are offline",
        "start those agents: certctl agents list",
    ),
    Count(
        "orders without agent",
        State.WARN,
        db.Sql("SELECT count(*) AS n FROM job WHERE status = 'AwaitingCSR' AND agent_id IS NULL AND csr_sha256 = ''"),
        "orders wait for a CSR that no agent will send",
        "map a target to the certificate, or renew it with a CSR of your own",
    ),
    Count(
        "failed jobs",
        State.WARN,
        db.Sql(
            "SELECT count(*) AS n FROM job WHERE status = 'Failed' AND place IS NULL"
            " AND completed_at > {after:-7 * 86400}"
        ),
        "jobs failed for good within a week",
        "certctl jobs list --status Failed says why; mend it, then retry them",
    ),
    Count(
        "interrupted orders",
        State.WARN,
        db.Sql("SELECT count(*) AS n FROM intent WHERE status = 'open' AND created_at <= {after:-86400}"),
        "orders were interrupted over a day ago, and nobody knows whether the CA signed",
        "certctl jobs list --type Renewal (and Issuance): retry or cancel them",
    ),
    Count(
        "agents",
        State.WARN,
        db.Sql("SELECT count(*) AS n FROM agent WHERE status = 'Offline' AND retired_at IS NULL"),
        "agents are offline",
        "start them, or retire those that are gone: certctl agents list",
    ),
    Count(
        "clocks of agents",
        State.WARN,
        db.Sql(f"SELECT count(*) AS n FROM agent WHERE abs(clock_offset_ms) > {SKEW_MS} AND retired_at IS NULL"),  # noqa: S608  # ours
        "agents have a clock that is off by over 5 minutes: they are offered no CSRs",
        "let those machines keep time by NTP",
    ),
    Count(
        "renewals",
        State.WARN,
        db.Sql("SELECT count(*) AS n FROM certificate WHERE renew_due_at <= {after:-6 * 3600}"),
        "certificates have been due for over 6 hours, and nothing is ordered",
        "unless a maintenance window is waited for, read the server's log",
    ),
    Count(
        "expired",
        State.WARN,
        # Not by status: one that is being renewed, or whose renewal failed, has expired all the same.
        db.Sql(
            "SELECT count(*) AS n FROM certificate c WHERE c.archived_at IS NULL AND c.revoked_at IS NULL"
            " AND (c.expires_at <= {now} OR EXISTS (SELECT 1 FROM certificate_target m JOIN target t"
            " ON t.id = m.target_id WHERE m.certificate_id = c.id AND t.enabled AND m.not_after <= {now}))"
        ),
        "certificates have expired, or what a target has of them",
        "certctl certs list --sort expires_at, and certs deployments of each: renew, deploy or archive them",
    ),
)


async def looks(settings: Settings) -> AsyncIterator[Finding]:
    """Look at everything, one after the other."""
    for look in (_schema, _clock, _key, _epoch, _leader, _loops, _totals, _issuers, _authorities):
        async for finding in _guarded(look.__name__.strip("_"), look(settings)):
            yield finding
    for count in COUNTS:
        async for finding in _guarded(count.check, _counted(count)):
            yield finding


async def _guarded(name: str, found: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    try:
        async for finding in found:
            yield finding
    except (*db.UNREACHABLE, asyncpg.PostgresError, sqlite3.Error, MisconfiguredError) as exc:
        yield Finding(name, State.FAIL, f"cannot be looked at: {exc}", "see the first failure above")


async def _counted(count: Count) -> AsyncIterator[Finding]:
    [row] = await db.fetch(count.rows)
    bad = row["n"] > 0
    yield Finding(
        count.check, count.state if bad else State.OK, f"{row['n']} {count.words}", count.advice if bad else ""
    )


async def _schema(_: Settings) -> AsyncIterator[Finding]:
    [row] = await db.fetch(VERSION)
    yield Finding("database", State.OK, f"{row['version']} answers")
    if lacking := await missing():
        found, advice = f"lacks {', '.join(lacking)}", "certctl-server migrate, or start the server"
        yield Finding("migrations", State.FAIL, found, advice)
    elif newer := await unknown():
        yield Finding("migrations", State.FAIL, f"a newer version added {newer[-1]}", "run that version")
    else:
        yield Finding("migrations", State.OK, "up to date")


async def _clock(_: Settings) -> AsyncIterator[Finding]:
    # This machine's own clock: a process that follows the database's would compare that with itself.
    before, theirs, after = datetime.now(UTC), await db.present(), datetime.now(UTC)
    off = max(before - theirs, theirs - after, timedelta())
    state = State.OK if off <= SKEW else State.FAIL
    advice = "" if state is State.OK else "let both machines keep time by NTP"
    yield Finding("clock", state, f"{off.total_seconds():.1f} s from the database's", advice)


async def _key(settings: Settings) -> AsyncIterator[Finding]:
    # Without a check value there is nothing that a key could fail to open, and loading one would make it.
    if not await sealing.recall(sealing.CHECK):
        yield Finding("encryption key", State.WARN, "the database has none yet", "start the server once")
        return
    try:
        await sealing.load(settings)
    except MisconfiguredError as exc:
        yield Finding("encryption key", State.FAIL, str(exc), "bring back the key that this database was sealed with")
    else:
        yield Finding("encryption key", State.OK, "it opens the database's check value")


async def _epoch(settings: Settings) -> AsyncIterator[Finding]:
    epoch, seen = await witness.epoch(), witness.read(settings.data_dir)
    if seen is not None and not await witness.holds(seen, await sealer.head()):
        found = "the database lacks what was seen of its audit trail: it was restored, or rows were removed"
        yield Finding("restores", State.FAIL, found, "docs/backup.md; the server begins a new epoch when it starts")
    elif epoch > witness.FIRST_EPOCH:
        found = f"epoch {epoch}: the database was restored"
        yield Finding("restores", State.OK, found, "certctl audit list --action database_restored")
    else:
        yield Finding("restores", State.OK, "never restored")


async def _leader(_: Settings) -> AsyncIterator[Finding]:
    row = next(iter(await db.fetch(LEADER, NAME)), None)
    if row is not None and row["leads"]:
        yield Finding("leader", State.OK, f"{row['owner']}, epoch {row['epoch']}")
    else:
        yield Finding("leader", State.WARN, "no server leads: nothing is renewed", "start a server")


async def _loops(_: Settings) -> AsyncIterator[Finding]:
    rows = await db.fetch(LOOPS)
    for row in rows:
        if row["last_error"]:
            found = f"{row['name']} failed: {row['last_error']}"
            yield Finding("loops", State.FAIL, found, "read the leader's log; it tries again by itself")
    if late := [row["name"] for row in rows if row["late"]]:
        yield Finding("loops", State.WARN, f"late: {', '.join(late)}", "start a server, or restart the one that leads")
    elif not any(row["last_error"] for row in rows):
        yield Finding("loops", State.OK, f"{len(rows)} turn")


async def _totals(_: Settings) -> AsyncIterator[Finding]:
    found = await tally.amiss()
    if found:
        worst = ", ".join(f"{row['dimension']} {row['value']} by {-row['n']:+}" for row in found[:3])
        words = f"{len(found)} totals are off, such as {worst}"
        yield Finding("totals", State.FAIL, words, "certctl-server recount, while everything goes on")
    else:
        yield Finding("totals", State.OK, "what is shown is what a full count finds")


async def _issuers(_: Settings) -> AsyncIterator[Finding]:
    for row in await db.fetch(ISSUERS):
        if row["status"] == "incomplete":
            found, advice = f"{row['id']} is not configured whole", "certctl issuers get names what is missing"
            yield Finding("issuers", State.WARN, found, advice)
        elif row["status"] == "failing":
            yield Finding("issuers", State.FAIL, f"{row['id']} fails", f"certctl issuers test {row['id']} says why")
        else:
            yield Finding("issuers", State.OK, f"{row['id']} is {row['status']}")


async def _authorities(_: Settings) -> AsyncIterator[Finding]:
    now = db.now()
    for row in await db.fetch(CHAINS):
        above = x509.load_pem_x509_certificates(row["pem_chain"].encode())[1:]
        if not above:
            continue
        first = min(above, key=lambda each: each.not_valid_after_utc)
        left = first.not_valid_after_utc - now
        found = f"the CA of {row['id']} ends on {first.not_valid_after_utc:%Y-%m-%d}"
        state = State.FAIL if left <= timedelta() else State.WARN if left < CA_SOON else State.OK
        advice = "" if state is State.OK else "have the CA renewed: no certificate outlives it"
        yield Finding("CA certificates", state, found, advice)
