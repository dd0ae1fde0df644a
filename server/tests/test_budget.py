import asyncio
import time
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.agents import budget, health, waiting
from certctl_server.agents.tables import AgentGroupWait
from certctl_server.jobs import bell
from certctl_server.jobs.state import release
from certctl_server.jobs.tables import Job


@pytest.fixture
async def group(fleet):
    """Make a group whose agents change so much at once."""

    async def make(most, **criteria):
        body = {"name": "edge", "id": "edge", "match_os": "linux", "max_concurrent_deployments": most, **criteria}
        assert (await fleet.post("agent-groups", **body)).status_code == 201

    return make


async def machines(fleet, *ids, each=1):
    """Agents of the group that each have deployments waiting."""
    found = []
    for id in ids:
        machine = await fleet.machine(id)
        await machine.beat(os="Linux")
        await fleet.target(f"tgt-{id}", machine)
        for n in range(each):
            await fleet.certificate(f"{id}-{n}.example", targets=[f"tgt-{id}"])
        await machine.answer_orders()
        found.append(machine)
    return found


async def test_a_group_bears_so_many_changes_across_certificates_and_agents(fleet, group):
    await group(3)
    a, b = await machines(fleet, "a", "b", each=2)
    assert (len(await a.work()), len(await b.work())) == (2, 1)
    assert await b.work() == []


async def test_concurrent_polls_never_share_the_last_place(fleet, group):
    await group(3)
    found = await machines(fleet, *"abcdef", each=2)
    polls = [machine.work() for machine in found for _ in range(2)]
    assert sum(map(len, await asyncio.gather(*polls))) == 3
    assert await Job.count().where(Job.offered_until.is_not_null()) == 3


async def test_orders_are_no_changes_and_agents_outside_are_not_bounded(fleet, group):
    await group(1)
    a, b = await machines(fleet, "a", "b")
    (c,) = await machines(fleet, "c", each=3)
    await c.beat(os="plan9")
    assert len(await a.work()) == 1
    await fleet.certificate("more.example", targets=["tgt-b"])
    assert [item["type"] for item in await b.work()] == ["Issuance"]
    assert len(await c.work()) == 3


async def test_a_running_change_keeps_its_place_and_an_ended_one_gives_it_to_who_waits(fleet, group):
    await group(1)
    a, b = await machines(fleet, "a", "b")
    [item] = await a.work()
    await a.report(item["id"], "Running")
    await Job.update(offered_until=db.now() - timedelta(hours=1)).where(Job.id == item["id"])
    assert await b.work() == []
    poll = asyncio.create_task(b.work(wait=20))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await a.report(item["id"], "Failed", error="nginx said no")
    assert len(await poll) == 1
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("ends", ["offer", "run", "boot"])
async def test_what_a_dead_agent_held_is_free_again(fleet, group, ends):
    await group(1)
    a, b = await machines(fleet, "a", "b")
    await a.beat(boot_id="one")
    [item] = await a.work()
    assert await b.work() == []
    if ends == "offer":
        past = db.now() - timedelta(seconds=1)
        await Job.update(offered_until=past, offer_at=past).where(Job.id == item["id"])
    else:
        await a.report(item["id"], "Running")
    if ends == "run":
        await release(Job.id == item["id"], reason="its lease ran out")
    if ends == "boot":
        await a.beat(boot_id="two")
    assert len(await b.work()) == 1


async def test_who_let_an_offer_run_out_does_not_begin_in_anothers_place(fleet, group):
    await group(1)
    a, b = await machines(fleet, "a", "b")
    [late] = await a.work()
    past = db.now() - timedelta(seconds=1)
    await Job.update(offered_until=past, offer_at=past).where(Job.id == late["id"])
    [item] = await b.work()
    assert (await a.report(late["id"], "Running")).status_code == 409
    await b.report(item["id"], "Completed")
    assert (await a.report(late["id"], "Running")).status_code == 200


async def test_places_go_to_who_waits_longest_and_nobody_starves(fleet, group):
    await group(1)
    busy, b, c = await machines(fleet, "busy", "b", "c", each=3)
    [item] = await busy.work()
    assert await c.work() == []
    assert await b.work() == []
    served, at_it = [], busy
    for _ in range(3):
        assert (await at_it.report(item["id"], "Completed")).status_code == 200
        # The busy one asks first each time, as an agent does that has just become idle.
        for machine in (busy, b, c):
            if items := await machine.work():
                served.append(machine.id)
                [item], at_it = items, machine
                break
    assert served == ["c", "b", "busy"]


