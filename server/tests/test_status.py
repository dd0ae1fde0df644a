import asyncio
from datetime import timedelta

import pytest
from certctl_core.certificate import AGEING, NEXT, Status
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.certificates import status
from certctl_server.certificates.create import create
from certctl_server.certificates.renewal import flips
from certctl_server.certificates.status import Around, derived, settle
from certctl_server.certificates.tables import Certificate
from certctl_server.issuers.tables import Issuer
from certctl_server.leader import Leadership
from certctl_server.rules.tables import RenewalPolicy
from hypothesis import given
from hypothesis import strategies as st
from server_flow import wanted

NOW = db.now()
START = {
    "id": "mc", "status": "Pending", "decided": "Pending", "archived_at": None, "revoked_at": None, "version_id": None,
    "was_active": False, "not_before": None, "expires_at": None, "auto_renew": True, "renewal_window_days": 30,
    "issuer_enabled": True, "open_orders": 0, "alerted": "{}", "alert_thresholds_days": "[30, 7, 0]",
}  # fmt: skip
FAILED = {"completed_at": NOW, "version_id": None, "not_before": None, "not_after": None}
STATES = ["none", "pending", "deployed", "served", "mismatch", "failed"]


class Life:
    """Facts of one certificate, changed only as the API and the engine can change them."""

    def __init__(self):
        self.row, self.failed, self.mapped, self.lives = dict(START), [], [], []

    def order(self, force):
        if not self.row["archived_at"] and (force or not self.row["revoked_at"]) and not self.row["open_orders"]:
            self.row["open_orders"], self.failed = 2, []

    def order_ends(self, well):
        if self.row["open_orders"]:
            self.row["open_orders"] -= 1
            if well:
                life = {"not_before": NOW - timedelta(days=1), "expires_at": NOW + timedelta(days=89)}
                self.row |= {"version_id": "v", "revoked_at": None, **life}
                self.mapped = [{**target, "state": "pending", "failures": 0} for target in self.mapped]
            else:
                self.failed = [FAILED]

    def target(self, state, failures):
        target = {"state": state, "failures": failures, "version_id": None, "not_before": None, "not_after": None}
        self.mapped = [*self.mapped[1:], target] if failures else [*self.mapped[:1], target]

    def revoke(self):
        if self.row["version_id"] and not self.row["archived_at"]:
            self.row |= {"revoked_at": NOW, "open_orders": 0}

    def archive(self):
        self.row |= {"archived_at": NOW, "open_orders": 0}


EVENTS = st.one_of(
    st.tuples(st.just("order"), st.booleans()),
    st.tuples(st.just("order_ends"), st.booleans()),
    st.tuples(st.just("target"), st.sampled_from(STATES), st.integers(0, 4)),
    st.tuples(st.just("revoke")),
    st.tuples(st.just("archive")),
)


@given(st.lists(EVENTS, max_size=25), st.booleans())
def test_no_course_of_events_asks_for_a_move_that_is_not_legal(events, imported):
    life = Life()
    if imported:
        life.row |= {"decided": "Active", "status": "Active", "was_active": True}
    for name, *args in events:
        getattr(life, name)(*args)
        before = Status(life.row["decided"])
        settled = derived(life.row, Around(life.failed, life.mapped, life.lives), NOW)
        after = settled["decided"]
        assert after is before or after in NEXT[before] or {before, after} <= AGEING
        if life.row["open_orders"] or life.row["archived_at"] or life.row["revoked_at"]:
            assert settled["renew_due_at"] is None
        assert (settled["alert_due_at"] is None) == bool(
            life.row["archived_at"] or life.row["revoked_at"] or not life.row["expires_at"]
        )
        if after is Status.ACTIVE:
            assert not {target["state"] for target in life.mapped} & {"pending", "mismatch", "failed"}
        life.row |= {name: settled[name] for name in ("status", "decided", "was_active")}


