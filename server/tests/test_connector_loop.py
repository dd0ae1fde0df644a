import asyncio
import time

import pytest
from certctl_core.errors import RejectedError
from certctl_server.connectors.loop import ConnectorBug, ConnectorLoop


@pytest.fixture
async def loop():
    loop = ConnectorLoop()
    loop.start()
    yield loop
    await loop.stop()


def block_for_a_while(seconds):
    time.sleep(seconds)


async def blocking(seconds=2.2):
    block_for_a_while(seconds)


async def test_a_connector_that_blocks_holds_up_nobody_on_the_main_loop_and_is_named(loop):
    call = asyncio.create_task(loop.call(blocking))
    gaps, last, named = [], time.monotonic(), ""
    while not call.done():
        await asyncio.sleep(0.02)
        gaps.append(time.monotonic() - last)
        last, named = time.monotonic(), loop.blocked or named
    assert max(gaps) < 0.5
    assert "block_for_a_while" in named
    async with asyncio.timeout(3):
        while loop.blocked:
            await asyncio.sleep(0.05)


async def test_cancelling_the_caller_cancels_the_connector(loop):
    ended = asyncio.Event()
    main = asyncio.get_running_loop()

    async def endless():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            main.call_soon_threadsafe(ended.set)
            raise

    call = asyncio.create_task(loop.call(endless))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 2)


async def test_what_a_connector_returns_or_raises_arrives(loop):
    async def fails():
        raise KeyError("x")

    async def there():
        return asyncio.get_running_loop() is not loop.main

    assert await loop.call(there)
    with pytest.raises(ConnectorBug, match="KeyError: 'x'") as raised:
        await loop.call(fails)
    assert isinstance(raised.value.error, KeyError)


async def test_what_a_connector_may_raise_and_what_is_ours_arrive_as_they_are(loop):
    async def refuses():
        raise RejectedError("no")

    async def ours():
        raise OSError("the database is gone")

    async def asks():
        return await loop.back(ours)

    with pytest.raises(RejectedError, match="no"):
        await loop.call(refuses)
    with pytest.raises(OSError, match="the database is gone"):
        await loop.call(asks)


async def test_work_handed_back_runs_on_the_main_loop(loop):
    async def here():
        return asyncio.get_running_loop()

    async def there():
        return await loop.back(here)

    assert await loop.call(there) is loop.main


@pytest.mark.parametrize("blocks", [True, False])
async def test_stopping_returns_whatever_still_runs(blocks):
    loop = ConnectorLoop()
    loop.start()
    call = asyncio.create_task(loop.call(lambda: blocking(4) if blocks else asyncio.sleep(60)))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await loop.stop()
    assert time.monotonic() - started < 3
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
