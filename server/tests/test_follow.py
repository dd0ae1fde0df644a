import contextlib
import runpy
from datetime import timedelta
from pathlib import Path

import pytest
from certctl_server import db
from certctl_server.certificates import follow
from certctl_server.certificates.renewal import scan
from certctl_server.certificates.tables import Certificate, FollowUp
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership

INVENTORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "inventory.py"))
STOCK = 30
ISSUER, POLICY = "/api/v1/issuers/iss-plenty", "/api/v1/renewal-policies/rp-plenty"


@pytest.fixture
async def stock(client, monkeypatch):
    """30 certificates of one issuer and one policy, of which 7 follow at once."""
    monkeypatch.setattr(follow, "SET", 7)
    monkeypatch.setattr(follow, "PAGE", 14)
    for statement in INVENTORY["statements"](STOCK):
        await db.fetch(statement)


@pytest.fixture
def put(client):
    async def put(path, **body):
        answer = await client.put(path, json=body)
        assert answer.status_code == 200, answer.text

    return put


async def due():
    return await Certificate.count().where(Certificate.renew_due_at.is_not_null())


@pytest.mark.parametrize(
    ("path", "no", "yes"),
    [(ISSUER, {"enabled": False}, {"enabled": True}), (POLICY, {"auto_renew": False}, {"auto_renew": True})],
    ids=["issuer", "policy"],
)
async def test_all_follow_a_change_however_many_they_are(stock, put, leadership, path, no, yes):
    await put(path, **no)
    assert (await due(), await FollowUp.count()) == (STOCK - 7, 1)
    await follow.look(leadership)
    assert (await due(), await FollowUp.count()) == (0, 0)
    await put(path, **yes)
    await follow.look(leadership)
    assert (await due(), await FollowUp.count()) == (STOCK, 0)


async def test_few_follow_at_once(stock, put, monkeypatch):
    monkeypatch.setattr(follow, "SET", STOCK)
    await put(ISSUER, enabled=False)
    assert (await due(), await FollowUp.count()) == (0, 0)


async def test_another_leader_goes_on_after_a_crash(stock, put, leadership):
    await put(ISSUER, enabled=False)
    crashing = Crashing(leadership, sets=2)
    with pytest.raises(RuntimeError, match="crash"):
        await follow.look(crashing)
    assert (await due(), await FollowUp.count()) == (STOCK - 21, 1)
    next_one = Leadership("next", timedelta(seconds=30), alone=True)
    await next_one.campaign()
    await follow.look(next_one)
    assert (await due(), await FollowUp.count()) == (0, 0)


class Crashing:
    """Leads for so many sets, then the process dies within the next one."""

    def __init__(self, leadership, sets):
        self._leadership, self._left = leadership, sets

    @contextlib.asynccontextmanager
    async def leading(self):
        async with self._leadership.leading():
            yield
            self._left -= 1
            if self._left < 0:
                raise RuntimeError("crash")


class Overtaken:
    """Before the second set, somebody makes another change."""

    def __init__(self, leadership, change):
        self._leadership, self._change, self._sets = leadership, change, 0

    @contextlib.asynccontextmanager
    async def leading(self):
        self._sets += 1
        if self._sets == 2:
            await self._change()
        async with self._leadership.leading():
            yield


async def test_a_change_in_the_middle_begins_anew(stock, put, leadership):
    await put(ISSUER, enabled=False)
    await follow.look(Overtaken(leadership, lambda: put(ISSUER, enabled=True)))
    assert (await due(), await FollowUp.count()) == (STOCK, 0)


@pytest.mark.parametrize(("path", "no"), [(ISSUER, {"enabled": False}), (POLICY, {"auto_renew": False})])
async def test_nothing_is_ordered_of_those_that_have_not_followed_yet(stock, put, leadership, path, no):
    await put(path, **no)
    late = Certificate.renew_due_at.is_not_null()
    await Certificate.update(renew_due_at=db.now() - timedelta(minutes=1)).where(late)
    await scan(leadership)
    assert (await Job.count().where(Job.place.is_not_null()), await due()) == (0, 0)
