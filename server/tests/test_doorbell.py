"""Bells over a real Redis: heard by one worker, told to every server, lost without harm."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from certctl_sdk.testing.redis import Redis
from certctl_server.doorbell import MOST, Answers, LocalDoorbell, RedisDoorbell


@pytest.fixture(scope="module")
def server():
    with Redis() as server:
        yield server


@pytest.fixture
def redis(server):
    server.say("FLUSHALL")
    return server


@pytest.fixture
def process(redis):
    """Make what a process of the installation is to its doorbell."""
    made = []

    def make(*, works=True, url=redis.url):
        heard = SimpleNamespace(lanes=[], words=[])
        answers = Answers(heard.lanes.append if works else None, heard.words.append, None)
        heard.bell = RedisDoorbell(url, answers)
        heard.bell.start()
        made.append(heard.bell)
        return heard

    yield make
    for bell in made:
        bell.stop()


async def until(done, seconds=10):
    async with asyncio.timeout(seconds):
        while not (found := done()):
            await asyncio.sleep(0.01)
    return found


async def stopped(bell):
    await asyncio.get_running_loop().run_in_executor(None, bell.stop)


def listeners(redis):
    return int(redis.say("PUBSUB", "NUMSUB", "certctl:tell").rpartition(b":")[2])


async def test_a_lane_is_heard_by_one_worker_whoever_rang(process):
    server, first, second = process(works=False), process(), process()
    for number in range(20):
        server.bell.ring(f"issuer:{number}")
    await until(lambda: len(first.lanes + second.lanes) == 20)
    await asyncio.sleep(0.3)
    assert sorted(first.lanes + second.lanes) == sorted(f"issuer:{number}" for number in range(20))
    assert server.lanes == []


async def test_a_word_is_told_to_everyone(process, redis):
    first, second = process(works=False), process(works=False)
    await until(lambda: listeners(redis) == 2)
    first.bell.tell("agent:a")
    await until(lambda: "agent:a" in first.words and "agent:a" in second.words)


async def test_a_worker_without_room_leaves_bells_to_others(redis, process):
    full, room = SimpleNamespace(lanes=[]), threading.Event()
    busy = RedisDoorbell(redis.url, Answers(full.lanes.append, None, room))
    busy.start()
    free = process()
    for number in range(50):
        free.bell.ring(f"lane {number}")
    await until(lambda: len(free.lanes) >= 45, seconds=5)
    room.set()
    await until(lambda: len(free.lanes + full.lanes) == 50)
    await stopped(busy)
    assert len(full.lanes) <= 5


async def test_bells_are_lost_while_redis_is_away_and_heard_again_afterwards(process, redis):
    server, worker = process(works=False), process()
    server.bell.ring("before")
    await until(lambda: worker.lanes == ["before"])
    redis.stop()
    began = time.monotonic()
    for number in range(100):
        server.bell.ring(f"lost {number}")
        server.bell.tell("agent:lost")
    assert time.monotonic() - began < 0.1
    await until(lambda: not server.bell.reachable())
    redis.start()
    await until(lambda: server.bell.reachable() and listeners(redis) == 2)
    server.bell.ring("after")
    server.bell.tell("agent:after")
    await until(lambda: "after" in worker.lanes and "agent:after" in worker.words, seconds=20)


async def test_nothing_that_redis_knows_is_needed(process, redis):
    server, worker = process(works=False), process()
    for lane in ("one", "two"):
        redis.say("FLUSHALL")
        redis.say("SCRIPT", "FLUSH")
        server.bell.ring(lane)
        await until(lambda lane=lane: lane in worker.lanes)


def waiting(redis):
    return int(redis.say("HLEN", "certctl:lanes.msgs")[1:-2])


async def test_while_no_worker_lives_bells_do_not_pile_up(process, redis):
    server = process(works=False)
    for number in range(MOST * 3):
        server.bell.ring(f"lane {number}")
        if number % 100 == 0:
            await asyncio.sleep(0.02)
    await until(lambda: waiting(redis) > MOST / 2)
    await asyncio.sleep(1)
    assert waiting(redis) <= MOST + 200


async def test_it_stops_soon_although_redis_never_was_there(redis):
    with Redis() as gone:
        url = gone.url
    bell = RedisDoorbell(url, Answers(lambda _: None, lambda _: None))
    bell.start()
    bell.ring("lane")
    began = time.monotonic()
    await stopped(bell)
    assert time.monotonic() - began < 8


async def test_alone_a_process_hears_its_own_bells(redis):
    lanes = []
    bell = LocalDoorbell(Answers(lanes.append, None))
    bell.start()
    bell.ring("lane")
    bell.tell("agent:a")
    await until(lambda: lanes == ["lane"])
    await stopped(bell)
