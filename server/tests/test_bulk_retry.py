import json

import pytest
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.audit.record import SYSTEM
from certctl_server.audit.tables import AuditEvent
from certctl_server.certificates.tables import Certificate
from certctl_server.jobs.create import NewJob, create, notification_place, revocation_place
from certctl_server.jobs.priorities import FREE
from certctl_server.jobs.tables import Job, Lane

PATH = "jobs/bulk-retry"


def totals(matched, retried, skipped, failed):
    return {
        "total_matched": matched,
        "total_retried": retried,
        "total_skipped": skipped,
        "total_failed": failed,
    }


async def asked(fleet, **body):
    answer = await fleet.post(PATH, **body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return {name: found[name] for name in found if name != "errors"}, {e["job_id"]: e["error"] for e in found["errors"]}


async def scans(count, status=JobState.FAILED):
    """Jobs that hang on nothing."""
    made = await create(
        [NewJob(type=JobType.VALIDATION, place=f"{status}|{n}", lane="x") for n in range(count)], SYSTEM
    )
    ids = [job.id for job in made]
    await Lane.update(concurrency=0).where(Lane.name == "x")
    over = {"place": None} if status in {JobState.FAILED, JobState.CANCELLED, JobState.COMPLETED} else {}
    await Job.update({"status": status, "attempts": 3, "failures": 3, **over}).where(Job.id.is_in(ids))
    return ids


async def test_every_match_is_counted_over_the_whole_inventory_and_nothing_else_is_touched(fleet, monkeypatch):
    monkeypatch.setattr("certctl_server.jobs.retry.CHUNK", 7)
    failed = await scans(20)
    other = [*await scans(2, JobState.COMPLETED), *await scans(2, JobState.RUNNING)]
    wanted = totals(24, 20, 4, 0), {}
    body = {"filter": {"type": "validation"}}
    assert await asked(fleet, **body, dry_run=True) == wanted
    assert {row["status"] for row in await Job.select().where(Job.id.is_in(failed))} == {"Failed"}
    assert await AuditEvent.count().where(AuditEvent.action == "jobs_retried") == 0
    assert await asked(fleet, **body) == wanted
    rows = await Job.select().where(Job.id.is_in(failed))
    assert {(row["status"], row["attempts"], row["failures"], row["requested_by"]) for row in rows} == {
        ("Pending", 0, 0, "ada")
    }
    assert all(row["place"] for row in rows)
    assert {row["status"] for row in await Job.select().where(Job.id.is_in(other))} == {"Completed", "Running"}
    assert await AuditEvent.count().where(AuditEvent.action == "jobs_retried") == 1
    assert await asked(fleet, **body) == (totals(24, 0, 24, 0), {})


async def test_selectors_narrow_each_other_down_and_unknown_ids_have_failed(fleet):
    first, second, third = await scans(3)
    found = await asked(fleet, job_ids=[first, "job-none", first])
    assert found == (totals(2, 1, 0, 1), {"job-none": "Job not found"})
    assert await asked(fleet, job_ids=[first, second], filter={"status": ["Failed"]}) == (totals(1, 1, 0, 0), {})
    assert await asked(fleet, filter={"status": "Failed,Cancelled"}) == (totals(1, 1, 0, 0), {})
    assert (await fleet.get(f"jobs/{third}"))["status"] == "Pending"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["job_ids"]),
        ({"dry_run": True}, ["job_ids"]),
        ({"job_ids": [], "filter": {}}, ["job_ids"]),
        ({"filter": {"status": "Lost", "colour": "red", "type": 5}}, ["filter.type", "filter.status", "filter.colour"]),
        ({"filter": {"created_after": "yesterday"}}, ["filter.created_after"]),
        ({"job_ids": ["../x"], "dry_run": "no"}, ["job_ids[0]", "dry_run"]),
        ({"job_ids": ["j"] * 10_001}, ["job_ids"]),
    ],
    ids=str,
)
async def test_a_request_that_says_nothing_or_nonsense_is_refused_whole(fleet, body, fields):
    answer = await fleet.post(PATH, **body)
    assert answer.status_code == 400
    assert [each["field"] for each in answer.json()["details"]] == fields