async def test_a_place_is_not_kept_for_who_has_stopped_asking(fleet, group):
    await group(1)
    a, b, c = await machines(fleet, "a", "b", "c", each=2)
    [item] = await a.work()
    assert await b.work() == []
    assert await c.work() == []
    gone = db.now() - 2 * budget.PATIENCE
    await AgentGroupWait.update(since=gone, asked_at=gone).where(AgentGroupWait.agent_id == "b")
    await a.report(item["id"], "Completed")
    assert await a.work() == []
    assert len(await c.work()) == 1
    # Who comes back is last in line again.
    assert await b.work() == []
    row = await AgentGroupWait.select().where(AgentGroupWait.agent_id == "b").first()
    assert db.now() - row["since"] < timedelta(minutes=1)


async def line(fleet, *ids):
    """Agents in line for the one place of the group, which the agent ``first`` has; and what that one does."""
    first, *found = await machines(fleet, "first", *ids)
    [item] = await first.work()
    for machine in found:
        assert await machine.work() == []
    return first, item, found


async def test_only_the_head_of_a_line_is_woken_and_whoever_has_an_order(fleet, group, monkeypatch):
    await group(1)
    ids = list("abcdefgh")
    await line(fleet, *ids)
    await fleet.certificate("order.example", targets=["tgt-h"])
    heard = []
    monkeypatch.setattr(bell, "hear", heard.append)
    await waiting._wake(ids)  # noqa: SLF001  # one look
    await asyncio.sleep(0.1)
    assert sorted(heard) == [f"agent:{id}" for id in "abcdeh"]


async def test_a_change_that_ends_wakes_the_line_of_its_own_group(fleet, group, runner):
    await group(1)
    first, item, [second] = await line(fleet, "second")
    await fleet.post("agent-groups", id="other", name="other", match_os="plan9", max_concurrent_deployments=1)
    past = db.now() - timedelta(seconds=20)
    others = [await fleet.machine(f"o{n}") for n in range(budget.WOKEN)]
    for each in others:
        await AgentGroupWait.insert(AgentGroupWait(group_id="other", agent_id=each.id, since=past, asked_at=db.now()))
    told = []
    bell.connect(runner.look, lambda *_: None, told.append)
    await first.report(item["id"], "Completed")
    assert [word for word in told if word.startswith("agent:")] == [f"agent:{second.id}"]


async def test_each_that_is_served_wakes_the_next_while_there_is_room(fleet, group):
    await group(1)
    *_, found = await line(fleet, *"abcdefgh")
    polls = [asyncio.create_task(machine.work(wait=20)) for machine in found]
    await asyncio.sleep(0.3)
    await fleet.people.put("/api/v1/agent-groups/edge", json={"max_concurrent_deployments": 9})
    bell.hear("agent:a")
    async with asyncio.timeout(4):
        assert [len(items) for items in await asyncio.gather(*polls)] == [1] * 8


async def test_who_has_stopped_asking_is_taken_out_of_the_line(fleet, group, leadership):
    await group(1)
    await line(fleet, "a", "b")
    await AgentGroupWait.update(asked_at=db.now() - 2 * budget.PATIENCE).where(AgentGroupWait.agent_id == "a")
    await health.watch(leadership)
    assert [row["agent_id"] for row in await AgentGroupWait.select()] == ["b"]


async def test_the_narrowest_of_several_groups_binds(fleet, group):
    await group(3)
    await fleet.post("agent-groups", id="one", name="one", max_concurrent_deployments=1)
    (a,) = await machines(fleet, "a", each=3)
    await fleet.people.put("/api/v1/agent-groups/one/members/a", json={"membership_type": "include"})
    assert len(await a.work()) == 1
    await fleet.people.put("/api/v1/agent-groups/one", json={"max_concurrent_deployments": 5})
    assert len(await a.work()) == 2


async def test_an_idle_poll_asks_nothing_about_groups(fleet, group, monkeypatch):
    await group(1)
    machine = await fleet.machine("a")
    await machine.beat(os="linux")
    asked, inner = [], db.fetch

    async def heard(sql, *args):
        asked.append(sql.sqlite)
        return await inner(sql, *args)

    monkeypatch.setattr(db, "fetch", heard)
    assert await machine.work() == []
    assert [text for text in asked if "agent_group" in text] == []
