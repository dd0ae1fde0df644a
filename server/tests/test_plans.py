"""What the running flow asks the database is answered by indexes, however much is stored.

The flow runs on a big inventory, every distinct statement is written down, and the database explains each.
"""

import asyncio
import json
import re
import runpy
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from certctl_core import plugins
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server import db, engine
from certctl_server.agents import budget, waiting
from certctl_server.agents.tables import Agent, AgentGroup, AgentGroupWait
from certctl_server.audit import chain, entries
from certctl_server.audit.archives import archive
from certctl_server.audit.export import verifiable
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates import follow
from certctl_server.db import session
from certctl_server.reserved import put_webhook
from certctl_server.start import _first_rows
from certctl_server.tables import TABLES

INVENTORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "inventory.py"))
#: SQLite plans by statistics that the schema brings along (db/migrations/spread.py), whatever is stored.
CERTIFICATES = {"sqlite": 10_000, "postgres": 100_000}
BIG = 1000
"""Rows from which on walking through a table is a fault."""
#: Parts of statements that may walk through whole tables, and why.
ALLOWED = {
    "SELECT count(*) AS total": "a list says how many match: counting is what was asked",
    "lower(item.common_name) LIKE": "q finds what is inside of names, which no index of ours serves",
    "UPDATE audit_event SET sequence = row.value": "SQLite names the JSON table in front, then seeks by id",
}
#: A search by one of these alone finds a good part of the table.
COARSE = r"SEARCH(?=.*\((?:type|environment|owner_id|team_id|issuer_id|actor|action)=\?\))"
EXPLAINED = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
AGENT = {"name": "proxy", "hostname": "proxy.example.com", "id": "ag-flow"}
RATES = [{"count": 300, "per_seconds": 10800, "scope": scope} for scope in ("account", "domain", "names")]
LISTS = [
    "certificates?",
    "certificates?status=Active",
    "certificates?status=Expiring,Expired",
    "certificates?environment=production",
    "certificates?owner_id=o-1&sort=-created_at",
    "certificates?team_id=t-1",
    "certificates?issuer_id=iss-plenty",
    "certificates?profile_id=cp-1",
    "certificates?agent_id=ag-1",
    "certificates?common_name=host-1.example.com",
    "certificates?name=plenty-1",
    "certificates?sort=name",
    "certificates?sort=-name&page_size=10",
    "certificates?sort=notAfter",
    "certificates?sort=-updatedAt",
    "certificates?q=ost-77",
    "jobs?",
    "jobs?status=Failed",
    "jobs?type=Renewal",
    "jobs?type=Deployment&status=Pending",
    "jobs?certificate_id=mc-plenty-7",
    "jobs?target_id=t-1",
    "jobs?agent_id=ag-1",
    "audit?",
    "audit?actor=ada",
    "audit?action=job_running",
    "audit?resource=mc-plenty-7",
    "audit?since=2020-01-01T00:00:00Z",
    "audit/mc-plenty-7",
    "audit/export?format=json&resource=mc-plenty-7",
    "audit/export?format=json&actor=ada",
    "notifications?",
    "notifications?certificate_id=mc-plenty-7",
    "agents?",
    "agents?status=Online",
    "targets?",
    "targets?agent_id=ag-1",
    "teams?",
    "owners?",
    "issuers?",
    "profiles?",
    "renewal-policies?",
    "policies?",
    "policies?type=AllowedEnvironments&enabled=true",
    "policies/pr-allowed-environments/violations?",
    "policies/pr-allowed-environments/violations?resolved=false&sort=-created_at",
    "policies/pr-allowed-environments/violations?certificate_id=mc-plenty-2",
    "policies/pr-allowed-environments/violations?severity=Warning&page_size=10",
    "discovered-certificates?",
    "discovered-certificates?status=Unmanaged",
    "discovered-certificates?agent_id=ag-1",
    "discovered-certificates?is_ca=true",
    "discovered-certificates?key_algorithm=RSA",
    "discovery-scans?agent_id=ag-1",
    "discovery-summary",
    "network-scan-targets?",
    "metrics",
    "stats/summary",
    "stats/certificates-by-status",
    "stats/expiration-timeline",
    "stats/job-trends",
    "stats/issuance-rate",
    "discovered-certificates?status=Managed",
    "discovery-summary",
    "certificates/mc-plenty-7",
    "certificates/mc-plenty-7/versions",
    "certificates/mc-plenty-7/deployments",
]


