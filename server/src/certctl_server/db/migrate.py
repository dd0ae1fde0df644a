"""Bring the schema up to date: all steps in one transaction, one process at a time."""

from __future__ import annotations

import logging

from certctl_server.db.migrations import STEPS
from certctl_server.db.session import dialect, engine, fetch, transaction
from certctl_server.db.sql import Sql

log = logging.getLogger(__name__)
LOCK = Sql(postgres="SELECT pg_advisory_xact_lock(7381950)", sqlite="SELECT 1 AS locked")
BOOK = Sql("CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, ran_on TIMESTAMPTZ NOT NULL)")
APPLIED = Sql("SELECT name FROM migration ORDER BY name")
NOTE = Sql("INSERT INTO migration (name, ran_on) VALUES ($1, {now})")
HAS_BOOK = Sql(
    postgres="SELECT to_regclass('migration') IS NOT NULL AS there",
    sqlite="SELECT count(*) AS there FROM sqlite_master WHERE type = 'table' AND name = 'migration'",
)


def _name(step: object) -> str:
    return str(getattr(step, "__name__", step)).rpartition(".")[2]


async def missing() -> list[str]:
    """Return the names of the steps that the open database lacks, oldest first."""
    [book] = await fetch(HAS_BOOK)
    applied = {row["name"] for row in await fetch(APPLIED)} if book["there"] else set()
    return [_name(step) for step in STEPS if _name(step) not in applied]


async def migrate() -> list[str]:
    """Apply what is missing and return its names; several processes may call it at once.

    Raises:
        RuntimeError: the database knows steps that this version does not: it was used by a newer one.
    """
    if not await missing():
        await _refuse_newer()
        return []
    async with transaction():
        await fetch(LOCK)
        await fetch(BOOK)
        await _refuse_newer()
        names = await missing()
        for step in STEPS:
            if _name(step) in names:
                for statement in step.statements(dialect()):
                    await engine().run(statement, ())
                await fetch(NOTE, _name(step))
    log.info("schema brought up to date", extra={"steps": names})
    return names


async def unknown() -> list[str]:
    """Return the names of the steps that the open database knows and this version does not, oldest first."""
    known = {_name(step) for step in STEPS}
    return [row["name"] for row in await fetch(APPLIED) if row["name"] not in known]


async def _refuse_newer() -> None:
    if newer := await unknown():
        raise RuntimeError(f"this database was brought up to {newer[-1]} by a newer version: run that one")
