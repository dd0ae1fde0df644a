"""How text compares: by code point on both databases."""

from __future__ import annotations

import re

from certctl_server.db.sql import Dialect


def by_code_point(statements: list[str], dialect: Dialect) -> list[str]:
    """Let text columns compare as SQLite's do, whatever the locale of the database, and indexes serve for it."""
    if dialect == "sqlite":
        return statements
    column = re.compile(r"\bTEXT(?= (?:NOT NULL|NULL|PRIMARY KEY)\b)")
    return [column.sub('TEXT COLLATE "C"', statement) for statement in statements]
