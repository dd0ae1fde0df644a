"""Tell any HTTP endpoint what happened, signed so that it can tell us from a stranger."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any
from uuid import UUID, uuid5

from certctl_core import hookimpl
from certctl_core.config import SECRET, ConnectorConfig
from certctl_core.notifier import Notification, Notifier
from certctl_core.run import Host, Run
from certctl_sdk.http import Client, httpx
from pydantic import Field, SecretStr, field_validator

DELIVERIES = UUID("6f1f7c0e-5d0c-4a55-9d0b-3f2f4b1f4a7e")
TIMEOUT_SECONDS = 30.0
SUBJECT_CHARACTERS, TEXT_CHARACTERS, FACTS = 1024, 65_536, 64
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent"})


class WebhookConfig(ConnectorConfig):
    """Where to post, and how the receiver knows that it is us."""

    url: SecretStr = Field(description="Address to post to; all of it counts as a secret")
    secret: SecretStr | None = Field(None, description="Key of the signatures; without it nothing is signed")
    headers: tuple[str, ...] = Field(
        (), description="More headers to send, each as 'Name: value'", json_schema_extra=SECRET, repr=False
    )
    authorization: SecretStr | None = Field(None, description="Value of the Authorization header")

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("an address starts with https:// or http://")
        return url

    @field_validator("headers", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Older clients send an object of names and values."""
        return tuple(f"{name}: {value}" for name, value in given.items()) if isinstance(given, Mapping) else given

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: tuple[str, ...]) -> tuple[str, ...]:
        for header in headers:
            name, _, value = header.partition(":")
            if not TOKEN.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise ValueError("a header is 'Name: value' in printable ASCII, without line breaks")
            if name.lower() in OURS or name.lower().startswith(("x-certctl-", "x-signature")):
                raise ValueError("one of the headers is set by the notifier itself")
        return headers


class WebhookNotifier(Notifier):
    """One endpoint. Any answer of 2xx means that it took the message."""

    kind = "Webhook"
    Config = WebhookConfig
    config: WebhookConfig

    def __init__(self, config: WebhookConfig, host: Host, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(config, host)
        headers = {name: value.strip() for name, _, value in (header.partition(":") for header in config.headers)}
        if config.authorization:
            headers["Authorization"] = config.authorization.get_secret_value()
        secret = config.secret.get_secret_value() if config.secret else ""
        self._key = secret.encode()
        url = config.url.get_secret_value()
        self._http = Client(
            "The webhook",
            host,
            url,
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            secrets=(url, secret),
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, request: Notification, run: Run) -> None:
        delivery, now = str(uuid5(DELIVERIES, run.key)), self.host.clock().astimezone(UTC)
        body = json.dumps({"id": delivery, "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"), **_told(request)}).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "certctl-notifier/1.0",
            "X-Certctl-Delivery": delivery,
            **self._signatures(body, int(now.timestamp())),
        }
        await self._http.request("POST", content=body, headers=headers)

    def _signatures(self, body: bytes, moment: int) -> dict[str, str]:
        """The timed one, and the one over the body alone that receivers of older versions verify."""
        if not self._key:
            return {}
        timed = hmac.digest(self._key, f"{moment}.".encode() + body, "sha256").hex()
        return {
            "X-Certctl-Signature": f"t={moment},v1={timed}",
            "X-Signature": f"sha256={hmac.digest(self._key, body, 'sha256').hex()}",
            "X-Signature-Algorithm": "sha256",
        }


def _told(request: Notification) -> dict[str, Any]:
    facts = {_inert(name, SUBJECT_CHARACTERS): _inert(text, SUBJECT_CHARACTERS) for name, text in request.facts.items()}
    return {
        "type": facts.pop("type", "Notification"),
        "severity": _inert(request.severity, SUBJECT_CHARACTERS),
        "incident": _inert(request.incident, SUBJECT_CHARACTERS),
        "subject": _inert(request.subject, SUBJECT_CHARACTERS),
        "message": _inert(request.body, TEXT_CHARACTERS),
        "recipients": [_inert(recipient, SUBJECT_CHARACTERS) for recipient in request.recipients[:FACTS]],
        "facts": dict(list(facts.items())[:FACTS]),
    }


def _inert(text: str, limit: int) -> str:
    """Receivers put it into terminals, mails and chats: no control characters but line ends and tabs, and cut."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[:limit])


@hookimpl
def certctl_notifiers() -> list[type[Notifier]]:
    """Bring one kind."""
    return [WebhookNotifier]
