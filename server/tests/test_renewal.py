from datetime import timedelta

import pytest
from certctl_core.job import JobState
from certctl_core.renewal import LEAST_SPREAD_LEFT, SPREAD, spread_of
from certctl_server import db
from certctl_server.certificates.renewal import scan
from certctl_server.certificates.status import settle
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership, NotLeading
from certctl_server.rules.tables import RenewalPolicy

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


async def aged(id, life, left):
    """Let a certificate have so much of such a life left."""
    end = db.now() + left
    await Certificate.update(not_before=end - life, expires_at=end).where(Certificate.id == id)
    versions = CertificateVersion.update(not_before=end - life, not_after=end)
    await versions.where(CertificateVersion.certificate_id == id)
    await settle([id])


async def elsewhere(fleet, name="a.example", **more):
    return await fleet.certificate(name, status="Active", **more)


@pytest.mark.parametrize(
    ("life", "window", "share"),
    [
        (200 * DAY, 30, 30 * DAY),
        (47 * DAY, 30, 47 * DAY / 3),
        (90 * DAY, 7, 7 * DAY),
        (9 * DAY, 30, 4.5 * DAY),
        (DAY, 30, DAY / 2),
        (10 * MINUTE, 30, 5 * MINUTE),
        (10 * MINUTE, 0, timedelta()),
    ],
    ids=str,
)
@pytest.mark.parametrize("due", [True, False], ids=["due", "not yet"])
async def test_a_renewal_is_ordered_when_its_moment_has_come(fleet, leadership, life, window, share, due):
    await RenewalPolicy.update(renewal_window_days=window).where(RenewalPolicy.id == "rp-default")
    id = await elsewhere(fleet)
    left = share if share < LEAST_SPREAD_LEFT else share * (1 + SPREAD * spread_of(id))
    await aged(id, life, left - timedelta(seconds=6) if due else left + MINUTE)
    following = await scan(leadership)
    jobs = await fleet.jobs(id)
    assert [job["type"] for job in jobs] == (["Renewal"] if due else [])
    assert (await fleet.status(id))[0] == "RenewalInProgress" or not due
    if due:
        assert following is None
    else:
        assert abs(following - db.now() - MINUTE) < timedelta(seconds=10)
    await scan(leadership)
    assert len(await fleet.jobs(id)) == len(jobs)


async def barred_by(fleet, id, why):
    if why == "auto_renew":
        await RenewalPolicy.update(auto_renew=False).where(RenewalPolicy.id == "rp-default")
    elif why == "issuer":
        await Issuer.update(enabled=False).where(Issuer.id == "iss-local")
    elif why == "archived":
        await fleet.people.delete(f"/api/v1/certificates/{id}")
    else:
        await fleet.post(f"certificates/{id}/renew")
        retry = {"next_retry_at": db.now() + DAY} if why == "Failed" else {}
        await Job.update({"status": why, **retry}).where(Job.certificate_id == id)
    await settle([id])


OPEN = [*map(str, (JobState.PENDING, JobState.AWAITING_CSR, JobState.AWAITING_APPROVAL, JobState.RUNNING)), "Failed"]


@pytest.mark.parametrize("why", ["auto_renew", "issuer", "archived", *OPEN])
async def test_what_must_not_be_renewed_by_itself_is_not(fleet, leadership, why):
    id = await elsewhere(fleet)
    await aged(id, 90 * DAY, -DAY)
    await barred_by(fleet, id, why)
    count = len(await fleet.jobs(id))
    assert await scan(leadership) is None
    assert len(await fleet.jobs(id)) == count


async def test_a_revoked_certificate_is_not_renewed_by_itself(fleet, leadership):
    id = await fleet.served(await fleet.machine("ag-1"))
    await aged(id, 90 * DAY, DAY)
    await fleet.post(f"certificates/{id}/revoke")
    assert await scan(leadership) is None
    assert len(await fleet.jobs(id, type="Renewal")) == 0


async def test_what_has_expired_is_renewed_at_once(fleet, leadership):
    id = await elsewhere(fleet)
    await aged(id, 90 * DAY, -100 * DAY)
    assert (await fleet.status(id))[0] == "Expired"
    await scan(leadership)
    assert (await fleet.status(id))[0] == "RenewalInProgress"


@pytest.mark.parametrize("hours", [23, 25])
async def test_a_day_after_an_order_failed_for_good_a_fresh_one_follows(fleet, leadership, hours):
    machine = await fleet.machine("ag-1")
    id = await fleet.certificate("a.example", targets=[await fleet.target("tgt", machine)])
    [item] = await machine.work()
    await machine.report(item["id"], "Failed", error="no", error_kind="rejected")
    ended = db.now() - timedelta(hours=hours)
    await Job.update(completed_at=ended, created_at=ended).where(Job.id == item["id"])
    await settle([id])
    await scan(leadership)
    assert [job["type"] for job in await fleet.jobs(id)][1:] == (["Issuance"] if hours > 24 else [])


async def test_only_the_agent_whose_renewal_failed_is_asked_again(fleet, leadership):
    one, two = await fleet.machine("ag-1"), await fleet.machine("ag-2")
    id = await fleet.served(one, two)
    await aged(id, 90 * DAY, 10 * DAY)
    await scan(leadership)
    await one.answer_orders()
    await one.deploy_all()
    [item] = await two.work()
    await two.report(item["id"], "Failed", error="no", error_kind="rejected")
    assert (await fleet.status(id))[0] == "Failed"
    await Job.update(completed_at=db.now() - timedelta(hours=25)).where(Job.id == item["id"])
    await settle([id])
    await scan(leadership)
    assert {job["agent_id"] for job in await fleet.jobs(id, status="AwaitingCSR")} == {"ag-2"}
    await two.answer_orders()
    await two.deploy_all()
    assert await fleet.status(id) == ("Active", "served")


async def test_who_does_not_lead_orders_nothing(fleet, database):
    id = await elsewhere(fleet)
    await aged(id, 90 * DAY, DAY)
    with pytest.raises(NotLeading):
        await scan(Leadership("idle", timedelta(seconds=30), alone=False))
    assert await fleet.jobs(id) == []


async def test_many_due_certificates_are_ordered_in_one_scan(fleet, leadership):
    ids = [await elsewhere(fleet, f"n{n}.example") for n in range(12)]
    for id in ids:
        await aged(id, 90 * DAY, DAY)
    await scan(leadership)
    assert sorted(row["certificate_id"] for row in await Job.select(Job.certificate_id)) == sorted(ids)
