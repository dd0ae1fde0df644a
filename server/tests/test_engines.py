"""What PostgreSQL does for us while a process stands still."""

import asyncio
import contextvars

import pytest
from certctl_server import db
from certctl_server.db import engines
from certctl_server.tables import TABLES

LOCKED = db.Sql("SELECT pg_advisory_xact_lock(1)")


async def alone():
    async with db.transaction():
        await db.fetch(LOCKED)


async def stand_still():
    """Go on in a transaction once somebody else has what it locked."""
    async with db.transaction():
        await db.fetch(LOCKED)
        waiting = asyncio.create_task(alone(), context=contextvars.Context())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        async with asyncio.timeout(10):
            await waiting
        await db.fetch(LOCKED)


async def test_who_stands_still_within_a_transaction_holds_up_nobody_for_long(database, database_url, monkeypatch):
    if database_url.startswith("sqlite"):
        pytest.skip("of one process all stand still")
    await db.close()
    monkeypatch.setattr(engines, "LONGEST_SILENCE", "500ms")
    await db.connect(database_url, TABLES)
    with pytest.raises(db.UNREACHABLE):
        await stand_still()
    await alone()
