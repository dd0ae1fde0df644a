"""The figures of dashboards are exact over every row."""

from collections import Counter
from datetime import UTC, date, datetime, time, timedelta

import pytest
from certctl_core.certificate import Status
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.audit.record import SYSTEM
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates.tables import Certificate, CertificateVersion
from certctl_server.jobs.create import NewJob, create
from certctl_server.jobs.tables import Job
from certctl_server.stats.series import Days, coming, past

STATS = "/api/v1/stats"
DAY = timedelta(days=1)
FIGURES = (
    *("total_certificates", "expiring_certificates", "expired_certificates", "revoked_certificates"),
    *("active_agents", "offline_agents", "total_agents", "pending_jobs", "failed_jobs", "complete_jobs"),
)
SERIES = {
    "expiration-timeline": {"date", "count"},
    "job-trends": {"date", "completed_count", "failed_count", "success_rate"},
    "issuance-rate": {"date", "issued_count"},
}


async def certificate(id, status=Status.ACTIVE, **more):
    times = {"created_at": db.now(), "updated_at": db.now()}
    refers = {"owner_id": "o", "team_id": "t", "issuer_id": "iss-local", "renewal_policy_id": "rp-default"}
    await Certificate.insert(Certificate(id=id, name=id, status=status, decided=status, **refers, **times, **more))


async def version(number, created_at):
    facts = {"certificate_id": "mc-1", "version": number, "issuer_id": "iss-local", "serial_number": f"{number:02}"}
    facts |= {"fingerprint_sha256": f"{number:064}", "not_before": created_at, "not_after": created_at + DAY}
    await CertificateVersion.insert(CertificateVersion(id=f"v-{number}", created_at=created_at, **facts))


async def job(number, type_=JobType.RENEWAL, status=JobState.PENDING, completed_at=None):
    [made] = await create([NewJob(type=type_, place=str(number), lane="x")], SYSTEM)
    await Job.update(status=status, completed_at=completed_at).where(Job.id == made.id)


def moments(day):
    """The first, the last and some other moment of a day."""
    start = datetime.combine(day, time(), UTC)
    return [start, start + timedelta(hours=13, microseconds=7), start + DAY - timedelta(microseconds=1000)]


