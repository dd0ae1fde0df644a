import hmac
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certctl_core.config import read
from certctl_core.errors import MisconfiguredError, TransientError
from certctl_core.notifier import Notification
from certctl_notifier_webhook import WebhookConfig, WebhookNotifier
from certctl_sdk.egress import Guard
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_sdk.testing.notifier_contract import NotifierContract

SECRET = "s.signing-key"
NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)
NOTIFICATION = Notification(
    subject="a.example expires in 7 days",
    body="Renew it.",
    severity="warning",
    incident="mc-1/expiry",
    recipients=("ops@example.org",),
    facts={"type": "ExpirationWarning", "certificate_id": "mc-1"},
)


class TestContract(NotifierContract):
    connector = WebhookNotifier

    @pytest.fixture
    def options(self, channel):
        return {
            "url": f"{channel.url}/hook/s.path-secret",
            "secret": SECRET,
            "authorization": "Bearer s.token",
            "headers": ["X-Team: platform"],
        }

    def identity(self, message):
        return dict(message.headers)["x-certctl-delivery"]


async def sent(peer, options=None, *, run=None, now=NOW):
    config = WebhookConfig.model_validate({"url": f"{peer.url}/hook?key=1", **(options or {})})
    notifier = WebhookNotifier(config, FakeHost(clock=lambda: now))
    try:
        await notifier.send(NOTIFICATION, run or FakeRun())
    finally:
        await notifier.aclose()
    return peer.requests[-1]


@pytest.fixture
async def peer():
    async with HttpPeer() as peer:
        yield peer


@pytest.fixture
def verify():
    """The function that the README gives to receivers."""
    [code] = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    return names["verify"]


async def test_the_message_is_the_documented_json(peer):
    request = await sent(peer)
    body = request.json()
    documented = (Path(__file__).parents[1] / "README.md").read_text().split("```json\n")[1].split("```")[0]
    assert list(body) == list(json.loads(documented))
    assert body == {
        "id": request.headers["x-certctl-delivery"],
        "timestamp": "2027-01-31T12:00:00Z",
        "type": "ExpirationWarning",
        "severity": "warning",
        "incident": "mc-1/expiry",
        "subject": "a.example expires in 7 days",
        "message": "Renew it.",
        "recipients": ["ops@example.org"],
        "facts": {"certificate_id": "mc-1"},
    }
    assert (request.method, request.target) == ("POST", "/hook?key=1")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "certctl-notifier/1.0"


async def test_the_signature_verifies_as_the_readme_says_and_nothing_else_does(peer, verify):
    request = await sent(peer, {"secret": SECRET}, now=datetime.now(UTC))
    signature, key = request.headers["x-certctl-signature"], SECRET.encode()
    moment = signature.split(",")[0][2:]
    assert verify(request.body, signature, key)
    assert not verify(request.body + b" ", signature, key)
    assert not verify(request.body, signature, b"other key")
    assert not verify(request.body, signature.replace(moment, str(int(moment) + 1)), key)
    for broken in ("", "t=,v1=", "t=x,v1=y", f"t={moment}", f"t={moment},v1=", f"t={moment},v1=ä"):
        assert not verify(request.body, broken, key)


@pytest.mark.parametrize("age", [timedelta(minutes=6), -timedelta(minutes=6)], ids=["old", "ahead"])
async def test_a_replayed_message_does_not_verify(peer, verify, age):
    request = await sent(peer, {"secret": SECRET}, now=datetime.now(UTC) - age)
    assert not verify(request.body, request.headers["x-certctl-signature"], SECRET.encode())


async def test_receivers_of_older_versions_verify_without_change(peer):
    request = await sent(peer, {"secret": SECRET})
    assert request.headers["x-signature"] == f"sha256={hmac.digest(SECRET.encode(), request.body, 'sha256').hex()}"
    assert request.headers["x-signature-algorithm"] == "sha256"


async def test_without_a_key_nothing_pretends_to_be_signed(peer):
    for options in ({}, {"secret": ""}):
        assert not [name for name in (await sent(peer, options)).headers if "signature" in name]


async def test_headers_come_as_lines_or_from_older_clients_as_an_object(peer):
    for headers in (["X-Team: platform", "X-Url: https://a:1/"], {"X-Team": "platform", "X-Url": "https://a:1/"}):
        request = await sent(peer, {"headers": headers, "authorization": "Bearer s.token"})
        assert request.headers["x-team"] == "platform"
        assert request.headers["x-url"] == "https://a:1/"
        assert request.headers["authorization"] == "Bearer s.token"


@pytest.mark.parametrize(
    "options",
    [
        {"headers": ["X-A: b\r\nX-Injected: 1"]},
        {"headers": {"X-A\nX-B": "b"}},
        {"headers": ["no colon or  space"]},
        {"headers": ["X-A: ä"]},
        {"headers": ["Host: other"]},
        {"headers": {"Content-Length": "1"}},
        {"headers": ["X-Certctl-Signature: t=1,v1=0"]},
        {"headers": ["x-signature: sha256=0"]},
        {"url": "ftp://a.example/"},
        {"url": "a.example"},
    ],
    ids=lambda options: str(options)[:40],
)
def test_what_cannot_be_sent_is_refused_when_it_is_configured_and_not_repeated(options):
    reading = read(WebhookConfig, {"url": "https://a.example/", **options})
    assert reading.config is None
    [value] = options.values()
    assert str(value) not in str(reading.faults)


async def test_a_webhook_stays_out_of_the_own_network_and_takes_no_redirect_into_it(peer):
    guard = Guard(private_allowed=False)
    notifier = WebhookNotifier(WebhookConfig(url=peer.url), FakeHost(egress=guard))
    with pytest.raises(MisconfiguredError, match="may not be called"):
        await notifier.send(NOTIFICATION, FakeRun())
    await notifier.aclose()
    assert not peer.requests
    peer.answer = Reply(307, headers={"Location": "/other"})
    with pytest.raises(MisconfiguredError, match="not followed"):
        await sent(peer)
    assert len(peer.requests) == 1


async def test_attempts_at_one_message_share_their_delivery_id_and_are_signed_anew(peer):
    peer.answer = Reply(503)
    with pytest.raises(TransientError):
        await sent(peer, {"secret": SECRET})
    peer.answer = Reply()
    await sent(peer, {"secret": SECRET}, now=NOW + timedelta(minutes=9))
    await sent(peer, {"secret": SECRET}, run=FakeRun("job-2"))
    first, again, other = (request.headers for request in peer.requests)
    assert first["x-certctl-delivery"] == again["x-certctl-delivery"] != other["x-certctl-delivery"]
    assert first["x-certctl-signature"] != again["x-certctl-signature"]


def test_the_readme_lists_every_option():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name, field in WebhookConfig.model_fields.items():
        assert re.search(rf"\| `{name}` \|.*\| {re.escape(field.description)}", readme), name
