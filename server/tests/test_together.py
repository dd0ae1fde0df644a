import asyncio
import json
from contextlib import contextmanager

import pytest
from certctl_server import db
from certctl_server.agents import waiting
from certctl_server.certificates import renewal
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.db import session
from certctl_server.jobs import bell
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership


class Asked:
    """Remembers the sets it was asked."""

    def __init__(self, *bad):
        self.sets, self._bad = [], bad

    async def __call__(self, questions):
        self.sets.append(questions)
        await asyncio.sleep(0.01)
        if set(self._bad) & set(questions):
            raise ValueError(f"refused {self._bad}")
        return [LookupError(each) if each < 0 else each * 10 for each in questions]


async def test_what_is_asked_at_the_same_time_is_one_set_and_each_gets_its_own_answer(database):
    asked = Asked()
    together = db.Together(asked)
    assert await asyncio.gather(*map(together, range(5))) == [0, 10, 20, 30, 40]
    assert asked.sets == [[0, 1, 2, 3, 4]]


async def test_what_is_asked_meanwhile_becomes_the_next_set(database):
    asked = Asked()
    together = db.Together(asked)
    first = asyncio.create_task(together(1))
    while not asked.sets:
        await asyncio.sleep(0)
    assert await asyncio.gather(first, together(2), together(3)) == [10, 20, 30]
    assert asked.sets == [[1], [2, 3]]


async def test_an_answer_that_is_an_error_is_raised_where_it_was_asked_for(database):
    together = db.Together(Asked())
    found = await asyncio.gather(together(1), together(-2), return_exceptions=True)
    assert found[0] == 10
    assert isinstance(found[1], LookupError)


async def test_a_statement_that_many_ask_at_the_same_time_runs_once_and_none_sees_less_than_was_there(
    database, monkeypatch
):
    ran = []
    run = session.engine().run

    async def slow(text, args):
        ran.append(args)
        found = await run(text, args)
        await asyncio.sleep(0.01)
        return found

    monkeypatch.setattr(session.engine(), "run", slow)
    count = db.once(db.Sql("SELECT count(*) AS n, CAST($1 AS TEXT) AS word FROM setting"))
    asked = [asyncio.create_task(count((word,))) for word in ("a", "b", "a")]
    while not ran:
        await asyncio.sleep(0)
    await db.fetch(db.Sql("INSERT INTO setting (name, value) VALUES ('one', 'more')"))
    [late] = await count(("a",))
    [[first], [other], [again]] = await asyncio.gather(*asked)
    assert first == again
    assert (first["word"], other["word"], late["word"]) == ("a", "b", "a")
    assert late["n"] == first["n"] + 1
    assert sorted(args for args in ran if args) == [("a",), ("a",), ("b",)]


async def test_the_fault_of_one_is_not_the_others(database):
    asked = Asked(2)
    found = await asyncio.gather(*map(db.Together(asked, apart=True), (1, 2, 3)), return_exceptions=True)
    assert [found[0], found[2]] == [10, 30]
    assert isinstance(found[1], ValueError)
    assert asked.sets == [[1, 2, 3], [1], [2], [3]]


async def test_without_that_a_set_fails_as_a_whole(database):
    found = await asyncio.gather(*map(db.Together(Asked(2)), (1, 2)), return_exceptions=True)
    assert [type(each) for each in found] == [ValueError, ValueError]


async def test_inside_a_transaction_a_question_goes_alone_and_sees_what_was_written(database):
    async def values(names):
        rows = await db.fetch(db.Sql("SELECT name, value FROM setting WHERE name IN ({ids:$1})"), json.dumps(names))
        found = {row["name"]: row["value"] for row in rows}
        return [found.get(name) for name in names]

    together = db.Together(values)
    async with db.transaction():
        await db.fetch(db.Sql("INSERT INTO setting (name, value) VALUES ('a', 'inside')"))
        assert await together("a") == "inside"