async def ask(client, path, **query):
    answer = await client.get(f"{STATS}/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_summary_has_every_figure_twice(client, grounds):
    for number, status in enumerate([*Status, Status.EXPIRING, Status.REVOKED]):
        await certificate(f"mc-{number}", status)
    times = {"created_at": db.now(), "updated_at": db.now(), "registered_at": db.now()}
    for id, status in {"a": "Online", "b": "Degraded", "c": "Offline", "server-scanner": "Online"}.items():
        await Agent.insert(Agent(id=id, name=id, status=status, **times))
    await Agent.insert(Agent(id="gone", name="gone", status="Offline", retired_at=db.now(), **times))
    for number, state in enumerate(JobState):
        await job(number, status=state)
        await job(f"internal {number}", JobType.CRL_BUILD, state)
    found = await ask(client, "summary")
    at, copy = found.pop("completed_at"), found.pop("data")
    assert found == dict(zip(FIGURES, (10, 2, 1, 2, 2, 1, 3, 4, 1, 1), strict=True))
    assert copy == found | {"completed_at": at}
    assert abs(datetime.fromisoformat(at) - db.now()) < timedelta(seconds=30)


async def test_certificates_are_counted_in_the_order_of_their_states(client, grounds):
    for number, status in enumerate([Status.FAILED, Status.ARCHIVED, Status.FAILED]):
        await certificate(f"mc-{number}", status)
    found = await ask(client, "certificates-by-status")
    assert [row["status"] for row in found] == [str(status) for status in Status]
    assert {row["status"]: row["count"] for row in found if row["count"]} == {"Failed": 2, "Archived": 1}
    assert sum(row["count"] for row in found) == (await ask(client, "summary"))["total_certificates"]


async def test_a_change_is_seen_at_once(client, grounds):
    for number in range(3):
        await certificate(f"mc-{number}")
        assert (await ask(client, "summary"))["total_certificates"] == number + 1
    assert (await client.get("/api/v1/certificates?per_page=1")).json()["total"] == 3


async def test_certificates_end_on_the_day_that_is_theirs(client, grounds):
    today = db.now().date()
    days = [today + number * DAY for number in (-1, 0, 0, 1, 6, 7, 29, 30)]
    ends = [moment for day in days for moment in moments(day)]
    for number, end in enumerate(ends):
        await certificate(f"mc-{number}", list(Status)[number % 8], expires_at=end)
    await certificate("mc-none", Status.PENDING)
    found = await ask(client, "expiration-timeline")
    assert [row["date"] for row in found] == [(today + number * DAY).isoformat() for number in range(30)]
    expected = Counter(end.date().isoformat() for end in ends)
    assert [row["count"] for row in found] == [expected[row["date"]] for row in found]
    weeks = await ask(client, "expiration-timeline", bucket="week", days=31)
    assert [(row["date"], row["count"]) for row in weeks] == [
        ((today + start * DAY).isoformat(), count) for start, count in ((0, 12), (7, 3), (14, 0), (21, 0), (28, 6))
    ]


async def test_versions_are_issued_on_the_day_they_were_stored(client, grounds):
    await certificate("mc-1")
    today = db.now().date()
    stored = [moment for back in (0, 1, 29, 30, 364, 365) for moment in moments(today - back * DAY)]
    for number, moment in enumerate(stored):
        await version(number, moment)
    expected = Counter(moment.date().isoformat() for moment in stored)
    for days in (30, 365):
        found = await ask(client, "issuance-rate", days=days)
        assert (len(found), found[-1]["date"]) == (days, today.isoformat())
        assert [row["issued_count"] for row in found] == [expected[row["date"]] for row in found]
    weeks = await ask(client, "issuance-rate", bucket="WEEK")
    assert [row["issued_count"] for row in weeks] == [3, 0, 0, 0, 6]
    assert weeks[1]["date"] == (today - 27 * DAY).isoformat()


async def test_jobs_ended_well_or_not_on_the_day_they_ended(client, grounds):
    today = db.now().date()
    ends = [(JobState.COMPLETED, 0), (JobState.COMPLETED, 0), (JobState.FAILED, 0), (JobState.FAILED, 2)]
    ends += [(JobState.COMPLETED, 29), (JobState.COMPLETED, 30), (JobState.CANCELLED, 0)]
    for number, (state, back) in enumerate(ends):
        await job(number, status=state, completed_at=moments(today - back * DAY)[number % 3])
        await job(f"internal {number}", JobType.NOTIFICATION, state, moments(today - back * DAY)[0])
    found = {row["date"]: row for row in await ask(client, "job-trends")}
    assert len(found) == 30
    told = {
        (today - date.fromisoformat(row["date"])).days: (
            row["completed_count"],
            row["failed_count"],
            row["success_rate"],
        )
        for row in found.values()
        if row["completed_count"] or row["failed_count"]
    }
    assert told == {0: (2, 1, 66.67), 2: (0, 1, 0.0), 29: (1, 0, 100.0)}


@pytest.mark.parametrize("path", SERIES)
async def test_a_series_of_nothing_has_every_day(client, path):
    for days in (1, 30, 365):
        found = await ask(client, path, days=days)
        assert len(found) == days
        assert {frozenset(row) for row in found} == {frozenset(SERIES[path])}
        assert {value for row in found for name, value in row.items() if name != "date"} == {0}


@pytest.mark.parametrize("path", SERIES)
@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("days=0", {"days"}),
        ("days=366", {"days"}),
        ("days=-1", {"days"}),
        ("days=1.5", {"days"}),
        ("days=ten&bucket=month", {"days", "bucket"}),
        ("days=30&hours=3", {"hours"}),
        ("days=30&days=31", {"days"}),
    ],
)
async def test_what_cannot_be_asked_is_named(client, path, query, faults):
    answer = await client.get(f"{STATS}/{path}?{query}")
    assert answer.status_code == 400
    assert {each["field"] for each in answer.json()["details"]} == faults


@pytest.mark.parametrize("path", ["summary", "certificates-by-status", *SERIES])
async def test_viewers_may_read_and_agents_may_not(connect, client, fleet, path):
    _, key = await create_key("vera", Role.VIEWER)
    machine = await fleet.machine("one")
    async with connect(key) as viewer:
        assert (await viewer.get(f"{STATS}/{path}")).status_code == 200
    assert (await machine.http.get(f"{STATS}/{path}")).status_code == 403
    async with connect() as nobody:
        assert (await nobody.get(f"{STATS}/{path}")).status_code == 401


@pytest.mark.parametrize(
    ("days", "lengths"),
    [
        (coming(9), [1] * 9),
        (coming(15, weekly=True), [7, 7, 1]),
        (past(15, weekly=True), [1, 7, 7]),
        (past(14, weekly=True), [7, 7]),
        (Days(date(2024, 2, 28), 3, short_first=True), [1, 1, 1]),
    ],
)
def test_weeks_leave_no_day_out(days, lengths):
    parts = list(days.parts())
    assert [len(part) for part in parts] == lengths
    assert [day for part in parts for day in part] == [days.first + number * DAY for number in range(days.count)]
