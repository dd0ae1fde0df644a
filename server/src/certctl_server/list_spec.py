"""What a list is: who sees which rows, what it sorts by, what its filters are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias

import msgspec
from piccolo.columns import BigInt, BigSerial, Boolean, Integer, Timestamptz
from piccolo.columns.base import Column
from piccolo.table import Table

from certctl_server.auth.principal import Where
from certctl_server.filters import Filter, after, before
from certctl_server.resource import Resource

Row: TypeAlias = dict[str, Any]
Show: TypeAlias = Callable[[Row], Row | msgspec.Raw]
Kind: TypeAlias = Literal["text", "number", "flag", "time"]
Given: TypeAlias = Mapping[str, str]
SORT_ALIASES = {
    "notAfter": "expires_at",
    "expiresAt": "expires_at",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "commonName": "common_name",
}
NEVER_EMPTY = frozenset({"id", "type", "status", "role"})
KINDS: dict[type[Column], Kind] = {
    Timestamptz: "time",
    BigInt: "number",
    Integer: "number",
    BigSerial: "number",
    Boolean: "flag",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A scalar key of an object, as a list sorts by it."""

    sql: str
    """An expression over ``item``."""
    kind: Kind = "text"
    may_be_empty: bool = True
    """Whether it can be NULL or empty; such rows come last in either direction. False makes use of more indexes."""

    @property
    def sort(self) -> str:
        """The expression that is sorted by; ``{C}`` is the collation by code point."""
        return f"{self.sql}{{C}}" if self.kind == "text" else self.sql

    @property
    def present(self) -> str:
        """The condition that it is not empty."""
        return f"{self.sql} <> ''" if self.kind == "text" else f"{self.sql} IS NOT NULL"

    @property
    def absent(self) -> str:
        """The condition that it is empty."""
        return f"coalesce({self.sql}, '') = ''" if self.kind == "text" else f"{self.sql} IS NULL"


@dataclass(frozen=True, slots=True)
class Tallied:
    """How many rows there are under some filters, kept beside the table."""

    rows: str
    """SQL: rows that stand for ``n`` rows of the list each. They have the columns that the filters' conditions name."""
    filters: frozenset[str] = frozenset()
    """The filters that may be given, all or some of them."""


def tallied(dimension: str, **columns: str) -> Tallied:
    """Return what ``tally_now`` knows of ``dimension``: by filter, the column that its value and its detail are."""
    named = "".join(f"{part} AS {name}, " for part, name in zip(("value", "detail"), columns.values(), strict=False))
    rows = f"SELECT {named}n FROM tally_now WHERE dimension = '{dimension}'"  # noqa: S608  # names of ours
    return Tallied(rows, frozenset(columns))


@dataclass(frozen=True)
class ListSpec:
    """All that is particular to one list. Every piece of SQL calls the listed table ``item``."""

    table: type[Table]
    """Whose rows are listed; with it ``visible`` decides who sees which."""
    show: Show
    """Makes the JSON object of a row, or takes the one that ``select`` wrote."""
    fields: frozenset[str]
    """The keys that ``show`` may write: what ``fields=`` may name."""
    keys: Mapping[str, Key]
    """What ``sort=`` may name."""
    filters: Mapping[str, Filter] = field(default_factory=dict)
    """By parameter. The time filters of created_at, updated_at and expires_at or not_after are there of themselves."""
    order: str = "created_at"
    """The default; a leading ``-`` is descending."""
    select: str = "item.*"
    """What is read of each row of a page, its ``id`` among it."""
    joins: str = ""
    """What ``select`` needs beside the table; conditions cannot name it."""
    unless: Mapping[str, Where] = field(default_factory=dict)
    """Conditions that hold unless the filter of that name is given."""
    others: frozenset[str] = frozenset()
    """Parameters that the handler reads itself."""
    shown: Where | None = None
    """Which rows are listed at all; what tallies count has it already."""
    tallies: Sequence[Tallied] = ()
    """What knows the number of rows without counting; the first that goes with the filters is asked."""
    name: str = ""
    """What the OpenAPI document calls an object; by default as the table."""
    optional: frozenset[str] = frozenset()
    """The keys that an object may lack."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Types of keys where neither column nor filter says them; those that are no ``fields`` are in few answers."""

    def __deepcopy__(self, _: object) -> Self:
        # A router copies what its handlers say of themselves; this never changes.
        return self

    @cached_property
    def every_filter(self) -> dict[str, Filter]:
        """The filters, those of times included."""
        times = {"created": ("created_at",), "updated": ("updated_at",), "expires": ("expires_at", "not_after")}
        found: dict[str, Filter] = {}
        for word, names in times.items():
            for key in (self.keys[name] for name in names if name in self.keys):
                found |= {f"{word}_before": before(key.sql), f"{word}_after": after(key.sql)}
        return found | dict(self.filters)

    def sort_key(self, name: str) -> str:
        """Return the name of the key that ``sort=name`` means; raise ValueError."""
        name = SORT_ALIASES.get(name, name)
        if name == "expires_at" and name not in self.keys:
            name = "not_after"
        if name not in self.keys:
            raise ValueError(f"sort is not possible by {name[:64]}")
        return name


def listed(  # noqa: PLR0913  # what tells one list from another
    table: type[Table],
    show: Show,
    fields: Iterable[str],
    *,
    keys: Mapping[str, Key] | None = None,
    json: Iterable[str] = (),
    optional: Iterable[str] = (),
    **more: Any,
) -> ListSpec:
    """Return the spec whose sort keys are the columns among ``fields``.

    Args:
        table: As in ListSpec, like everything in ``more``.
        show: As in ListSpec.
        fields: As in ListSpec.
        keys: Sort keys that are no columns, or other than their columns.
        json: Columns that hold lists or maps, by which nothing is sorted.
        optional: As in ListSpec.
        more: Further fields of ListSpec.
    """
    names = frozenset(fields)
    unfit = frozenset(json)
    columns = {column._meta.name: column for column in table._meta.columns}
    found = {name: _key(table, columns[name]) for name in sorted(names & columns.keys() - unfit)}
    return ListSpec(table, show, names, found | dict(keys or {}), optional=frozenset(optional), **more)


def _key(table: type[Table], column: Column) -> Key:
    name = column._meta.name
    kind: Kind = next((KINDS[cls] for cls in type(column).__mro__ if cls in KINDS), "text")
    full = name in NEVER_EMPTY or (name == "name" and issubclass(table, Resource))
    return Key(f"item.{name}", kind, column._meta.null or (kind == "text" and not full))
