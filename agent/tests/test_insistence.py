from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from certctl_agent import main, pace


class Unfinished:
    """Nothing was left behind."""

    async def recover(self, allowed):
        pass


class Idle:
    """A server that never has anything to do."""

    def __init__(self):
        self.polls = 0

    async def heartbeat(self, said):
        return {}

    async def work(self, wait):
        self.polls += 1
        await asyncio.Event().wait()

    def close(self):
        pass


@pytest.fixture
def site(tmp_path):
    settings = SimpleNamespace(config=tmp_path / "agent.toml", server_url="http://127.0.0.1:1", state_dir=tmp_path)
    connectors = SimpleNamespace(having=lambda *_: None)
    return SimpleNamespace(api=Idle(), unfinished=Unfinished(), settings=settings, connectors=connectors, egress=None)


async def test_a_discovery_that_cannot_be_done_is_tried_again_and_ends_nothing_else(site, monkeypatch, caplog):
    tried, again, stopping = [], asyncio.Event(), asyncio.Event()

    async def full(*_, **__):
        tried.append(OSError(28, "No space left on device"))
        if len(tried) > 2:
            again.set()
        raise tried[-1]

    monkeypatch.setattr(main, "discover", full)
    monkeypatch.setattr(pace, "FIRST_SECONDS", 0.01)
    running = asyncio.create_task(main.Agent(site, [Path("/srv/tls")]).run(stopping))
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(5):
            await again.wait()
            while not site.api.polls:
                await asyncio.sleep(0.01)
        assert not running.done()
        stopping.set()
        await running
    assert [record.getMessage() for record in caplog.records] == ["duty failed"]
