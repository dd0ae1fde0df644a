from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from certctl_agent import main, settings

ENDED = {"Completed", "Failed", "Cancelled"}
RSS_KIB = 60 * 1024


def all_ended(plane):
    return plane.deployments() and all(job["status"] in ENDED for job in plane.jobs.values())


def rss_kib(pid):
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def calls(plane, word):
    return [path for _, path, _ in plane.seen if word in path]


def test_a_retired_agent_stops_for_good(plane, agent):
    plane.forced["/heartbeat"] = 410, {"error": "Gone", "message": "agent is retired"}
    agent.start()
    assert agent.ended() == 0
    assert "agent is retired" in agent.said
    assert calls(plane, "/work") == []


def test_an_agent_retired_between_two_polls_stops_too(plane, agent):
    plane.forced["/work"] = 410, {"error": "Gone", "message": "agent is retired"}
    agent.start()
    assert agent.ended() == 0


def test_a_server_that_cannot_wait_is_asked_without_and_not_in_circles(plane, agent):
    plane.waits = False
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: plane.csrs)
    time.sleep(1.5)
    asked = calls(plane, "/work")
    assert asked[0].endswith("?wait=25")
    assert all(path.endswith("/work") for path in asked[1:])
    assert len(asked) < 5


@pytest.mark.parametrize("status", [401, 403])
def test_an_agent_that_is_not_known_says_so_and_does_not_insist(plane, agent, status):
    plane.forced["/heartbeat"] = status, {"message": "Invalid API key"}
    agent.start()
    plane.until(lambda: calls(plane, "/heartbeat"))
    time.sleep(1)
    assert len(calls(plane, "/heartbeat")) == 1
    assert "the server refuses this agent" in agent.said
    assert "own-key" not in agent.said


def test_a_server_that_is_away_is_told_once_and_found_again(plane, agent):
    plane.forced["/heartbeat"] = 503, {"message": "database down"}
    agent.start()
    plane.until(lambda: len(calls(plane, "/heartbeat")) > 1)
    plane.forced.clear()
    plane.until(lambda: plane.beats, 30)
    plane.until(lambda: calls(plane, "/work"))
    assert agent.said.count("the server does not help") == 1
    assert "the server answers again" in agent.said


def test_an_agent_that_is_told_to_stop_finishes_the_deployment_at_hand(plane, agent, service, deployable):
    begun = deployable.parent / "begun"
    deployable.write_text(f"#!/bin/sh\ntouch {begun}\nsleep 1\n")
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(plane.deployments)
    while not begun.exists():
        time.sleep(0.02)
    assert agent.stop() == 0
    assert plane.deployments()[0]["status"] == "Completed"
    assert service.cert.read_text() == plane.certificates["mc-web"]
    assert service.fits()


async def test_a_deployment_that_outlasts_the_stop_is_taken_back_and_reported(
    plane, agent, service, deployable, monkeypatch
):
    begun = deployable.parent / "begun"
    deployable.write_text(f"#!/bin/sh\ntest -e {begun} && exit\ntouch {begun}\nsleep 20\n")
    plane.order("mc-web", "web.example")
    monkeypatch.syspath_prepend(agent.environ["PYTHONPATH"])
    daemon = main.assemble(settings.read(agent.environ, {}))
    stopping = asyncio.Event()
    running = asyncio.create_task(daemon.run(stopping, patience=timedelta(seconds=0.2)))
    while not begun.exists():
        await asyncio.sleep(0.02)
    stopping.set()
    await asyncio.wait_for(running, 10)
    [deployment] = plane.deployments()
    assert deployment["reports"][-1] == {
        "status": "Failed", "error": "the agent was stopped", "error_kind": "transient",
    }  # fmt: skip
    assert not service.cert.exists()
    assert not service.key.exists()


def test_an_idle_agent_stops_at_once(plane, agent):
    agent.start()
    plane.until(lambda: calls(plane, "/work"))
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 3


def test_many_certificates_are_done_side_by_side_but_never_two_on_one_target(plane, agent, deployable):
    log = deployable.parent / "log"
    deployable.write_text(f"#!/bin/sh\necho + >>{log}\nsleep 0.3\necho - >>{log}\n")
    for number in range(6):
        plane.order(f"mc-{number}", f"n{number}.example")
    agent.start()
    plane.until(lambda: len(plane.deployments()) == 6 and all_ended(plane), 40)
    assert {job["status"] for job in plane.deployments()} == {"Completed"}, agent.said
    assert log.read_text().split() == ["+", "-"] * 6


def test_work_that_makes_no_sense_is_left_alone(plane, agent, deployable):
    plane.order("mc-web", "web.example")
    plane.jobs["job-0"] = {"id": "job-0", "type": "Issuance", "certificate_id": 7, "status": "AwaitingCSR"}
    plane.jobs["../x"] = {**plane.jobs["job-1"], "id": "../x", "certificate_id": "mc-x"}
    agent.start()
    plane.until(
        lambda: all(job["status"] in ENDED for name, job in plane.jobs.items() if name not in {"job-0", "../x"})
    )
    assert plane.deployments()[0]["status"] == "Completed"
    assert not list(agent.state.glob("**/x*"))


def test_an_agent_at_rest_stays_small(plane, agent, deployable, capsys):
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    time.sleep(1)
    resident = rss_kib(agent.process.pid)
    with capsys.disabled():
        print(f"\nagent at rest: {resident / 1024:.1f} MiB resident")  # noqa: T201
    assert resident < RSS_KIB


def test_an_agent_without_a_key_says_how_to_get_one(plane, agent):
    del agent.environ["CERTCTL_API_KEY"]
    agent.start()
    assert agent.ended() == 1
    assert "certctl-agent enroll" in agent.said


def test_two_agents_do_not_share_what_one_keeps(plane, agent):
    agent.start()
    plane.until(lambda: plane.beats)
    first = agent.process
    agent.start()
    assert agent.ended() == 1
    assert "another agent runs" in agent.said
    first.terminate()
    assert first.wait(10) == 0


def test_a_clock_that_is_off_is_told_once(plane, agent):
    plane.forced["/heartbeat"] = 200, {"server_time": "2020-01-01T00:00:00Z"}
    agent.start()
    plane.until(lambda: calls(plane, "/work"))
    assert agent.said.count("clock is off") == 1


def test_the_flags_of_the_original_work(plane, agent):
    for name in ("CERTCTL_SERVER_URL", "CERTCTL_API_KEY", "CERTCTL_AGENT_ID"):
        del agent.environ[name]
    keys = agent.state / "elsewhere"
    arguments = ["-server", plane.url, "-api-key", "own-key", "-agent-id", "ag-1", "-name", "x"]
    agent.start(*arguments, "-key-dir", str(keys), "-discovery-dirs", os.devnull)
    plane.until(lambda: calls(plane, "/work"))
    assert keys.is_dir()