@pytest.fixture
async def plenty(database):
    """The open database, filled; its value is the dialect."""
    for statement in INVENTORY["statements"](CERTIFICATES[database]):
        await db.fetch(statement)
    if database == "postgres":
        await db.fetch(db.Sql("ANALYZE"))
    return database


@dataclass
class Heard:
    """Every distinct statement that went to the database, with the arguments it first came with."""

    statements: dict[str, list] = field(default_factory=dict)

    def listen(self, monkeypatch):
        """Stand between the engine and its connections; both of Piccolo's ways end in one of these."""
        current = session.engine()
        if db.dialect() == "sqlite":
            self._around(monkeypatch, current, "run", _plain)
            self._around(monkeypatch, current, "_run_in_existing_connection", lambda query, args, **_: (query, args))
        else:
            self._around(monkeypatch, current, "run", _plain)
            self._around(monkeypatch, current, "run_querystring", _compiled)

    def _around(self, monkeypatch, current, name, read):
        inner = getattr(current, name)

        async def heard(*args, **named):
            text, values = read(*args, **named)
            self.statements.setdefault(text, list(values or []))
            return await inner(*args, **named)

        monkeypatch.setattr(current, name, heard)


def _plain(text, args):
    return text, args


def _compiled(querystring, **_):
    return querystring.compile_string(engine_type="postgres")