async def test_of_two_orders_for_one_certificate_the_newer_one_is_tried_again(fleet, machine):
    id = await fleet.certificate("a.example", targets=["tgt"])
    for _ in range(2):
        [item] = [item for item in await machine.work() if item["status"] == "AwaitingCSR"]
        await machine.report(item["id"], "Failed", error="no", error_kind="rejected")
        await fleet.post(f"certificates/{id}/renew")
    [newest] = await fleet.jobs(id, status="AwaitingCSR")
    await fleet.post(f"jobs/{newest['id']}/cancel")
    older = [job["id"] for job in await fleet.jobs(id, status="Failed")]
    wanted = totals(3, 1, 2, 0), {}
    body = {"filter": {"certificate_id": id}}
    assert await asked(fleet, **body, dry_run=True) == wanted
    assert await asked(fleet, **body) == wanted
    [new] = await fleet.jobs(id, status="AwaitingCSR")
    assert new["id"] != newest["id"]
    assert {(await fleet.get(f"jobs/{each}"))["status"] for each in older} == {"Failed"}


async def test_each_is_judged_as_if_it_were_alone(fleet, machine):
    names = ["archived", "revoked", "fine"]
    certificates = {name: await fleet.certificate(f"{name}.example", targets=["tgt"]) for name in names}
    for item in [item for item in await machine.work() if item["status"] == "AwaitingCSR"]:
        await machine.report(item["id"], "Failed", error="no", error_kind="rejected")
    jobs = {name: (await fleet.jobs(id))[0]["id"] for name, id in certificates.items()}
    await Certificate.update(archived_at=db.now()).where(Certificate.id == certificates["archived"])
    await Certificate.update(revoked_at=db.now()).where(Certificate.id == certificates["revoked"])
    wanted = totals(3, 1, 1, 1), {jobs["revoked"]: "The certificate is revoked: renew it with force"}
    assert await asked(fleet, job_ids=list(jobs.values()), dry_run=True) == wanted
    await Certificate.update(revoked_at=None).where(Certificate.id == certificates["revoked"])
    assert await asked(fleet, job_ids=list(jobs.values())) == (totals(3, 2, 1, 0), {})
    assert {item["id"] for item in await machine.work()} == {jobs["fine"], jobs["revoked"]}


async def test_cancelled_deployments_are_made_anew_where_they_still_fit(fleet, machine):
    await fleet.certificate("a.example", targets=["tgt"])
    await machine.answer_orders()
    [item] = await machine.work()
    await fleet.post(f"jobs/{item['id']}/cancel")
    assert await asked(fleet, filter={"type": "Deployment", "status": "Cancelled"}) == (totals(1, 1, 0, 0), {})
    [again] = await machine.work()
    assert again["id"] != item["id"]


async def test_what_was_to_be_said_and_was_cancelled_is_said_after_all(fleet):
    """A CA, and people, are told what they were to be told, of archived certificates too: nobody else remembers it."""
    id, lane = await fleet.certificate("a.example"), "issuer:iss-local"
    request = {"version_id": "v", "serial_number": "01", "reason": 4}
    more = {"certificate_id": id, "issuer_id": "iss-local", "priority": FREE, "max_attempts": 10}
    telling = NewJob(
        type=JobType.REVOCATION, place=revocation_place("iss-local", "01"), lane=lane, request=request, **more
    )
    asked_ = {"notification_id": "nf", "notifier_id": "nt"}
    saying = NewJob(type=JobType.NOTIFICATION, place=notification_place("nf"), lane="notifier:nt", request=asked_)
    await create([telling, saying], SYSTEM)
    await Lane.update(concurrency=0).where(Lane.name.is_in([lane, "notifier:nt"]))
    await fleet.people.delete(f"/api/v1/certificates/{id}")
    for old in (telling, saying):
        assert (await fleet.post(f"jobs/{old.id}/cancel")).status_code == 200
        answer = await fleet.post(f"jobs/{old.id}/retry")
        assert answer.status_code == 200, answer.text
        new = await Job.select().where(Job.id == answer.json()["job_id"]).first()
        kept = ("type", "certificate_id", "issuer_id", "lane", "priority", "max_attempts", "place")
        assert {name: new[name] for name in kept} == {name: getattr(old, name) for name in kept}
        assert (new["id"] != old.id, json.loads(new["request"]), new["status"]) == (True, old.request, "Pending")
        assert new["due_at"] is not None
        again = await fleet.post(f"jobs/{old.id}/retry")
        assert (again.status_code, "has its place" in again.json()["message"]) == (409, True)


async def test_viewers_retry_nothing(fleet, connect):
    async with connect() as nobody:
        assert (await nobody.post(f"/api/v1/{PATH}", json={"job_ids": ["x"]})).status_code == 401
