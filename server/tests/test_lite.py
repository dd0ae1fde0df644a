"""Where a SQLite statement runs: on the loop's thread while its last run was short, else in a thread of its own."""

import asyncio
import sqlite3
import threading

import pytest
from certctl_server.db.lite import KEPT, LONG_ARGUMENT, SHORT_SECONDS, Costs, Lite
from certctl_server.whole import whole

SLOW = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    SELECT where_am_i(count(*)) AS at FROM n
"""


@pytest.fixture
async def lite(tmp_path):
    connection = await Lite.open(Costs(), database=tmp_path / "lite.db", isolation_level=None)
    connection.raw.create_function("where_am_i", 1, lambda _: threading.current_thread().name)
    yield connection
    await connection.close()


async def at(lite, count):
    [row] = await lite.fetch(SLOW, (count,))
    return "thread" if row["at"].startswith("sqlite") else "loop"


async def test_a_statement_runs_where_its_last_run_says(lite):
    places = [await at(lite, count) for count in (3, 3, 200_000, 200_000, 3, 3)]
    assert places == ["thread", "loop", "loop", "thread", "thread", "loop"]


async def test_many_values_go_to_the_thread_however_short_the_last_run_was(lite):
    text = "SELECT where_am_i(length(?)) AS at"
    for argument, thread in (("a", True), ("a", False), ("a" * (LONG_ARGUMENT + 1), True), ("a", False)):
        [row] = await lite.fetch(text, (argument,))
        assert row["at"].startswith("sqlite") is thread


async def test_the_loop_goes_on_while_a_long_statement_runs(lite):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    await at(lite, 1_000_000)
    counting.cancel()
    assert turns > 5


async def test_errors_are_sqlites_own_in_either_place(lite):
    await lite.fetch("CREATE TABLE row (number INTEGER PRIMARY KEY)")
    for _ in range(2):
        await lite.fetch("INSERT OR IGNORE INTO row VALUES (1)")
    for _ in range(2):
        with pytest.raises(sqlite3.IntegrityError):
            await lite.fetch("INSERT INTO row VALUES (?)", (1,))
    with pytest.raises(sqlite3.OperationalError):
        await lite.fetch("SELECT nonsense")


async def test_whoever_is_cancelled_leaves_no_statement_behind(lite):
    ended = []
    lite.raw.create_function("end", 1, lambda _: ended.append("yes"))
    running = asyncio.create_task(lite.fetch(SLOW.replace("where_am_i", "end"), (1_000_000,)))
    await asyncio.sleep(0.01)
    assert not ended
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["yes"]


def test_costs_are_remembered_for_a_bounded_number_of_statements():
    costs = Costs()
    for number in range(KEPT + 1):
        costs.note(f"SELECT {number}", SHORT_SECONDS / 2)
    assert costs.short(f"SELECT {KEPT}", ())
    assert not costs.short("SELECT 0", ())


async def test_who_is_told_to_stop_hears_that_and_not_what_became_of_the_work():
    async def fails():
        await asyncio.sleep(0.05)
        raise ConnectionRefusedError

    task = asyncio.create_task(whole(fails()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_no_statement_runs_beside_a_close(tmp_path):
    connection = await Lite.open(Costs(), database=tmp_path / "closed.db", isolation_level=None)
    for _ in range(2):
        await connection.fetch("SELECT 1")
    closing = asyncio.create_task(connection.close())
    await asyncio.sleep(0)
    with pytest.raises(sqlite3.ProgrammingError):
        await connection.fetch("SELECT 1")
    await closing
