"""Walks through lists while others insert and delete: what is there all the time is seen once, by every sort key."""

import asyncio
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.job import INTERNAL, JobType
from certctl_server import db
from certctl_server.list_spec import KINDS
from certctl_server.policies.routes import VIOLATIONS
from certctl_server.resource import Resource
from certctl_server.tables import TABLES
from piccolo.columns import BigSerial, ForeignKey
from server_flow import lists

BY_NAME = {table._meta.tablename: table for table in TABLES}
START = datetime.now(UTC) + timedelta(days=9)
TEXTS = ["", "", "a", "B", "b", "é", "_", "Z z", "\U0001f512", "%"]
VALUES = {
    "text": TEXTS,
    "number": [0, 0, 1, 7, 2**40],
    "flag": [True, False],
    "time": [str(START + timedelta(microseconds=n)) for n in (0, 500_000, 500_001, 86_400_000_000)],
}
START_TEXT = str(START)
COLUMN_TYPES = {"text": "text", "number": "bigint", "flag": "boolean", "time": "timestamptz"}
#: References that the database keeps and Piccolo does not know.
REFERENCES = {("policy_violation", "certificate_id"): "certificate", ("policy_violation", "rule_id"): "policy_rule"}
#: Columns of which no two rows have the same.
UNIQUE = {"digest", "fingerprint_sha256", "occurrence", "serial_number", "version"}
#: What a row needs to be in its list at all.
SEEN = {
    ("job", "type"): sorted(set(JobType) - INTERNAL),
    ("agent", "retired_at"): [None],
    ("api_key", "ended_at"): [None],
    ("policy_violation", "resolved_at"): [START_TEXT],
}
#: Lists below a parent, whose rows are all its own.
PARENTS = {
    "/api/v1/certificates/{id}/versions": ("certificate", "certificate_id"),
    "/api/v1/policies/{id}/violations": ("policy_rule", "rule_id"),
}
#: They narrow a list that is walked by itself.
NARROWED = {"/api/v1/certificates/{id}/deployments", "/api/v1/agent-groups/{id}/members"}
LISTS = {path: spec for path, spec in lists().items() if path not in NARROWED} | {
    "/api/v1/policies/{id}/violations": VIOLATIONS
}
BIG = {"/api/v1/certificates", "/api/v1/jobs"}
MANY, FEW = (10_000, 500, 40), (60, 11, 4)
"""How many rows, in pages of how many, while how many change with each page."""


class Planter:
    """Makes rows of any table: with few values, many of them empty, in what lists sort by."""

    def __init__(self):
        self._random = random.Random(f"{db.dialect()} 5")
        self._parents = {}

    async def plant(self, table, keys, count, **fixed):
        """Insert so many rows; return their ids."""
        name = table._meta.tablename
        columns = {each._meta.name: each for each in table._meta.columns if not isinstance(each, BigSerial)}
        for column in columns.values():
            if target := self._target(name, column):
                await self.parents(target)
        values = {column: self._values(name, columns[column], keys, count) for column in columns}
        values |= {column: [value] * count for column, value in fixed.items()}
        rows = [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]
        kinds = {column: COLUMN_TYPES[self._kind(columns[column])] for column in columns}
        await db.fetch(db.insert_rows(name, kinds), json.dumps(rows))
        return [row["id"] for row in rows]

    async def parents(self, name):
        """Return the ids of what rows refer to."""
        if name not in self._parents:
            self._parents[name] = await self.plant(BY_NAME[name], {}, 3)
        return self._parents[name]

    def _target(self, table, column):
        if isinstance(column, ForeignKey):
            return column._foreign_key_meta.resolved_references._meta.tablename
        return REFERENCES.get((table, column._meta.name))

    def _kind(self, column):
        return next((KINDS[each] for each in type(column).__mro__ if each in KINDS), "text")

    def _values(self, table, column, keys, count):
        name, kind = column._meta.name, self._kind(column)
        nothing = [None] if column._meta.null else []
        if name == "id":
            return [f"{self._random.choice('aBz')}{self._random.getrandbits(60):x}" for _ in range(count)]
        if name in UNIQUE or (name == "name" and issubclass(BY_NAME[table], Resource)):
            numbers = [self._random.getrandbits(40) for _ in range(count)]
            return numbers if kind == "number" else [f"{self._random.choice(TEXTS)}{each:x}" for each in numbers]
        if target := self._target(table, column):
            values = self._parents[target] + nothing
        elif (table, name) in SEEN:
            values = SEEN[table, name]
        elif name in keys:
            values = VALUES[kind] + nothing * 2
        else:
            values = [START_TEXT if kind == "time" and not nothing else column.get_default_value()]
        return self._random.choices(values, k=count)


