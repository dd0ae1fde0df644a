import asyncio
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.leader import Leadership, NotLeading
from certctl_server.loops import Loop, Loops

LEASE = timedelta(seconds=1)
LONG = timedelta(hours=1)
BEATS = db.Sql("SELECT name, started_at, finished_at, last_error FROM loop_beat")


class Work:
    """Notes when it is called, and does what a test says."""

    def __init__(self, act=None):
        self.turns, self.beside, self._inside, self._act = [], 0, 0, act

    async def __call__(self, leadership):
        self._inside += 1
        self.beside = max(self.beside, self._inside)
        self.turns.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(0.02)
            return await self._act(leadership) if self._act else None
        finally:
            self._inside -= 1


@pytest.fixture
async def turn(database):
    running = []

    async def start(work, interval=LONG, leadership=None, **more):
        leadership = leadership or Leadership("test", LEASE, alone=True)
        loops = Loops(leadership, [Loop("work", interval, work, **more)], LEASE)
        running.append(loops)
        loops.start()
        return loops

    yield start
    for loops in running:
        await loops.stop()


async def seen(work, turns, seconds=5):
    async with asyncio.timeout(seconds):
        while len(work.turns) < turns:
            await asyncio.sleep(0.01)


async def test_a_loop_turns_at_the_start_and_leaves_a_beat(turn):
    work = Work()
    await turn(work)
    await seen(work, 1)
    await asyncio.sleep(0.3)
    assert 1 <= len(work.turns) <= 2  # at its start, and once elected
    [beat] = await db.fetch(BEATS)
    assert (beat["name"], beat["last_error"]) == ("work", "")
    assert beat["started_at"] < beat["finished_at"]


async def test_a_loop_that_waits_at_the_start_turns_when_it_is_elected_or_poked(turn):
    work = Work()
    loops = await turn(work, at_start=False)
    await seen(work, 1)
    loops.poke("work", "unknown")
    await seen(work, 2)


async def test_a_loop_is_never_beside_itself_however_often_it_is_poked(turn):
    work = Work()
    loops = await turn(work)
    await seen(work, 1)
    for _ in range(50):
        loops.poke("work")
        await asyncio.sleep(0.005)
    assert work.beside == 1
    assert len(work.turns) > 3


async def test_a_poke_that_comes_while_a_loop_turns_is_not_lost(turn):
    work = Work()
    loops = await turn(work)
    await seen(work, 1)
    await asyncio.sleep(0.3)
    turns = len(work.turns)
    loops.poke("work")
    await seen(work, turns + 1)
    loops.poke("work")
    await seen(work, turns + 2)


async def test_a_loop_wakes_at_the_moment_it_named(turn):
    async def soon(_):
        return db.now() + timedelta(seconds=0.4)

    work = Work(soon)
    await turn(work)
    await seen(work, 4)
    gaps = [later - earlier for earlier, later in zip(work.turns[1:], work.turns[2:], strict=False)]
    assert all(0.35 < gap < 1.5 for gap in gaps)


async def test_a_loop_survives_what_its_work_raises_and_says_so(turn):
    async def fails(_):
        raise ValueError("no")

    work = Work(fails)
    await turn(work, timedelta(milliseconds=100))
    await seen(work, 3)
    [beat] = await db.fetch(BEATS)
    assert beat["last_error"] == "ValueError: no"


async def test_only_the_leaders_loops_turn_and_the_next_leader_takes_over(turn):
    first, second = Work(), Work()
    one = await turn(first, timedelta(milliseconds=50), Leadership("one", LEASE, alone=False))
    await seen(first, 2)
    await turn(second, timedelta(milliseconds=50), Leadership("two", LEASE, alone=False))
    await asyncio.sleep(0.4)
    assert second.turns == []
    await one.stop()
    turns = len(first.turns)
    await seen(second, 2)
    assert len(first.turns) == turns


async def test_a_loop_that_finds_another_leader_waits_for_its_turn(turn):
    async def lost(_):
        raise NotLeading("no")

    work = Work(lost)
    await turn(work)
    await seen(work, 1)
    await asyncio.sleep(0.3)
    assert len(work.turns) <= 2
    assert await db.fetch(BEATS) == []