async def lives(fleet, before, after, **more):
    """A certificate made elsewhere that lived so long and has so long to live."""
    id = await fleet.certificate("a.example", status="Active", **more)
    now = db.now()
    await Certificate.update(not_before=now - before, expires_at=now + after).where(Certificate.id == id)
    await settle([id])
    return id, now


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("before", "after", "shown", "next_"),
    [
        (59 * DAY, 31 * DAY, "Active", 1 * DAY),
        (61 * DAY, 29 * DAY, "Expiring", 29 * DAY),
        (200 * DAY, 29 * DAY, "Expiring", 29 * DAY),
        (timedelta(minutes=6), timedelta(minutes=4), "Active", timedelta(seconds=40)),
        (timedelta(minutes=8), timedelta(minutes=2), "Expiring", timedelta(minutes=2)),
        (90 * DAY, -timedelta(seconds=1), "Expired", None),
    ],
    ids=["90 d, 31 left", "90 d, 29 left", "229 d, 29 left", "10 min, 4 left", "10 min, 2 left", "over"],
)
async def test_the_clock_ages_what_is_active(fleet, before, after, shown, next_):
    id, now = await lives(fleet, before, after)
    row = await Certificate.select().where(Certificate.id == id).first()
    assert (await fleet.status(id))[0] == shown
    if next_ is None:
        assert row["flip_at"] is None
    else:
        assert abs(row["flip_at"] - now - next_) < timedelta(seconds=2)


async def test_flips_follow_the_clock_are_audited_and_say_when_the_next_is(fleet):
    leadership = Leadership("test", timedelta(seconds=30), alone=True)
    await leadership.campaign()
    id, now = await lives(fleet, 50 * DAY, timedelta(seconds=1))
    other, _ = await lives(fleet, 10 * DAY, 80 * DAY)
    assert (await fleet.status(id))[0] == "Expiring"
    await asyncio.sleep(1.1)
    due = await flips(leadership)
    assert ((await fleet.status(id))[0], (await fleet.status(other))[0]) == ("Expired", "Active")
    assert abs(due - now - 50 * DAY) < timedelta(seconds=2)
    found = await fleet.get(f"audit?resource_id={id}&action=certificate_status_changed")
    assert found["data"][0]["details"] == {"from": "Expiring", "to": "Expired"}
    assert (await fleet.get("certificates?status=expired"))["total"] == 1


@pytest.mark.parametrize(("life", "told"), [(timedelta(minutes=59), 1), (timedelta(minutes=61), 0)])
async def test_the_end_of_a_short_life_is_an_event_of_its_own(fleet, leadership, life, told):
    id, _ = await lives(fleet, life - timedelta(seconds=1), timedelta(seconds=1))
    await asyncio.sleep(1.1)
    await flips(leadership)
    assert (await fleet.get(f"audit?resource_id={id}&action=certificate_status_changed"))["total"] >= 1
    assert (await fleet.get(f"audit?resource_id={id}&action=short_lived_cert_expired"))["total"] == told


@pytest.mark.parametrize("table", [Issuer, RenewalPolicy], ids=["issuer", "policy"])
async def test_due_moments_follow_the_rows_they_hang_on(fleet, table):
    times = {"created_at": db.now(), "updated_at": db.now()}
    await Issuer.insert(Issuer(id="iss-2", name="other", type="GenericCA", status="ready", **times))
    id, _ = await lives(fleet, 10 * DAY, 80 * DAY, issuer_id="iss-2")
    due = await Certificate.select(Certificate.renew_due_at).where(Certificate.id == id).first()
    assert due["renew_due_at"] is not None
    if table is Issuer:
        await fleet.people.put("/api/v1/issuers/iss-2", json={"enabled": False})
    else:
        await fleet.people.put("/api/v1/renewal-policies/rp-default", json={"auto_renew": False})
    row = await Certificate.select(Certificate.renew_due_at).where(Certificate.id == id).first()
    assert row["renew_due_at"] is None


async def test_orders_that_end_at_once_leave_no_status_behind(fleet):
    machines = [await fleet.machine(f"ag-{n}") for n in range(4)]
    targets = [await fleet.target(f"tgt-{n}", machine) for n, machine in enumerate(machines)]
    id = await fleet.certificate("a.example", targets=targets)
    await asyncio.gather(*(machine.answer_orders() for machine in machines))
    await asyncio.gather(*(machine.deploy_all() for machine in machines))
    assert await fleet.status(id) == ("Active", "served")


JOBS = db.Sql(
    """
    INSERT INTO job (id, type, certificate_id, lane, status, scheduled_at, created_at)
    SELECT 'job-' || n, 'Renewal', $1, '', 'Completed', {now}, {now} FROM generate_series(1, 2000) n
    """
)


async def test_open_jobs_that_statistics_know_nothing_of_are_not_walked_through_for_each_certificate(grounds):
    if db.dialect() == "sqlite":
        pytest.skip("SQLite plans by statistics that ship with certctl")
    id, _ = await create(wanted("a.example"), SYSTEM)
    await db.fetch(JOBS, id)
    await db.fetch(db.Sql("ANALYZE job"))
    plan = str(await db.fetch(db.Sql("EXPLAIN " + status.FACTS.text("postgres")), '["mc"]'))
    assert "job_place" not in plan
