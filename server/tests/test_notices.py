import json
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core import plugins
from certctl_core.config import ConnectorConfig
from certctl_core.notifier import Notifier as NotifierConnector
from certctl_sdk.http import Client
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_server import db
from certctl_server.audit.tables import AuditEvent
from certctl_server.connectors.config import unseal
from certctl_server.connectors.run import CallRun
from certctl_server.jobs.state import claim
from certctl_server.jobs.tables import Job
from certctl_server.notices.send import send
from certctl_server.notices.service import EVENTS, failed
from certctl_server.notices.tables import Notification
from certctl_server.notices.tell import Notice, tell
from pydantic import Field, SecretStr

NOTIFIERS, NOTIFICATIONS = "/api/v1/notifiers", "/api/v1/notifications"
LEASE = timedelta(seconds=30)
NOTICE = Notice("RenewalFailure", "mc-1", "Renewal failed", "the CA said no", "critical", "job-1|1")


class HookConfig(ConnectorConfig):
    url: SecretStr = Field(description="Address")


class Hook(NotifierConnector):
    """Posts to a peer over a real socket; has incidents."""

    kind = "Webhook"
    Config = HookConfig

    def __init__(self, config, host):
        super().__init__(config, host)
        url = config.url.get_secret_value()
        self.http = Client("The hook", host, url, secrets=(url,))

    async def send(self, request, run):
        body = {"subject": request.subject, "incident": request.incident, "facts": dict(request.facts)}
        await self.http.request("POST", "/", content=json.dumps(body).encode())

    async def resolve(self, request, run):
        await self.http.request("POST", "/resolve", content=json.dumps({"incident": request.incident}).encode())

    async def aclose(self):
        await self.http.aclose()


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"egress_allow": ("127.0.0.1",)})


@pytest.fixture
def ctx(ctx):
    ctx.plugins.notifiers["Webhook"] = Hook
    return ctx


async def made(client, id="nt-1", url="http://127.0.0.1:1", **more):
    answer = await client.post(
        NOTIFIERS, json={"id": id, "name": id, "type": "webhook", "config": {"url": url}, **more}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


async def claimed():
    [job] = await claim("w", "notifier:nt-1", limit=5, lease=LEASE)
    return job


async def only(client):
    [notification] = (await client.get(NOTIFICATIONS)).json()["data"]
    return notification


async def test_a_notifier_gets_every_event_unless_it_chooses(client):
    notifier = await made(client)
    assert (notifier["type"], notifier["status"], notifier["events"]) == ("Webhook", "ready", list(EVENTS))
    assert notifier["config"] == {"url": "********"}
    changed = await client.put(f"{NOTIFIERS}/nt-1", json={"events": ["revocation"]})
    assert changed.json()["events"] == ["Revocation"]
    for events in ([], ["Birthday"]):
        assert (await client.put(f"{NOTIFIERS}/nt-1", json={"events": events})).status_code == 400


async def test_headers_of_a_webhook_are_sealed_hidden_and_kept(client, ctx):
    ctx.plugins.notifiers["Webhook"] = plugins.load().notifiers["Webhook"]
    headers = ["Authorization: Bearer s3cret", "X-Team: platform"]
    config = {"url": "https://hook.example/a", "headers": headers}
    made = await client.post(NOTIFIERS, json={"id": "nt-1", "name": "x", "type": "Webhook", "config": config})
    hidden = {"url": "********", "headers": ["********", "********"]}
    assert (made.status_code, made.json()["config"], made.json()["status"]) == (201, hidden, "ready")
    answer = await client.put(f"{NOTIFIERS}/nt-1", json={"config": hidden})
    assert (answer.status_code, answer.json()["config"]) == (200, hidden)
    [row] = await db.fetch(db.Sql("SELECT config FROM notifier WHERE id = 'nt-1'"))
    assert "s3cret" not in row["config"]
    assert unseal(json.loads(row["config"]), ctx.cipher, "notifier|nt-1|config") == config
    moved = await client.put(f"{NOTIFIERS}/nt-1", json={"config": {"url": "https://evil.example/"}})
    assert (moved.status_code, [each["field"] for each in moved.json()["details"]]) == (400, ["config.headers"])


async def test_an_event_is_told_once_to_each_channel_that_subscribed(client):
    await made(client)
    await made(client, id="nt-2", events=["Revocation"])
    await made(client, id="nt-3", enabled=False)
    await made(client, id="nt-4", type="Slack", config={})
    await tell(NOTICE, NOTICE)
    await tell(NOTICE)
    told = await only(client)
    assert (told["type"], told["channel"], told["status"]) == ("RenewalFailure", "Webhook", "pending")
    assert (told["message"], told["certificate_id"], told["retry_count"]) == ("the CA said no", "mc-1", 0)
    assert not {"error", "last_error", "sent_at", "next_retry_at"} & told.keys()
    assert await Job.count().where(Job.type == "Notification") == 1


async def test_a_message_is_sent_and_says_so(client, engine):
    async with HttpPeer(Reply(json={})) as peer:
        await made(client, url=peer.url)
        await tell(NOTICE)
        job = await claimed()
        again = datetime(2099, 1, 1, tzinfo=UTC)
        await failed(job.request["notification_id"], "HTTP 503", again)
        await send(job, CallRun(job.id, datetime.now(UTC) + LEASE), engine.instances)
        assert peer.requests[0].json()["subject"] == "Renewal failed"
    told = await only(client)
    assert (told["status"], told["retry_count"], "next_retry_at" in told, "error" in told) == ("sent", 1, False, False)
    assert told["sent_at"]


async def test_a_message_that_fails_is_tried_again_until_it_is_dead(client):
    await made(client)
    await tell(NOTICE)
    job, again = await claimed(), datetime(2099, 1, 1, tzinfo=UTC)
    await failed(job.request["notification_id"], "HTTP 503", again)
    told = await only(client)
    assert (told["status"], told["retry_count"], told["next_retry_at"]) == ("failed", 1, "2099-01-01T00:00:00Z")
    assert told["error"] == told["last_error"] == "HTTP 503"
    await failed(job.request["notification_id"], "HTTP 410", None)
    told = await only(client)
    assert (told["status"], told["retry_count"], told["error"]) == ("dead", 2, "HTTP 410")
    assert "next_retry_at" not in told


async def test_what_was_read_stays_read(client):
    await made(client)
    await tell(NOTICE)
    told = await only(client)
    for _ in range(2):
        answer = await client.post(f"{NOTIFICATIONS}/{told['id']}/read")
        assert (answer.status_code, answer.json()) == (200, {"status": "marked_as_read"})
    await failed((await claimed()).request["notification_id"], "late", None)
    assert (await client.get(f"{NOTIFICATIONS}/{told['id']}")).json()["status"] == "read"
    assert (await client.post(f"{NOTIFICATIONS}/notif-no/read")).status_code == 404
    assert (await client.get(f"{NOTIFICATIONS}/notif-no")).status_code == 404


async def test_reading_keeps_the_time_of_sending(client):
    sent = datetime(2026, 1, 1, tzinfo=UTC)
    await Notification.insert(
        Notification(id="notif-1", type="Revocation", occurrence="x", status="sent", sent_at=sent, created_at=sent)
    )
    await client.post(f"{NOTIFICATIONS}/notif-1/read")
    told = await only(client)
    assert (told["status"], told["sent_at"]) == ("read", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("status=pending", 1),
        ("status=DEAD", 0),
        ("type=renewalfailure", 1),
        ("channel=webhook", 1),
        ("channel=slack", 0),
        ("certificate_id=mc-1", 1),
        ("certificate_id=mc-2", 0),
    ],
)
async def test_notifications_are_filtered(client, query, count):
    await made(client)
    await tell(NOTICE)
    answer = await client.get(f"{NOTIFICATIONS}?{query}")
    assert (answer.status_code, answer.json()["total"]) == (200, count)
    assert (await client.get(f"{NOTIFICATIONS}?status=lost")).status_code == 400


