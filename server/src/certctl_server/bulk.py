"""Act on all rows that match, in sets: exact counts, a transaction for each set, and why the others were left alone."""

# ruff: noqa: S608  # table names are ours, values are parameters
from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import msgspec

from certctl_server import db
from certctl_server.auth.principal import Where
from certctl_server.body import ID
from certctl_server.errors import Refused, invalid
from certctl_server.filters import Bound, any_of
from certctl_server.list_spec import ListSpec
from certctl_server.lists import conditions

log = logging.getLogger(__name__)
IDS = 10_000
"""As many rows may be named."""
TOLD = 10_000
"""As many are told one by one; all are counted."""
PAGE = 10_000
"""So many ids are read at once."""
SET = 100
"""So many rows are one transaction: on SQLite others wait for its end before they can write."""
BROKEN = "Nothing was changed: the server failed here, and its log says how"
UNTRIED = "Not tried: the server failed before its turn"
Ids = Annotated[list[ID], msgspec.Meta(max_length=IDS)]
Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objection:
    """Why nothing is done with a row."""

    why: str
    settled: bool
    """Nothing is wrong: what is wanted is there already, under way, or not wanted any more."""
    field: str = ""
    """The field of the request that is at fault, if one is."""


@dataclass(slots=True)
class Tally:
    """What became of rows."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    """By id, of those that failed."""

    @property
    def seen(self) -> int:
        """How many there were so far."""
        return self.done + self.skipped + self.failed

    def object(self, objections: Mapping[str, Objection]) -> None:
        """Count rows with which nothing is done."""
        for id, objection in objections.items():
            self.reasons[objection.why] += 1
            if objection.settled:
                self.skipped += 1
            else:
                self.fail(id, objection.why)

    def fail(self, id: str, why: str) -> None:
        """Count a row that could not be done."""
        self.failed += 1
        if len(self.errors) < TOLD:
            self.errors[id] = why

    def break_off(self, ids: Iterable[str], matched: int) -> None:
        """Count the rows of a set that came to nothing, and those of ``matched`` that nobody tried after it."""
        self.object(dict.fromkeys(ids, Objection(BROKEN, settled=False)))
        if (untried := matched - self.seen) > 0:
            self.failed += untried
            self.reasons[UNTRIED] = untried

    def answer(self, kind: str, verb: str) -> Answer:
        """Return what a client is told; rows that failed are named as ``<kind>_id``."""
        return {
            "total_matched": self.seen,
            f"total_{verb}": self.done,
            "total_skipped": self.skipped,
            "total_failed": self.failed,
            "errors": [{f"{kind}_id": id, "error": why} for id, why in self.errors.items()],
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that a client picked."""

    table: str
    condition: str
    """On ``item``."""
    bound: Bound
    named: Sequence[str] = ()
    """Ids that the client named, each once."""

    async def unknown(self) -> list[str]:
        """Return which of the named ids are no row's."""
        if not self.named:
            return []
        known = db.Sql(f"SELECT id FROM {self.table} WHERE id IN ({{ids:$1}})")
        there = {row["id"] for row in await db.fetch(known, json.dumps(self.named))}
        return [id for id in self.named if id not in there]

    async def count(self) -> int:
        """Return how many rows match now."""
        text = f"SELECT count(*) AS total FROM {self.table} AS item WHERE {self.condition}"
        [row] = await db.fetch(db.Sql(text), *self.bound.args)
        return int(row["total"])

    async def sets(self) -> AsyncIterator[list[str]]:
        """Yield the ids of all rows that match, in sets; a row that comes while one looks is seen or not."""
        bound = Bound(list(self.bound.args))
        last, most = bound.add(""), bound.add(PAGE)
        page = f"SELECT item.id FROM {self.table} AS item WHERE {self.condition} AND item.id > {last}"
        sql = db.Sql(f"SELECT {{list:id}} AS ids FROM ({page} ORDER BY item.id LIMIT {most}) AS picked")
        while True:
            [row] = await db.fetch(sql, *bound.args)
            ids = sorted(json.loads(row["ids"]))
            for start in range(0, len(ids), SET):
                yield ids[start : start + SET]
            if len(ids) < PAGE:
                return
            bound.args[-2] = ids[-1]


def select(
    spec: ListSpec,
    seen: Where | None,
    ids: Iterable[str],
    filter: Mapping[str, Any],
    also: Mapping[str, str] | None = None,
) -> Selection:
    """Return the rows of a list that all selectors of a body admit together.

    Args:
        spec: The list.
        seen: What the caller may see of it.
        ids: Rows that are named; none names no row.
        filter: Filters of the list, each a text or a list of texts.
        also: Further filters, checked by their types already.

    Raises:
        Refused: 400, naming the filters that are unknown or whose value is not possible.
    """
    bound, given, faults = Bound(), dict[str, str](), dict[str, str]()
    for name, value in filter.items():
        texts = value if isinstance(value, list) else [value]
        if texts and all(isinstance(each, str) and each for each in texts):
            given[name] = ",".join(texts)
        else:
            faults[f"filter.{name}"] = "is neither a text nor a list of texts"
    try:
        found = [conditions(spec, given, bound, seen)]
    except Refused as exc:
        raise invalid(faults | {f"filter.{name}": text for name, text in exc.faults.items()}) from exc
    if faults:
        raise invalid(faults)
    if also:
        found.append(conditions(spec, also, bound))
    named = list(dict.fromkeys(ids))
    if named:
        found.append(any_of("item.id", named, bound))
    return Selection(str(spec.table._meta.tablename), " AND ".join(found), bound, named)


Act: TypeAlias = Callable[[list[str]], Awaitable[Mapping[str, Objection]]]
"""Does what is wanted with rows and returns those with which it did nothing."""


async def carry_out(selection: Selection, kind: str, act: Act) -> Tally:
    """Let ``act`` have every row that is selected, set by set, and return what became of them.

    Named rows that are not there have failed; ``kind`` is what messages call a row. Where a set fails after others were
    done, the rest is counted as failed: what is done is done, and the caller is to know of it.

    Raises:
        Exception: the first set failed, and nothing was changed.
    """
    tally = Tally()
    tally.object(dict.fromkeys(await selection.unknown(), Objection(f"{kind} not found", settled=False)))
    matched, pending = tally.seen + await selection.count(), list[str]()
    try:
        async for ids in selection.sets():
            pending = ids
            objections = await act(ids)
            tally.done += len(ids) - len(objections)
            tally.object(objections)
            pending = []
    except Exception:
        if not tally.done:
            raise
        log.exception("bulk action broken off", extra={"done": tally.done, "matched": matched})
        tally.break_off(pending, matched)
    return tally