@dataclass
class Walk:
    """One client that walks through a list."""

    sort: str
    seen: list = field(default_factory=list)
    cursor: str | None = ""

    async def on(self, client, path, size):
        """Read one page."""
        query = {"sort": self.sort, "cursor": self.cursor, "page_size": size, "fields": "id"}
        answer = await client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        self.seen += [row["id"] for row in page["data"]]
        self.cursor = page.get("next_cursor")
        assert (self.cursor is None) or len(page["data"]) == size


class Crowd:
    """Everybody else: they delete, the very rows at which walks stand too, and insert."""

    def __init__(self, planter, spec, fixed, planted, there):
        self._plant = lambda count: planter.plant(spec.table, spec.keys, count, **fixed)
        self._random = random.Random(7)
        self._delete = db.Sql(f"DELETE FROM {spec.table._meta.tablename} WHERE id IN ({{ids:$1}})")
        self.spared = spec.table._meta.tablename == "audit_event"  # the trail loses nothing
        self.present = set(planted)  # what else is there, the caller's key say, is needed
        self.ever = set(there)
        self.staying = set(there)

    async def act(self, stands, count):
        stands &= self.present
        gone = self._random.sample(sorted(stands), min(count, len(stands)))
        gone += self._random.sample(sorted(self.present), count // 4)
        gone = [] if self.spared else gone
        self.present -= set(gone)
        self.staying -= set(gone)
        async with db.transaction():
            await db.fetch(self._delete, json.dumps(gone))
            made = await self._plant(count)
        self.present |= set(made)
        self.ever |= set(made)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"rate_limit": settings.rate_limit.model_copy(update={"enabled": False})})


@pytest.mark.parametrize("path", LISTS)
async def test_what_is_there_all_the_time_is_seen_once_by_every_key(client, path):
    await walk(client, path, *(MANY if path in BIG else FEW))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", sorted(LISTS.keys() - BIG))
async def test_the_same_where_lists_are_seldom_long(client, path):
    await walk(client, path, *MANY)


async def walk(client, path, rows, size, changes):
    """Walk through so many rows in pages of a size, while others make so many changes with each."""
    spec, planter, fixed = LISTS[path], Planter(), {}
    if path in PARENTS:
        table, column = PARENTS[path]
        fixed[column] = (await planter.parents(table))[0]
        path = path.replace("{id}", fixed[column])
    planted = await planter.plant(spec.table, spec.keys, rows, **fixed)
    first = (await client.get(path, params={"page_size": 1, "fields": "id"})).json()
    there = {row["id"] for row in await db.fetch(db.Sql(f"SELECT id FROM {spec.table._meta.tablename}"))}
    assert len(there) >= first["total"] >= rows
    crowd = Crowd(planter, spec, fixed, planted, there)
    # Each key one way on one database, and the other way on the other one.
    ways = ["", "-"] if db.dialect() == "sqlite" else ["-", ""]
    walks = [Walk(ways[number % 2] + key) for number, key in enumerate(spec.keys)]
    pages = 0
    while on := [walk for walk in walks if walk.cursor is not None]:
        stands = {walk.seen[-1] for walk in on if walk.seen}
        await asyncio.gather(*(walk.on(client, path, size) for walk in on), crowd.act(stands, changes))
        pages += 1
        assert pages < 3 * rows / size, "a walk does not end"
    assert pages > rows // size
    assert crowd.spared or rows / 4 < len(crowd.staying) < rows
    missed, twice = defaultdict(set), {}
    for walk in walks:
        missed[walk.sort] = crowd.staying - set(walk.seen)
        twice[walk.sort] = len(walk.seen) - len(set(walk.seen))
        assert set(walk.seen) <= crowd.ever
    assert {sort: rows for sort, rows in missed.items() if rows} == {}
    assert {sort: count for sort, count in twice.items() if count} == {}
