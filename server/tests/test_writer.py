"""Many small SQLite transactions share one sync of the disk, and none is told of another's fate."""

import asyncio
import sqlite3

import pytest
from certctl_server.db.lite import Costs, Lite
from certctl_server.db.writer import Writer


@pytest.fixture
async def place(tmp_path):
    path = tmp_path / "writer.db"
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE row (number INTEGER PRIMARY KEY)")
    made.close()
    return path


@pytest.fixture
async def writer(place):
    writer = Writer(await Lite.open(Costs(), database=place, isolation_level=None))
    yield writer
    await writer.close()


def stored(place):
    """What another process sees."""
    with sqlite3.connect(place) as reader:
        found = [number for (number,) in reader.execute("SELECT number FROM row ORDER BY number")]
    reader.close()
    return found


async def put(writer, number, *, then=None):
    async with writer.work() as connection:
        await connection.fetch("INSERT INTO row VALUES (?)", (number,))
        if then:
            raise then
    return number


async def test_what_is_done_is_on_disk_when_its_author_is_told(writer, place):
    for number in range(3):
        await put(writer, number)
        assert stored(place) == list(range(number + 1))


async def test_those_who_wait_for_their_turn_share_one_commit(writer, place):
    statements = []
    async with writer.work() as connection:
        connection.raw.set_trace_callback(statements.append)
    await asyncio.gather(*(put(writer, number) for number in range(20)))
    assert stored(place) == list(range(20))
    assert statements.count("COMMIT") < 5


@pytest.mark.parametrize("failing", [0, 5, 9], ids=["first", "middle", "last"])
async def test_one_that_fails_is_undone_alone(writer, place, failing):
    works = [put(writer, number, then=ValueError("no") if number == failing else None) for number in range(10)]
    ended = await asyncio.gather(*works, return_exceptions=True)
    assert [number for number in range(10) if isinstance(ended[number], ValueError)] == [failing]
    assert stored(place) == [number for number in range(10) if number != failing]


async def test_one_that_is_cancelled_at_any_point_leaves_the_connection_free(writer, place):
    async def slow(number):
        async with writer.work() as connection:
            await connection.fetch("INSERT INTO row VALUES (?)", (number,))
            await asyncio.sleep(0)

    for turns in range(40):
        task = asyncio.create_task(slow(1000 + turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await put(writer, turns)
    assert [number for number in stored(place) if number < 1000] == list(range(40))


async def test_whoever_waits_for_a_transaction_that_sqlite_undid_is_told(writer, place):
    async def undone():
        async with writer.work() as connection:
            await connection.fetch("INSERT OR ROLLBACK INTO row VALUES (1)")

    await put(writer, 1)
    good, bad, later = await asyncio.gather(put(writer, 2), undone(), put(writer, 3), return_exceptions=True)
    assert isinstance(good, sqlite3.OperationalError)
    assert isinstance(bad, sqlite3.IntegrityError)
    assert later == 3
    assert stored(place) == [1, 3]


async def test_a_commit_that_fails_is_told_to_all_who_wait_for_it(writer, place):
    async with writer.work() as connection:
        await connection.fetch("CREATE TABLE child (row REFERENCES row (number) DEFERRABLE INITIALLY DEFERRED)")
    await connection.fetch("PRAGMA foreign_keys=1")

    async def orphan():
        async with writer.work() as connection:
            await connection.fetch("INSERT INTO child VALUES (77)")

    ended = await asyncio.gather(orphan(), put(writer, 5), return_exceptions=True)
    assert [type(each) for each in ended] == [sqlite3.IntegrityError] * 2
    await put(writer, 6)
    assert stored(place) == [6]
