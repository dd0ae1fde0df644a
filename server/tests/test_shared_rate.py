"""One budget for all servers, in a real Redis, and one for each while that is away."""

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import replace

import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.redis import Redis
from certctl_server.app import make_app
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.http import shared_rate
from certctl_server.http.rate import RateLimiter
from certctl_server.http.shared_rate import SharedBuckets
from certctl_server.settings import RateLimit
from pydantic import SecretStr

TEAMS = "/api/v1/teams"


@pytest.fixture(scope="module")
def broker():
    with Redis() as broker:
        yield broker


@pytest.fixture
def redis(broker):
    """Empty, and running again after a test that stopped it."""
    broker.say("FLUSHALL")
    yield broker
    broker.stop()
    broker.start()


@pytest.fixture
async def servers(redis):
    """Two servers' buckets."""
    made = SharedBuckets(redis.url), SharedBuckets(redis.url)
    yield made
    for each in made:
        await each.aclose()


async def test_what_one_server_let_pass_counts_at_the_other(servers):
    limiter = RateLimiter(0.1, 4)
    waits = [await servers[number % 2].wait("caller", limiter, "key-1") for number in range(6)]
    assert waits[:4] == [0, 0, 0, 0]
    assert 9 < waits[4] <= waits[5] + 0.1 <= 10.1
    assert await servers[0].wait("caller", limiter, "key-2") == 0
    assert await servers[0].wait("address", limiter, "key-1") == 0


async def test_many_at_once_get_no_more_than_there_is(servers):
    limiter = RateLimiter(0.1, 50)
    asked = [server.wait("caller", limiter, "key-1") for server in servers for _ in range(100)]
    assert sum(not wait for wait in await asyncio.gather(*asked)) == 50


async def test_a_bucket_refills_with_time_and_is_forgotten_when_full(servers, redis):
    limiter = RateLimiter(10, 2)
    waits = [await servers[0].wait("caller", limiter, "key-1") for _ in range(3)]
    assert waits[:2] == [0, 0]
    assert 0 < waits[2] <= 0.1
    await asyncio.sleep(waits[2] + 0.01)
    assert await servers[1].wait("caller", limiter, "key-1") == 0
    await asyncio.sleep(0.5)
    assert redis.say("DBSIZE") == b":0\r\n"


async def test_while_redis_is_away_each_server_counts_by_itself_and_says_so_once(servers, redis, caplog, monkeypatch):
    monkeypatch.setattr(shared_rate, "AGAIN_SECONDS", 0.2)
    limiter = RateLimiter(0.1, 3)
    assert await servers[0].wait("caller", limiter, "key-1") == 0
    redis.stop()
    with caplog.at_level(logging.INFO):
        waits = [await servers[0].wait("caller", limiter, "key-1") for _ in range(4)]
        assert [wait > 0 for wait in waits] == [False, False, False, True]
        redis.start()
        await asyncio.sleep(0.3)
        assert await servers[0].wait("caller", limiter, "key-1") == 0
    told = [record.message for record in caplog.records if record.name == shared_rate.__name__]
    assert [message.split(":")[0] for message in told] == [
        "the broker does not count calls",
        "the broker counts calls again",
    ]


async def test_nobody_waits_long_for_a_redis_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        buckets = SharedBuckets(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        limiter, began = RateLimiter(1, 100), time.monotonic()
        assert await asyncio.gather(*(buckets.wait("caller", limiter, str(n)) for n in range(50))) == [0] * 50
        assert time.monotonic() - began < 3 * shared_rate.PATIENCE_SECONDS
        began = time.monotonic()
        assert await buckets.wait("caller", limiter, "next") == 0
        assert time.monotonic() - began < shared_rate.PATIENCE_SECONDS / 2
        await buckets.aclose()


@contextlib.asynccontextmanager
async def serving(app, key):
    """A client of an application that was started, and is stopped."""
    told, said = asyncio.Queue(), asyncio.Queue()
    running = asyncio.create_task(app({"type": "lifespan", "state": {}}, told.get, said.put))
    told.put_nowait({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    transport, headers = httpx.ASGITransport(app=app), {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://certctl.test", headers=headers) as client:
        yield client
    told.put_nowait({"type": "lifespan.shutdown"})
    await running


async def test_two_servers_give_a_caller_one_budget(ctx, redis):
    limits = {"rate_limit": RateLimit(rps=0.1, burst=5), "broker_url": SecretStr(redis.url)}
    shared = replace(ctx, settings=ctx.settings.model_copy(update=limits))
    _, key = await create_key("ada", Role.ADMIN)
    statuses = []
    for _ in range(2):
        async with serving(make_app(shared), key) as client:
            statuses += [(await client.get(TEAMS)).status_code for _ in range(4)]
    assert statuses == [200] * 5 + [429] * 3
