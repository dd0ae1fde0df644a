import asyncio
from datetime import timedelta

import pytest
from certctl_server import db
from certctl_server.engine import LEADS
from certctl_server.leader import Leadership, NotLeading, Stillness

LEASE = timedelta(milliseconds=300)
OVER = db.Sql("UPDATE lease SET lease_until = {after:-7200}")
AHEAD = db.Sql("UPDATE lease SET lease_until = {after:7200}")
ROW = db.Sql("SELECT owner, epoch FROM lease")
WRITE = db.Sql("INSERT INTO setting (name, value) VALUES ($1, '')")
WRITTEN = db.Sql("SELECT name FROM setting ORDER BY name")


def member(name, *, alone=False):
    return Leadership(name, LEASE, alone=alone)


async def test_one_of_many_that_campaign_at_once_leads(database):
    members = [member(str(n)) for n in range(5)]
    won = await asyncio.gather(*(each.campaign() for each in members))
    assert sum(won) == 1
    assert [each.epoch for each in members if each.epoch] == [1]
    again = await asyncio.gather(*(each.campaign() for each in members))
    assert again == won


async def test_a_clock_that_jumps_takes_nothing_from_a_leader_that_beats(database):
    one, two = member("one"), member("two")
    assert await one.campaign()
    for _ in range(4):
        await db.fetch(OVER)
        assert not await two.campaign()
        assert await one.campaign()
        await asyncio.sleep(LEASE.total_seconds() / 3)


async def test_a_lease_that_is_over_and_stood_still_is_taken_and_the_paused_leader_writes_nothing(database):
    one, two = member("one"), member("two")
    await one.campaign()
    await db.fetch(OVER)
    assert not await two.campaign()
    await asyncio.sleep(LEASE.total_seconds())
    assert await two.campaign()
    assert (two.epoch, await db.fetch(ROW)) == (2, [{"owner": "two", "epoch": 2}])
    with pytest.raises(NotLeading):
        async with one.leading():
            await db.fetch(WRITE, "one")
    async with two.leading():
        await db.fetch(WRITE, "two")
    assert await db.fetch(WRITTEN) == [{"name": "two"}]
    assert not await one.campaign()
    assert one.epoch is None


async def test_a_lease_that_stood_still_is_not_taken_before_it_is_over(database):
    one, two = (Leadership(str(s), timedelta(seconds=s), alone=False) for s in (1.9, 1))
    await one.campaign()
    await two.campaign()
    await asyncio.sleep(1.1)
    assert not await two.campaign()


async def test_who_resigns_is_followed_at_once(database):
    one, two = member("one"), member("two")
    await one.campaign()
    await one.resign()
    with pytest.raises(NotLeading):
        async with one.leading():
            pass
    assert await two.campaign()


async def test_the_only_process_there_is_waits_for_nobody(database):
    await member("dead").campaign()
    one = member("one", alone=True)
    assert await one.campaign()
    assert one.epoch == 2


async def test_what_a_leader_did_is_undone_with_its_transaction(database):
    one = member("one")
    await one.campaign()

    async def fails():
        async with one.leading():
            await db.fetch(WRITE, "one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    assert await db.fetch(WRITTEN) == []


def test_stillness_counts_from_the_last_change_that_was_seen():
    still = Stillness()
    assert still.of("a", 1) == timedelta()
    assert still.of("a", 1) > timedelta()
    assert still.of("a", 2) == timedelta()
    still.of("b", 1)
    still.keep_only({"b"})
    assert still.of("a", 2) == timedelta()
    assert still.of("b", 1) > timedelta()


async def test_a_lease_from_before_a_clock_was_set_back_holds_nobody_up(database):
    one, two = member("one"), member("two")
    await one.campaign()
    await db.fetch(AHEAD)
    assert not await two.campaign()
    await asyncio.sleep(LEASE.total_seconds())
    assert await two.campaign()
    assert not await one.campaign()


async def test_leadership_moves_within_fifteen_seconds_of_a_death(database):
    one, two = (Leadership(name, LEADS, alone=False) for name in ("one", "two"))
    assert await one.campaign()
    died = asyncio.get_running_loop().time()
    while not await two.campaign():
        await asyncio.sleep(LEADS.total_seconds() / 3)
    assert asyncio.get_running_loop().time() - died < 15