class Walk:
    """The flow, as clients and an agent make it happen."""

    def __init__(self, person, other, connect):
        self._person, self._other = person, other
        self._connect = connect
        self.agent = None

    async def ask(self, method, path, body=None, who=None):
        answer = await (who or self._person).request(method, f"/api/v1/{path}", json=body)
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.content else {}

    async def order(self, name, **more):
        wanted = {"owner_id": "o-1", "team_id": "t-1", "issuer_id": "iss-plenty", "common_name": name}
        return await self.ask("POST", "certificates", wanted | more)

    async def until(self, path, look):
        async with asyncio.timeout(30):
            while not (found := look(await self.ask("GET", path))):
                await asyncio.sleep(0.05)
        return found

    async def enrol(self):
        key = (await self.ask("POST", "agents", AGENT))["api_key"]
        self.agent = self._connect(key)
        beat = {"boot_id": "one", "version": "1", "capabilities": ["verify"]}
        await self.ask("POST", "agents/ag-flow/heartbeat", beat, self.agent)
        options = {"cert_path": "/etc/nginx/a.crt", "key_path": "/etc/nginx/a.key"}
        target = {"id": "tg-flow", "name": "front", "type": "NGINX", "agent_id": "ag-flow", "config": options}
        await self.ask("POST", "targets", target)
        return beat

    async def work(self, certificate_id, *, served):
        """Do as an agent does with the next version of a certificate."""
        [offer] = (await self.ask("GET", "agents/ag-flow/work?wait=5", None, self.agent))["jobs"]
        csr = {"csr_pem": csr_pem(offer["common_name"]), "certificate_id": certificate_id}
        await self.ask("POST", "agents/ag-flow/csr", csr, self.agent)
        [job] = (await self.ask("GET", "agents/ag-flow/work?wait=5", None, self.agent))["jobs"]
        here = f"agents/ag-flow/jobs/{job['id']}/status"
        await self.ask("POST", here, {"status": "Running"}, self.agent)
        await self.ask("POST", here, {"status": "Running"}, self.agent)
        await self.ask("GET", f"agents/ag-flow/certificates/{certificate_id}", None, self.agent)
        seen = {"target_id": "tg-flow", "expected_fingerprint": job["expected_fingerprint"], "verified": served}
        actual = job["expected_fingerprint"] if served else "0" * 64
        await self.ask("POST", f"jobs/{job['id']}/verify", seen | {"actual_fingerprint": actual}, self.agent)
        end = {"status": "Completed"} if served else {"status": "Failed", "error": "not served"}
        await self.ask("POST", here, end, self.agent)
        await self.ask("GET", f"jobs/{job['id']}/verification")
        return job["id"]

    async def run(self):
        beat = await self.enrol()
        made = await self.order("a.flow.example.com", target_ids=["tg-flow"])
        await self.work(made["id"], served=True)
        await self.ask("POST", f"certificates/{made['id']}/renew", {})
        failed = await self.work(made["id"], served=False)
        await self.ask("POST", f"jobs/{failed}/retry", {})
        await self.ask("POST", f"certificates/{made['id']}/deploy", {})
        await self.ask("POST", "agents/ag-flow/heartbeat", beat | {"boot_id": "two"}, self.agent)
        await self.ask("PUT", f"certificates/{made['id']}", {"target_ids": [], "environment": "test"})
        await self.ask("POST", f"certificates/{made['id']}/revoke", {"reason": "keyCompromise"})
        await self.ask("DELETE", f"certificates/{made['id']}")
        await self.ask("POST", "jobs/bulk-retry", {"filter": {"status": "Failed"}, "dry_run": True})
        await self.ask("PUT", "issuers/iss-plenty", {"limits": {"rates": RATES}})
        await self.own_key()
        await self.approval()
        await self.policies()
        await self.in_bulk()
        for path in LISTS:
            await self.ask("GET", path)
        await self.ask("GET", "certificates/mc-plenty-7")
        cursor = (await self.ask("GET", "certificates?page_size=5"))["next_cursor"]
        await self.ask("GET", f"certificates?page_size=5&cursor={cursor}")

    async def own_key(self):
        """Order with a CSR of the caller's, twice under one name, and cancel one."""
        for _ in range(2):
            made = await self.order("b.flow.example.com")
            renewal = {"csr_pem": csr_pem("b.flow.example.com")}
            await self.ask("POST", f"certificates/{made['id']}/renew", renewal)
            await self.until(f"certificates/{made['id']}", lambda row: row["status"] == "Active")
        made = await self.order("c.flow.example.com")
        await self.ask("POST", f"jobs/{made['job_id']}/cancel", {})
        await self.ask("POST", f"jobs/{made['job_id']}/retry", {})

    async def policies(self):
        """Break a rule that forbids it, with and without an order, and keep to it again."""
        made = await self.order("policy.flow.example.com", environment="production")
        terms = {"type": "AllowedEnvironments", "config": {"allowed": ["production", "staging", "development"]}}
        await self.ask("POST", "policies", {"id": "pr-flow", "name": "flow", "severity": "Critical", **terms})
        for environment in ("test", "production", "test"):
            await self.ask("PUT", f"certificates/{made['id']}", {"environment": environment})
        answer = await self._person.post("/api/v1/certificates/mc-plenty-1002/renew", json={})
        assert answer.status_code == 400, answer.text
        await self.ask("PUT", "policies/pr-flow", {"enabled": False})
        await self.ask("DELETE", "policies/pr-flow")

    async def in_bulk(self):
        """Act on a few certificates by a filter each, and let some follow what they refer to."""
        few = [f"mc-plenty-{n}" for n in range(40, 50)]
        await self.ask("POST", "certificates/bulk-renew", {"certificate_ids": few[:3]})
        await self.ask("POST", "certificates/bulk-revoke", {"filter": {"name": "plenty-44"}, "reason": "keyCompromise"})
        await self.ask("POST", "certificates/bulk-reassign", {"certificate_ids": few[5:], "owner_id": "o-3"})
        await self.ask("POST", "renewal-policies", {"id": "rp-few", "name": "few"})
        for id in few[5:]:
            await self.ask("PUT", f"certificates/{id}", {"renewal_policy_id": "rp-few"})
        await self.ask("PUT", "renewal-policies/rp-few", {"auto_renew": False})
        assert "<html" in (await self._person.get("/api/v1/digest/preview")).text

    async def approval(self):
        policy = {"id": "rp-flow", "name": "with approval", "requires_approval": True}
        await self.ask("POST", "renewal-policies", policy)
        await self.ask("PUT", "renewal-policies/rp-flow", {"auto_renew": False})
        for verb in ("approve", "reject"):
            made = await self.order(f"{verb}.flow.example.com", renewal_policy_id="rp-flow")
            await self.ask("POST", f"jobs/{made['job_id']}/{verb}", {"reason": "because"}, self._other)


