"""Statements that Piccolo cannot say, or says slowly: text for both dialects, chosen when it runs.

Parameters are ``$1``, ``$2`` ... on both. Times go in as aware datetimes and come out of named columns as
such; an expression over a time comes back as text on SQLite.
"""

# ruff: noqa: S608  # table and column names are ours, values are parameters
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["postgres", "sqlite"]

#: The database's own clock, in the form in which times are stored. Leases are judged by it alone.
#: SQLite's counts milliseconds: rounded up, so that what became due by Python's a moment ago is due.
NOW = {"postgres": "clock_timestamp()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f+00:00','now','+0.001 seconds')"}
#: The same, some seconds later: ``{after:$3}``.
LATER = {
    "postgres": "clock_timestamp() + make_interval(secs => {0})",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f+00:00','now',({0}) || ' seconds')",
}
#: The texts of a JSON array, as rows: ``id IN ({ids:$1})``.
IDS = {
    "postgres": "SELECT json_array_elements_text({0}::text::json)",
    "sqlite": "SELECT value FROM json_each({0})",
}
#: PostgreSQL takes a list of texts for a hundred and may walk a whole table for one of them; an array it looks up.
ONE_OF = re.compile(r"(?<!NOT )IN \(\{ids:(\$\d+)\}\)")
#: All values of a column as one JSON array: ``{list:name}``.
LIST = {"postgres": "coalesce(json_agg({0}), '[]')::text", "sqlite": "json_group_array({0})"}
#: A text and a time as JSON.
QUOTE = {"postgres": "to_json({0})", "sqlite": "json_quote({0})"}
MOMENT = {
    "postgres": "replace(to_json({0})::text, '+00:00', 'Z')",
    "sqlite": "'\"' || replace(replace({0}, ' ', 'T'), '+00:00', 'Z') || '\"'",
}


@dataclass(frozen=True, slots=True)
class Sql:
    """One statement. ``{now}`` and ``{after:SECONDS}`` stand for the database's clock.

    ``{ids:$1}`` stands for the texts of a JSON array, ``{list:column}`` makes one; ``{quote:column}`` and
    ``{moment:column}`` write a text and a time as JSON.
    """

    postgres: str
    sqlite: str

    def __init__(self, both: str = "", *, postgres: str = "", sqlite: str = "") -> None:
        object.__setattr__(self, "postgres", _spell(postgres or both, "postgres"))
        object.__setattr__(self, "sqlite", re.sub(r"\$(\d+)", r"?\1", _spell(sqlite or both, "sqlite")))

    def text(self, dialect: Dialect) -> str:
        """Return the statement as ``dialect`` reads it."""
        return self.postgres if dialect == "postgres" else self.sqlite


def _spell(text: str, dialect: Dialect) -> str:
    if dialect == "postgres":
        text = ONE_OF.sub(r"= ANY (ARRAY(SELECT json_array_elements_text(\1::text::json)))", text)
    words = {"after": LATER, "ids": IDS, "list": LIST, "quote": QUOTE, "moment": MOMENT}
    for word, spelling in words.items():
        text = re.sub(rf"\{{{word}:([^}}]+)\}}", spelling[dialect].replace("{0}", r"\1"), text)
    return text.replace("{now}", NOW[dialect])


# One statement for any number of rows, which arrive as one JSON text: what the database prepared for it is used again.
def insert_rows(table: str, columns: Mapping[str, str], tail: str = "") -> Sql:
    """Return the statement that inserts the objects of the JSON array ``$1``; ``columns`` gives names and types."""
    names = ", ".join(columns)
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    picked = ", ".join(f"value ->> '{name}'" for name in columns)
    into = f"INSERT INTO {table} ({names}) SELECT"
    return Sql(
        postgres=f"{into} {names} FROM json_to_recordset($1::text::json) AS row ({typed}) {tail}",
        # Without a WHERE clause SQLite would read ON CONFLICT as a join.
        sqlite=f"{into} {picked} FROM json_each($1) WHERE true {tail}",
    )


def _recordset(typed: str) -> str:
    # The limit is no limit. The planner takes a JSON array for a hundred rows, for which it walks tables of thousands;
    # under a limit that it cannot know it reckons with ten, and seeks. Without SELECT it would know, and plan anew.
    limit = "(SELECT json_array_length($1::text::json))"
    found = f"SELECT * FROM json_to_recordset($1::text::json) AS each ({typed}) LIMIT {limit}"
    return f"({found}) AS row"


def with_rows(columns: Mapping[str, str], text: str) -> Sql:
    """Return ``text`` as a statement in which ``{row}`` stands for the objects of the JSON array ``$1``.

    They are a table called ``row``; ``columns`` gives its names and types.
    """
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    picked = ", ".join(f"value ->> '{name}' AS {name}" for name in columns)
    return Sql(
        postgres=text.replace("{row}", _recordset(typed)),
        sqlite=text.replace("{row}", f"(SELECT {picked} FROM json_each($1)) AS row"),
    )


def update_rows(table: str, key: str, columns: Mapping[str, str]) -> Sql:
    """Return the statement that sets ``columns`` of the rows that objects of the JSON array ``$1`` name by ``key``."""
    typed = ", ".join(f"{name} {kind}" for name, kind in {key: "text", **columns}.items())
    new = ", ".join(f"{name} = row.{name}" for name in columns)
    picked = ", ".join(f"{name} = row.value ->> '{name}'" for name in columns)
    where = f"WHERE {table}.{key} ="
    return Sql(
        postgres=f"UPDATE {table} SET {new} FROM {_recordset(typed)} {where} row.{key}",
        sqlite=f"UPDATE {table} SET {picked} FROM json_each($1) AS row {where} row.value ->> '{key}'",
    )
