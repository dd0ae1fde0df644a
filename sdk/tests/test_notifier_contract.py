"""The contract, kept by a channel with incidents, and noticed when it is broken."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.errors import ConnectorError, RejectedError, TransientError
from certctl_core.notifier import Notifier
from certctl_sdk.http import Client
from certctl_sdk.testing.notifier_contract import NotifierContract
from pydantic import ConfigDict, Field, SecretStr


class ChatConfig(ConnectorConfig):
    url: SecretStr = Field(description="Where to post")
    token: SecretStr = Field(description="The token")


class Chat(Notifier):
    """Keeps the whole contract."""

    kind = "chat"
    Config = ChatConfig

    def __init__(self, config, host):
        super().__init__(config, host)
        self.url, self.token = config.url.get_secret_value(), config.token.get_secret_value()
        self.http = Client(
            "The chat", host, self.url, headers={"X-Token": self.token}, secrets=(self.url,),
            explain=lambda body: body["error"],
        )  # fmt: skip

    async def aclose(self):
        await self.http.aclose()

    async def send(self, request, run):
        await self.post({"text": self.text(request), "incident": self.name(request, run)})

    async def resolve(self, request, run):
        await self.post({"text": "resolved", "incident": clean(request.incident)})

    async def post(self, message):
        await self.http.request("POST", json=message)

    def name(self, request, run):
        return clean(request.incident)

    def text(self, request):
        text = clean(f"{request.subject}\n{request.body}")
        return text.replace("&", "&amp;").replace("<", "&lt;")


def clean(text):
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text[:1000])


class Suite(NotifierContract):
    connector = Chat
    forbidden = ("<!channel>",)
    max_bytes = 20_000

    @pytest.fixture
    def options(self, channel):
        return {"url": f"{channel.url}/services/s.path", "token": "s.token"}

    def identity(self, message):
        return json.loads(message.raw)["incident"]

    def texts(self, message):
        return [json.loads(message.raw)["text"]]


class TestContract(Suite):
    pass


class Double(Chat):
    """Makes sure."""

    async def post(self, message):
        await super().post(message)
        await super().post(message)


class Mute(Chat):
    """Tells nothing of what happened."""

    def text(self, request):
        return "Something happened."


class Optimist(Chat):
    """Takes every answer for a yes."""

    async def post(self, message):
        await self.http.exchange("POST", json=message)


class Hopeful(Chat):
    """Hopes that all will be well later, it knows not when."""

    async def post(self, message):
        try:
            await super().post(message)
        except ConnectorError as exc:
            raise TransientError("later, perhaps") from exc


class Injectable(Chat):
    """Writes HTTP itself, and the subject into a header of it."""

    async def send(self, request, run):
        url = urlsplit(self.url)
        body = json.dumps({"text": self.text(request), "incident": "i"})
        head = f"POST / HTTP/1.1\r\nX-Subject: {request.subject}\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", url.port, limit=1 << 22)
        try:
            writer.write((head + body).encode("utf-8", "replace"))
            await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()


class Verbatim(Chat):
    """Sends on what a stranger wrote, in full."""

    def text(self, request):
        return f"{request.subject}\n{request.body}"


class Telltale(Chat):
    """Says where it tried to post."""

    async def post(self, message):
        try:
            await super().post(message)
        except RejectedError as exc:
            raise RejectedError(f"{self.url} refused: {exc}") from exc


class Amnesiac(Chat):
    """Opens an incident at every attempt."""

    counter = 0

    def name(self, request, run):
        Chat.counter += 1
        return f"incident-{Chat.counter}"


class Monotonous(Chat):
    """Takes all trouble for the same."""

    def name(self, request, run):
        return "certctl"


class Clinging(Chat):
    """Keeps its connections."""

    async def aclose(self):
        pass


class Deaf(Chat):
    """Tries again when it is cancelled."""

    async def post(self, message):
        try:
            await super().post(message)
        except asyncio.CancelledError:
            await super().post(message)


class Muddled(Chat):
    """Keeps the message at hand in the instance."""

    async def send(self, request, run):
        self.request = request
        await asyncio.sleep(0)
        await super().send(self.request, run)


class Strict(Chat):
    """Fails on an incident that is closed."""

    async def resolve(self, request, run):
        raise RejectedError("no such incident")


class Lax(Chat):
    """Takes any option."""

    class Config(ChatConfig):
        model_config = ConfigDict(extra="allow")


class Open(Chat):
    """Shows its token to whoever prints its options."""

    class Config(ChatConfig):
        def __repr__(self):
            return f"Config(token={self.token.get_secret_value()})"


BAD = {
    Double: "test_what_is_accepted_is_delivered_once_and_says_what_happened",
    Mute: "test_what_is_accepted_is_delivered_once_and_says_what_happened",
    Optimist: "test_a_failure_says_who_must_act",
    Hopeful: "test_the_pause_that_a_busy_channel_asks_for_is_kept",
    Injectable: "test_hostile_text_arrives_inert",
    Verbatim: "test_hostile_text_arrives_inert",
    Telltale: "test_no_secret_is_told",
    Amnesiac: "test_a_retry_delivers_under_the_same_identity_and_other_trouble_under_another",
    Monotonous: "test_a_retry_delivers_under_the_same_identity_and_other_trouble_under_another",
    Clinging: "test_aclose_closes_the_connections",
    Deaf: "test_a_cancelled_send_ends_at_once_and_the_next_one_arrives",
    Muddled: "test_many_messages_at_once_are_each_delivered",
    Strict: "test_an_incident_that_is_closed_or_unknown_is_resolved_already",
    Lax: "test_the_class_loads_and_its_options_are_strict",
    Open: "test_the_class_loads_and_its_options_are_strict",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_the_contract_rejects(rejections, bad):
    assert BAD[bad] in rejections[bad.__name__]