async def trail_was_looked_through(ctx, directory):
    """The first page of what is exported, verified and archived; the rows are no chain."""
    found = await entries.extent()
    for pages in (verifiable(await chain.signing_key(ctx.cipher), found), entries.waiting(found, found.upto)):
        async for _ in pages:
            break
    nothing = await archive(ctx.cipher, datetime(2000, 1, 1, tzinfo=UTC), directory)
    assert (nothing.archive, nothing.removed) == (None, 0)


async def loops_have_turned():
    wanted = {loop.name for loop in engine._engine.loops._loops}  # noqa: SLF001
    async with asyncio.timeout(60):
        while wanted - {row["name"] for row in await db.fetch(db.Sql("SELECT name FROM loop_beat"))}:
            await asyncio.sleep(0.05)
    return await db.fetch(db.Sql("SELECT name, last_error FROM loop_beat WHERE last_error <> ''"))


async def big_tables():
    names = [table._meta.tablename for table in TABLES]
    counted = {name: await db.fetch(db.Sql(f"SELECT count(*) AS rows FROM {name}")) for name in names}
    return {name for name, [row] in counted.items() if row["rows"] > BIG}


def aliases(text, tables):
    """By the name that a plan uses, the table that it means."""
    found = {table: table for table in tables}
    for table in tables:
        for alias in re.findall(rf'\b{table}\b"?\s+(?:AS\s+)?"?([a-z_]+)\b', text):
            found[alias] = table
    return found


async def partial_indexes():
    """Those that hold only what is open: to walk through one is what it is for."""
    catalogue = db.Sql(
        postgres="SELECT indexname AS name FROM pg_indexes WHERE indexdef LIKE '% WHERE %'",
        sqlite="SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'",
    )
    return {row["name"] for row in await db.fetch(catalogue)}


async def lite_walks(text, args, tables):
    """Which big tables SQLite would walk through. A list in an index's order stops at its LIMIT."""
    named, partial = aliases(text, tables), await partial_indexes()
    plan = await session.engine().run(f"EXPLAIN QUERY PLAN {text}", args)
    sorted_in = {row["parent"] for row in plan if "TEMP B-TREE FOR ORDER BY" in row["detail"]}
    # What a subquery in FROM makes is walked through beside it, whatever table it shares its name with.
    made = {(row["parent"], row["detail"].split()[1]) for row in plan if row["detail"].startswith("CO-ROUTINE ")}
    for row in plan:
        step = re.match(rf"(?:SCAN|{COARSE}) (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", row["detail"])
        if not step or step[1] not in named or step[2] in partial or (row["parent"], step[1]) in made:
            continue
        if not (step[2] and "LIMIT" in text and row["parent"] not in sorted_in):
            yield f"{named[step[1]]}: {row['detail']}"


