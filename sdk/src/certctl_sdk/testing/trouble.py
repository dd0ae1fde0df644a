"""The ways in which a peer fails, and what a connector must make of each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, TypeAlias

from certctl_core.errors import ConnectorError, MisconfiguredError, RejectedError, TransientError

from certctl_sdk.testing.http_peer import Received, Reply

Trouble: TypeAlias = Literal["refuses", "denies", "busy", "down", "gone", "garbage", "hangs", "repeats us"]
"""``refuses`` this request, ``denies`` us, is ``busy`` and asks for PAUSE, is ``down``, ``gone`` before it answered,
answers ``garbage``, ``hangs``, or refuses and ``repeats us`` with all that we sent."""

PAUSE = timedelta(seconds=7)

ERRORS: Mapping[Trouble, type[ConnectorError]] = {
    "refuses": RejectedError,
    "denies": MisconfiguredError,
    "busy": TransientError,
    "down": TransientError,
    "gone": TransientError,
    "garbage": ConnectorError,
}

_REPLIES: Mapping[Trouble, Reply] = {
    "refuses": Reply(400, json={"error": "not like this"}),
    "denies": Reply(403, json={"error": "not you"}),
    "busy": Reply(429, json={"error": "later"}, headers={"Retry-After": str(int(PAUSE.total_seconds()))}),
    "down": Reply(503, body=b"<html>\x1b[2J"),
    "gone": Reply(raw=b""),
    "garbage": Reply(raw=b"\x16\x03\x01\x02\r\n\r\n"),
    "hangs": Reply(hang=True),
}


def reply_in(trouble: Trouble, request: Received) -> Reply:
    """How an HTTP peer in ``trouble`` answers ``request``."""
    if trouble != "repeats us":
        return _REPLIES[trouble]
    headers = (f"{name}: {value}" for name, value in request.header_list)
    told = " ".join([request.target, request.body.decode("latin-1"), *headers])
    return Reply(400, json=dict.fromkeys(("error", "message", "detail", "errors"), told))