async def test_a_deleted_notifier_sends_nothing_more(client):
    await made(client)
    await tell(NOTICE)
    assert (await client.delete(f"{NOTIFIERS}/nt-1")).status_code == 204
    told = await only(client)
    assert (told["status"], told["error"]) == ("dead", "the notifier was deleted")
    assert (await Job.select(Job.status).first())["status"] == "Cancelled"
    assert await claim("w", "notifier:nt-1", limit=5, lease=LEASE) == []


async def test_a_test_sends_a_real_message_and_closes_its_incident(client, engine):
    async with HttpPeer(Reply(json={})) as peer:
        await made(client, url=peer.url)
        answer = await client.post(f"{NOTIFIERS}/nt-1/test")
        assert (answer.status_code, answer.json()) == (200, {"status": "sent"}), answer.text
        sent, resolved = peer.requests
        assert (sent.target, "test" in sent.json()["subject"]) == ("/", True)
        assert (resolved.target, resolved.json()["incident"]) == ("/resolve", sent.json()["incident"])
    assert await AuditEvent.exists().where(AuditEvent.action == "notifier_tested")
    row = await db.fetch(db.Sql("SELECT last_tested_at FROM notifier"))
    assert row[0]["last_tested_at"] is not None


async def test_a_test_that_fails_names_the_cause_and_hides_the_address(client, engine):
    async with HttpPeer(Reply(404, json={})) as peer:
        await made(client, url=f"{peer.url}/s3cret-path")
        answer = await client.post(f"{NOTIFIERS}/nt-1/test")
        assert answer.status_code == 503
        assert "The hook" in answer.json()["message"]
        assert "s3cret" not in answer.text
    assert (await client.get(f"{NOTIFIERS}?status=failing")).json()["total"] == 1


async def test_a_notifier_that_cannot_send_cannot_be_tested(client, engine):
    await made(client, id="nt-1", type="Slack", config={})
    assert (await client.post(f"{NOTIFIERS}/nt-1/test")).status_code == 503
    await made(client, id="nt-2", url=None)
    answer = await client.post(f"{NOTIFIERS}/nt-2/test")
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "config.url")
    await made(client, id="nt-3", enabled=False)
    assert (await client.post(f"{NOTIFIERS}/nt-3/test")).status_code == 409
