from __future__ import annotations

import asyncio

import pytest
from certctl_agent.api import AgentApi, Server
from certctl_agent.deploy import JobGone, lease
from certctl_agent.work import Item

ITEM = Item(id="job-1", type="Deployment", status="Pending", certificate_id="mc-web", target_id="tgt-1")


@pytest.fixture
def api(plane):
    plane.jobs["job-1"] = {"id": "job-1", "type": "Deployment", "status": "Running"}
    server = Server(plane.url, key="own-key")
    yield AgentApi(server, "ag-1")
    server.close()


async def test_a_long_deployment_keeps_its_lease(plane, api):
    async with lease(ITEM, api, every=0.02):
        await asyncio.sleep(0.3)
    assert len(plane.jobs["job-1"]["reports"]) > 2


@pytest.mark.parametrize("status", [404, 409])
async def test_a_deployment_whose_job_was_taken_away_is_ended(plane, api, status):
    plane.forced["/status"] = status, {"message": "job was cancelled"}
    with pytest.raises(JobGone, match="job was cancelled"):
        async with lease(ITEM, api, every=0.02):
            await asyncio.sleep(10)


async def test_a_server_that_is_away_does_not_end_a_deployment(plane, api):
    plane.forced["/status"] = 503, {"message": "database down"}
    async with lease(ITEM, api, every=0.02):
        await asyncio.sleep(0.2)


async def test_a_cancellation_from_elsewhere_stays_one(plane, api):
    async def hold() -> None:
        async with lease(ITEM, api, every=0.02):
            await asyncio.sleep(10)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
