"""Logins: a browser exchanges a key for a cookie that no script can read, and that ends with the key.

Kept is the cookie's digest alone. A login with a key of the environment is tied to it by a proof that takes the
cookie to make, so that nobody who reads the database can try out keys that people thought up.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from certctl_server import db
from certctl_server.auth.keys import SECRET_BYTES, Keyring, digest, used
from certctl_server.auth.principal import Principal

COOKIE, ENCRYPTED_COOKIE = "certctl-login", "__Host-certctl-login"
"""A browser takes the second only over TLS, for this host alone (RFC 6265bis section 4.1.3.2)."""
CSRF_HEADER = "x-csrf-token"
CSRF = "csrf"
FIND = db.Sql(
    "SELECT l.key_id, l.proof, l.expires_at AS login_ends, k.id, k.name, k.role, k.agent_id, k.expires_at,"
    " k.last_used_at FROM login l LEFT JOIN api_key k ON k.id = l.key_id AND k.ended_at IS NULL"
    " AND (k.expires_at IS NULL OR k.expires_at > $2) WHERE l.digest = $1 AND l.expires_at > $2"
)
KEEP = db.Sql("INSERT INTO login (digest, key_id, proof, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)")
END = db.Sql("DELETE FROM login WHERE digest = $1")
FORGET = db.Sql("DELETE FROM login WHERE expires_at <= $1")


@dataclass(frozen=True, slots=True)
class Login:
    """What the browser gets."""

    cookie: str = field(repr=False)
    csrf_token: str = field(repr=False)


async def log_in(principal: Principal, key: str, now: datetime, *, life: timedelta, instead_of: str = "") -> Login:
    """Make a login for the holder of ``key``; it ends the one whose cookie is ``instead_of``, and all that are over."""
    cookie = secrets.token_urlsafe(SECRET_BYTES)
    proof = "" if principal.key_id else _made_of(cookie, digest(key))
    async with db.transaction():
        await db.fetch(FORGET, now)
        await db.fetch(END, digest(instead_of))
        await db.fetch(KEEP, digest(cookie), principal.key_id or None, proof, now, now + life)
    return Login(cookie, _made_of(cookie, CSRF))


async def logged_in(cookie: str, keyring: Keyring, now: datetime) -> Principal | None:
    """Return who logged in, None if that is over or the key has ended since."""
    rows = await db.fetch(FIND, digest(cookie), now)
    if not rows:
        return None
    [row] = rows
    if row["key_id"] is None:
        found = keyring.find(row["proof"], lambda kept: _made_of(cookie, kept))
    else:
        found = await used(row, now) if row["id"] else None
    if found is None:
        return None
    ends = min(found.expires_at or row["login_ends"], row["login_ends"])
    return replace(found, expires_at=ends, csrf_token=_made_of(cookie, CSRF))


async def log_out(cookie: str) -> None:
    """End the login of this cookie, if there is one."""
    await db.fetch(END, digest(cookie))


def presented(cookies: Mapping[str, str], *, encrypted: bool) -> str:
    """Return the login cookie among those of a request, "" if there is none.

    Over TLS only the one counts that nobody could have planted in the clear.
    """
    return cookies.get(ENCRYPTED_COOKIE if encrypted else COOKIE, "")


def set_cookie(cookie: str, life: timedelta, *, encrypted: bool) -> str:
    """Return the header that leaves the cookie with the browser; an empty one is taken away."""
    name, secure = (ENCRYPTED_COOKIE, "; Secure") if encrypted else (COOKIE, "")
    seconds = int(life.total_seconds()) if cookie else 0
    return f"{name}={cookie}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _made_of(cookie: str, text: str) -> str:
    return hmac.new(cookie.encode("utf-8", "surrogateescape"), text.encode(), hashlib.sha256).hexdigest()