async def test_whoever_gives_up_does_not_hold_up_the_others(database):
    together = db.Together(Asked())
    given_up, other = asyncio.create_task(together(1)), asyncio.create_task(together(2))
    await asyncio.sleep(0.005)
    given_up.cancel()
    assert await other == 20


def test_a_loop_that_was_closed_leaves_nothing_behind():
    together = db.Together(Asked())

    async def left():
        asyncio.create_task(together(1))  # noqa: RUF006  # nobody waits for it
        await asyncio.sleep(0.005)

    asyncio.run(left())

    async def asked():
        async with asyncio.timeout(5):
            return await together(2)

    assert asyncio.run(asked()) == 20


@contextmanager
def counted():
    """The statements of our own that run meanwhile."""
    current, said = session.engine(), []
    run = current.run

    async def listening(text, args):
        said.append(text)
        return await run(text, args)

    current.run = listening
    try:
        yield said
    finally:
        del current.run


async def test_many_idle_polls_at_once_are_two_statements(fleet):
    machines = [await fleet.machine(f"ag-{n}") for n in range(5)]
    for machine in machines:
        assert await machine.work() == []  # the first use of a key is noted
    with counted() as said:
        assert await asyncio.gather(*(machine.work() for machine in machines)) == [[]] * 5
    of_polls = [text for text in said if "api_key" in text or "agent a" in text]
    assert len(of_polls) <= 4  # as many as there are turns of the loop until the last of them asks


async def test_a_waiting_poll_finds_work_that_no_bell_told_of(fleet, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK", waiting.LOOK / 10)
    machine = await fleet.machine("ag-1")
    target = await fleet.target("tgt", machine)
    monkeypatch.setattr(bell, "ring_agent", lambda _: None)
    poll = asyncio.create_task(machine.work(wait=20))
    while not bell.waiting():
        await asyncio.sleep(0.01)
    await fleet.certificate("a.example", targets=[target])
    async with asyncio.timeout(5):
        [item] = await poll
    assert item["common_name"] == "a.example"


async def test_a_scan_takes_as_many_statements_for_many_as_for_few(fleet):
    machine = await fleet.machine("ag-1")
    target = await fleet.target("tgt", machine)
    leadership = Leadership("test", waiting.LOOK * 10, alone=True)
    await leadership.campaign()
    counts = []
    for names in (("a.example",), tuple(f"b{n}.example" for n in range(12))):
        ids = [await fleet.certificate(name, targets=[target]) for name in names]
        await machine.answer_orders()
        await machine.deploy_all()
        await Certificate.update({Certificate.renew_due_at: db.now()}).where(Certificate.id.is_in(ids))
        with counted() as said:
            await renewal.scan(leadership)
        made = await Job.count().where(Job.certificate_id.is_in(ids), Job.type == "Renewal")
        assert made == len(ids)
        counts.append(len(said))
    assert counts[0] == counts[1] <= 20


@pytest.mark.parametrize("runs", [12])
async def test_orders_that_end_at_once_are_each_stored_whole(fleet, runs):
    machine = await fleet.machine("ag-1")
    target = await fleet.target("tgt", machine)
    ids = [await fleet.certificate(f"h{n}.example", targets=[target]) for n in range(runs)]
    items = await machine.work()
    assert len(items) == runs
    answers = await asyncio.gather(*(machine.csr(item["certificate_id"], *item["sans"]) for item in items))
    assert {answer.status_code for answer in answers} == {202}
    versions = await CertificateVersion.select().where(CertificateVersion.certificate_id.is_in(ids))
    assert sorted(row["certificate_id"] for row in versions) == sorted(ids)
    assert {row["version"] for row in versions} == {1}
    for id in ids:
        [order, deployment] = await fleet.jobs(id)
        assert (order["status"], deployment["type"]) == ("Completed", "Deployment")
        assert order["version_id"] == deployment["version_id"]
        assert json.loads(order["result"]) == {"version_id": order["version_id"]}
    told = await db.fetch(db.Sql("SELECT count(*) AS n FROM audit_event WHERE action = 'certificate_issued'"))
    assert told[0]["n"] == runs