def _nodes(plan, *, limited=False):
    yield plan, limited
    limited = plan["Node Type"] == "Limit" or (limited and plan["Node Type"] not in {"Sort", "Aggregate", "Hash"})
    for below in plan.get("Plans", ()):
        yield from _nodes(below, limited=limited)


async def pg_walks(text, args, tables):
    """Which big tables PostgreSQL would walk through."""
    partial = await partial_indexes()
    connection = await asyncpg.connect(session.engine().config["dsn"])
    try:
        plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *args)
    finally:
        await connection.close()
    for node, limited in _nodes(json.loads(plan)[0]["Plan"]):
        name = node.get("Index Name")
        whole = name and name not in partial and not (node.get("Index Cond") or limited)
        if node.get("Relation Name") in tables and (node["Node Type"] == "Seq Scan" or whole):
            yield f"{node['Relation Name']}: {node['Node Type']} {name or ''} {node.get('Filter', '')}"


async def test_a_line_before_a_full_group_is_not_walked(database):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await AgentGroup.insert(AgentGroup(id="g", name="g", max_concurrent_deployments=1, **times))
    asked = {"since": db.now(), "asked_at": db.now()}
    for start in range(0, 3 * BIG, BIG):
        ids = [f"ag-{n}" for n in range(start, start + BIG)]
        await Agent.insert(*(Agent(id=id, name=id, registered_at=db.now(), **times) for id in ids))
        await AgentGroupWait.insert(*(AgentGroupWait(group_id="g", agent_id=id, **asked) for id in ids))
    if database == "postgres":
        await db.fetch(db.Sql("ANALYZE"))
    walks = lite_walks if database == "sqlite" else pg_walks
    group, some = json.dumps(["g"]), json.dumps(["ag-1", "ag-2"])
    for statement, *args in (
        (budget.GROUPS, "ag-1"),
        (budget.OPEN, group),
        (budget.AHEAD, group, "ag-1", budget.NOT_SINCE, 1),
        (budget.WAIT, group, "ag-1", budget.NOT_SINCE),
        (budget.SERVED, "ag-1"),
        (budget.HEAD, "g", budget.NOT_SINCE, budget.WOKEN),
        (budget.FORGET, -3600),
        (waiting.SOON, some, 5, budget.NOT_SINCE),
    ):
        text = statement.text(database)
        assert [each async for each in walks(text, args, {"agent", "agent_group_wait"})] == [], text


@pytest.mark.timeout(600)
async def test_nothing_that_the_flow_asks_walks_through_a_whole_table(plenty, ctx, connect, monkeypatch, tmp_path):
    monkeypatch.setattr(follow, "SET", 2)
    await _first_rows()
    ctx.plugins, ctx.bell = plugins.load(), engine.bell
    heard = Heard()
    heard.listen(monkeypatch)
    await put_webhook(ctx.settings, ctx.plugins, ctx.cipher, ctx.clock())
    keys = [key for _, key in [await create_key(name, Role.ADMIN) for name in ("ada", "bob")]]
    await engine.start(ctx)
    try:
        async with connect(keys[0]) as person, connect(keys[1]) as other:
            walk = Walk(person, other, connect)
            await walk.run()
            await trail_was_looked_through(ctx, tmp_path)
            failed = await loops_have_turned()
            await walk.agent.aclose()
    finally:
        await engine.stop()
    monkeypatch.undo()
    tables = await big_tables()
    assert tables >= set(INVENTORY["TABLES"])
    walks = lite_walks if plenty == "sqlite" else pg_walks
    asked = {text: args for text, args in heard.statements.items() if EXPLAINED.match(text)}
    assert len(asked) > 100, Counter(text.split()[0] for text in asked)
    found = [
        f"{walked}\n    {' '.join(text.split())}"
        for text, args in asked.items()
        if not any(part in text for part in ALLOWED)
        for walked in [each async for each in walks(text, args, tables)]
    ]
    assert found == [], "\n".join(found)
    assert failed == []
