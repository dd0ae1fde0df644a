"""JSON objects that the database writes: a page of them passes through as it is, and nothing is made per row here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from piccolo.columns import BigInt, Timestamptz
from piccolo.columns.base import Column
from piccolo.table import Table

from certctl_server.db import Row


def written(table: type[Table], names: Iterable[str], optional: Iterable[str], further: Mapping[str, str]) -> str:
    """Return the SQL that writes the object of a row of ``table``, which is called ``item``.

    Args:
        table: Says what its columns are.
        names: Columns that are never NULL.
        optional: Columns that are left out when empty.
        further: By key, SQL that writes a value.
    """
    columns = {column._meta.name: column for column in table._meta.columns}
    parts = [f"'\"{name}\":' || {_value(columns[name])}" for name in names]
    parts += [f"'\"{name}\":' || {sql}" for name, sql in further.items()]
    text = " || ',' || ".join(parts)
    for name in optional:
        text += f" || CASE WHEN {_filled(columns[name])} THEN ',\"{name}\":' || {_value(columns[name])} ELSE '' END"
    return f"'{{' || {text} || '}}'"


def read(row: Row) -> msgspec.Raw:
    """Return what the SQL of ``written`` wrote into the column ``object``."""
    return msgspec.Raw(row["object"].encode())


def _value(column: Column) -> str:
    sql = f"item.{column._meta.name}"
    if isinstance(column, BigInt):
        return sql
    return f"{{moment:{sql}}}" if isinstance(column, Timestamptz) else f"{{quote:{sql}}}"


def _filled(column: Column) -> str:
    sql = f"item.{column._meta.name}"
    if isinstance(column, Timestamptz):
        return f"{sql} IS NOT NULL"
    return f"{sql} <> {0 if isinstance(column, BigInt) else chr(39) * 2}"
