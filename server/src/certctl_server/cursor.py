"""The token that says where in a list the next page starts: opaque, signed, good for one sort and one filter."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from binascii import Error
from dataclasses import dataclass
from typing import Any

import msgspec

from certctl_server.context import Context
from certctl_server.sealing import place, recall, remember

SETTING = "cursor_key"
MAC_BYTES = 16
TOKEN_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Position:
    """The last row that was sent. With ``empty``, the walk has come to the rows whose sort key is empty."""

    id: str
    value: Any
    empty: bool


async def signing_key(ctx: Context) -> bytes:
    """Return the installation's key for tokens, made once, the same in every replica."""
    if not ctx.cursor_key:
        where = place("setting", SETTING, "value")
        sealed = await recall(SETTING) or await remember(SETTING, ctx.cipher.seal(secrets.token_hex(32), where))
        ctx.cursor_key = bytes.fromhex(ctx.cipher.open(sealed, where))
    return ctx.cursor_key


def pack(key: bytes, walk: str, position: Position) -> str:
    """Return the token for ``position`` in the list that ``walk`` describes: its name, sort and filters."""
    payload = msgspec.json.encode([position.id, position.value, position.empty])
    return base64.urlsafe_b64encode(_mac(key, walk, payload) + payload).rstrip(b"=").decode()


def unpack(key: bytes, walk: str, token: str) -> Position:
    """Return what ``pack`` was given; raise ValueError for a damaged token and for one of another walk."""
    if len(token) > TOKEN_CHARACTERS:
        raise ValueError("is damaged")
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (Error, ValueError) as exc:
        raise ValueError("is damaged") from exc
    mac, payload = raw[:MAC_BYTES], raw[MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, walk, payload)):
        raise ValueError("is damaged, or belongs to another sort or other filters")
    id, value, empty = msgspec.json.decode(payload)
    return Position(id, value, empty)


def _mac(key: bytes, walk: str, payload: bytes) -> bytes:
    return hmac.new(key, walk.encode() + b"\0" + payload, hashlib.sha256).digest()[:MAC_BYTES]
