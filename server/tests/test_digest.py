import html
import re
from datetime import timedelta

import pytest
from certctl_core.certificate import Status
from certctl_core.job import JobState, JobType
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.audit.record import SYSTEM
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.certificates.create import create
from certctl_server.certificates.tables import Certificate
from certctl_server.digest import figures
from certctl_server.jobs.create import NewJob
from certctl_server.jobs.create import create as create_jobs
from certctl_server.jobs.tables import Job
from certctl_server.people.tables import Owner
from server_flow import wanted

PREVIEW, SEND = "/api/v1/digest/preview", "/api/v1/digest/send"
EVIL = "<script>alert('x')</script> & \"co\""


async def document(client):
    answer = await client.get(PREVIEW)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return answer.text


def cells(text):
    """Every row of every table, by its first cell."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    found = [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]
    return [row for row in found if row]


async def ending(name, days, **facts):
    """A certificate that ends in so many days and an hour."""
    end = db.now() + timedelta(days=days, hours=1)
    sans = (f"{name}.example",) if name.isalnum() else ("evil.example",)
    life = {"not_before": end - timedelta(days=90), "expires_at": end, "status": Status.ACTIVE}
    id, _ = await create(wanted(*sans, name=name, **life), SYSTEM)
    if facts:
        await Certificate.update(facts).where(Certificate.id == id)
    return id


async def ended(status, type=JobType.RENEWAL, days=1, **facts):
    [job] = await create_jobs([NewJob(type=type, place=f"{status}|{type}|{days}|{len(facts)}", lane="x")], SYSTEM)
    at = db.now() - timedelta(days=days)
    over = {"place": None, "kept_since": at} if "next_retry_at" not in facts else {}
    await Job.update({"status": status, "completed_at": at, **over, **facts}).where(Job.id == job.id)


async def test_every_figure_is_exact(client, grounds):
    for n in range(5):
        await ending(f"soon{n}", n + 1)
    await ending("later", 60)
    await ending("over", -2)
    await ending("archived", 3, archived_at=db.now())
    await ending("revoked", 3, revoked_at=db.now())
    now = {"registered_at": db.now(), "created_at": db.now(), "updated_at": db.now()}
    for n, version in enumerate(["1.2", "1.2", "", "1.3"]):
        status = "Online" if n else "Offline"
        await Agent.insert(Agent(id=f"ag-{n}", name=f"a{n}", status=status, version=version, **now))
    await ended(JobState.COMPLETED)
    await ended(JobState.COMPLETED, days=29)
    await ended(JobState.COMPLETED, days=31)
    await ended(JobState.COMPLETED, type=JobType.NOTIFICATION)
    await ended(JobState.FAILED)
    await ended(JobState.FAILED, next_retry_at=db.now())
    text = await document(client)
    rows = cells(text)
    counts = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    by_status = {
        row["status"]: row["n"]
        for row in await db.fetch(db.Sql("SELECT status, count(*) AS n FROM certificate GROUP BY status"))
    }
    assert sum(by_status.values()) == 9
    assert {status: counts[status] for status in by_status} == by_status
    assert [row[1] for row in rows if row[0] == "All"] == ["9", "4"]
    assert ["Completed", "2"] in rows
    assert ["Failed", "2"] in rows
    assert (counts["Online"], counts["Offline"], counts["1.2"], counts["1.3"], counts["unknown"]) == (3, 1, 2, 1, 1)
    named = [(row[0], row[5]) for row in rows if len(row) == 6]
    assert named == [(f"soon{n}", str(n + 1)) for n in range(5)]
    assert "5 in all." in text


async def test_all_are_counted_where_not_all_are_named(client, grounds, monkeypatch):
    monkeypatch.setattr(figures, "ROWS", 2)
    for n in range(4):
        await ending(f"soon{n}", n + 1)
    text = await document(client)
    assert "4 in all, the first 2 of them here." in text
    assert [row[0] for row in cells(text) if len(row) == 6] == ["soon0", "soon1"]


async def test_nothing_that_anybody_chose_is_taken_for_html(client, grounds):
    await Owner.update({Owner.name: EVIL}).where(Owner.id == "o")
    await Agent.insert(
        Agent(id="a", name="a", version=EVIL, registered_at=db.now(), created_at=db.now(), updated_at=db.now())
    )
    await ending(EVIL, 3)
    answer = await client.get(PREVIEW)
    assert "<script" not in answer.text
    assert [row[0] for row in cells(answer.text) if row[0] == EVIL] == [EVIL, EVIL]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_an_empty_installation_has_a_digest(client):
    assert "<p>None.</p>" in await document(client)


@pytest.mark.parametrize(("content", "status"), [(b"", 503), (b"{}", 503), (b"[", 400)])
async def test_without_mail_nothing_is_sent(client, content, status):
    assert (await client.post(SEND, content=content)).status_code == status


async def test_viewers_look_and_operators_send(client, connect):
    _, key = await create_key("eve", Role.VIEWER)
    async with connect(key) as viewer:
        assert (await viewer.get(PREVIEW)).status_code == 200
        assert (await viewer.post(SEND)).status_code == 403
    assert (await client.get(f"{PREVIEW}?days=3")).status_code == 400
