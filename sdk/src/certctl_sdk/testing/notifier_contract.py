"""The tests every notifier must pass. Subclass, set ``connector`` and override ``options``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pytest
import pytest_asyncio
from certctl_core.errors import ConnectorError, TransientError
from certctl_core.notifier import Notification, Notifier, Resolver, ResolveRequest

from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.http_peer import HttpPeer, Received, Reply
from certctl_sdk.testing.strictness import assert_loads, assert_strict, canaries_of, told_by
from certctl_sdk.testing.trouble import ERRORS, PAUSE, Trouble, reply_in

Make = Callable[[], Notifier]
SECONDS = 10.0


@dataclass(frozen=True)
class Delivered:
    """A message that the channel accepted."""

    headers: tuple[tuple[str, str], ...]
    """What the protocol carries beside the message; names in lower case."""
    raw: bytes


class Channel(Protocol):
    """The far end of a notifier."""

    def behave(self, trouble: Trouble | None) -> None:
        """From now on fail like this; None: work."""

    @property
    def delivered(self) -> Sequence[Delivered]:
        """What it accepted so far."""

    @property
    def connections(self) -> int:
        """How many are open now."""


class HttpChannel(HttpPeer):
    """A channel that people post to; ``accepting`` is what it answers then."""

    def __init__(self, accepting: Reply | None = None) -> None:
        super().__init__(self._reply)
        self.delivered: list[Delivered] = []
        self._accepting = accepting or Reply(json={})
        self._trouble: Trouble | None = None

    def behave(self, trouble: Trouble | None) -> None:
        """From now on fail like this; None: work."""
        self._trouble = trouble

    def _reply(self, request: Received) -> Reply:
        match self._trouble:
            case None:
                self.delivered.append(Delivered(request.header_list, request.body))
                return self._accepting
            case trouble:
                return reply_in(trouble, request)


HOSTILE = {
    "header injection": "a\r\nX-Injected: yes\r\n\r\n",
    "control characters": "a\x00\x07\x1b[2J\x1b]0;title\x07\u202e\u2028b",
    "markup": "<!channel> <script>alert(1)</script> *bold* [a](https://evil.example) & </b>",
    "huge": "x" * 1_000_000,
    "not ASCII": "Zertifikat für münchen.example läuft ab \U0001f512",
    "half a character": "a\ud800b",
    "empty": "",
}


@pytest.mark.asyncio
class NotifierContract:
    """Accepted means delivered once; failures say who must act; hostile text is inert; secrets are never told.

    Set ``connector`` and override ``options``. ``channel`` is an HTTP server; override it for another protocol.
    """

    connector: ClassVar[type[Notifier]]
    max_bytes: ClassVar[int] = 1024 * 1024
    """The longest message that the channel takes."""
    forbidden: ClassVar[tuple[str, ...]] = ()
    """What must never arrive unescaped in ``texts``: ``<!channel>`` for Slack."""

    @pytest_asyncio.fixture
    async def channel(self) -> AsyncIterator[Channel]:
        """Serve the far end."""
        async with HttpChannel() as channel:
            yield channel

    @pytest.fixture
    def options(self, channel: Any) -> Mapping[str, Any]:
        """A complete configuration that leads to ``channel``, as an operator would store it, with every secret set."""
        raise NotImplementedError("override the options fixture")

    @pytest_asyncio.fixture
    async def make(self, options: Mapping[str, Any]) -> AsyncIterator[Make]:
        """Give what makes an instance, and close the instances afterwards."""
        made: list[Notifier] = []

        def make() -> Notifier:
            made.append(self.connector(self.connector.Config.model_validate(options), FakeHost()))
            return made[-1]

        yield make
        for each in made:
            await each.aclose()

    def identity(self, message: Delivered) -> str | None:
        """What the channel can tell repetitions of a message by; None: it has no such thing."""
        return None

    def texts(self, message: Delivered) -> Iterable[str]:
        """What people get to read."""
        return _strings(json.loads(message.raw))

    async def test_the_class_loads_and_its_options_are_strict(self, options: Mapping[str, Any]) -> None:
        assert_loads(self.connector)
        assert_strict(self.connector.Config, options)

    async def test_what_is_accepted_is_delivered_once_and_says_what_happened(
        self, make: Make, channel: Channel
    ) -> None:
        await _send(make(), _notification())
        [message] = channel.delivered
        text = "\n".join(self.texts(message))
        assert "a.example expires" in text
        assert "in 7 days" in text

    async def test_many_messages_at_once_are_each_delivered(self, make: Make, channel: Channel) -> None:
        notifier, subjects = make(), {f"subject {number}" for number in range(8)}
        await asyncio.gather(*(_send(notifier, _notification(subject=s, incident=s), FakeRun(s)) for s in subjects))
        texts = ["\n".join(self.texts(message)) for message in channel.delivered]
        assert sorted(sum(subject in text for text in texts) for subject in subjects) == [1] * 8
        assert len(texts) == len(subjects)

    @pytest.mark.parametrize("trouble", ERRORS)
    async def test_a_failure_says_who_must_act(self, make: Make, channel: Channel, trouble: Trouble) -> None:
        channel.behave(trouble)
        with pytest.raises(ERRORS[trouble]) as failed:
            await _send(make(), _notification())
        assert str(failed.value).strip()
        assert str(failed.value).isprintable()
        assert not channel.delivered

    async def test_the_pause_that_a_busy_channel_asks_for_is_kept(self, make: Make, channel: Channel) -> None:
        channel.behave("busy")
        with pytest.raises(TransientError) as busy:
            await _send(make(), _notification())
        assert busy.value.retry_after == PAUSE

    async def test_a_retry_delivers_under_the_same_identity_and_other_trouble_under_another(
        self, make: Make, channel: Channel
    ) -> None:
        run = FakeRun("job-1")
        channel.behave("down")
        with pytest.raises(TransientError):
            await _send(make(), _notification(), run)
        channel.behave(None)
        for _ in range(2):
            await _send(make(), _notification(), run.again())
        await _send(make(), _notification(incident="mc-2/expiry"), FakeRun("job-2"))
        first, again, other = map(self.identity, channel.delivered)
        if first is None:
            pytest.skip("this channel cannot tell repetitions")
        assert first == again
        assert first != other

    async def test_a_cancelled_send_ends_at_once_and_the_next_one_arrives(self, make: Make, channel: Channel) -> None:
        notifier = make()
        channel.behave("hangs")
        task = asyncio.create_task(notifier.send(_notification(), FakeRun()))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task], timeout=3)
        assert task.cancelled(), "the message was still being sent after it was cancelled"
        channel.behave(None)
        await _send(notifier, _notification())
        assert len(channel.delivered) == 1

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    @pytest.mark.parametrize("where", ["subject", "body", "incident", "severity", "facts", "recipients"])
    async def test_hostile_text_arrives_inert(self, make: Make, channel: Channel, text: str, where: str) -> None:
        notifier = make()
        await _send(notifier, _notification())
        value = {"facts": {"subject_dn": text, text: "x"}, "recipients": (text,)}.get(where, text)
        await _send(notifier, _notification(**{where: value}))
        plain, hostile = channel.delivered
        assert [name for name, _ in hostile.headers] == [name for name, _ in plain.headers], "a header was injected"
        steering = {c for text in self.texts(hostile) for c in text if not (c.isprintable() or c in "\n\t")}
        assert not steering, "control characters arrive"
        assert len(hostile.raw) <= self.max_bytes
        assert not [each for each in self.forbidden for text in self.texts(hostile) if each in text]

    @pytest.mark.parametrize("trouble", ["repeats us", "denies", "gone", "garbage"])
    async def test_no_secret_is_told(
        self,
        make: Make,
        channel: Channel,
        options: Mapping[str, Any],
        caplog: pytest.LogCaptureFixture,
        trouble: Trouble,
    ) -> None:
        caplog.set_level("DEBUG")
        notifier = make()
        channel.behave(trouble)
        with pytest.raises(ConnectorError) as failed:
            await _send(notifier, _notification())
        told = f"{told_by(failed.value)} {notifier!r} {caplog.text}"
        assert not [canary for canary in canaries_of(self.connector.Config, options) if canary in told]

    async def test_aclose_closes_the_connections(self, make: Make, channel: Channel) -> None:
        notifier = make()
        await _send(notifier, _notification())
        await notifier.aclose()
        for _ in range(100):
            if not channel.connections:
                break
            await asyncio.sleep(0.02)
        assert channel.connections == 0

    async def test_an_incident_that_is_closed_or_unknown_is_resolved_already(self, make: Make) -> None:
        notifier = make()
        if not isinstance(notifier, Resolver):
            pytest.skip("this channel has no incidents")
        await _send(notifier, _notification())
        for incident in ("mc-1/expiry", "mc-1/expiry", "never heard of"):
            await notifier.resolve(ResolveRequest(incident=incident), FakeRun(f"resolve {incident}"))


def _notification(**changes: Any) -> Notification:
    plain: dict[str, Any] = {
        "subject": "a.example expires",
        "body": "The certificate for a.example expires in 7 days.",
        "severity": "warning",
        "incident": "mc-1/expiry",
        "recipients": ("ops@example.org",),
        "facts": {"certificate_id": "mc-1", "serial_number": "0a1b"},
    }
    return Notification(**{**plain, **changes})


async def _send(notifier: Notifier, notification: Notification, run: FakeRun | None = None) -> None:
    async with asyncio.timeout(SECONDS):
        await notifier.send(notification, run or FakeRun())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield name
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
