"""Keys: made at random, shown once, kept as digests, looked up by one statement."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from certctl_server import db
from certctl_server.auth.principal import Principal
from certctl_server.auth.roles import STORED, Role
from certctl_server.auth.tables import ApiKey, EnrolmentToken
from certctl_server.errors import Refused, conflict
from certctl_server.ids import new_id
from certctl_server.settings import Settings

SECRET_BYTES = 32
OVERLAP = timedelta(hours=24)
"""How long the older key of a rotation lasts if the newer one is not used."""
TOUCH = timedelta(minutes=1)
TOKEN_LIFE = timedelta(hours=24)
SHARED_ADMIN = "api-key-user"
LIVE = "ended_at IS NULL AND (expires_at IS NULL OR expires_at > $2)"


def _of_living(text: str, *, lock: str = "") -> db.Sql:
    """A statement in which ``{living}`` is a condition; SQLite locks whole databases, not rows."""
    text = text.replace("{living}", LIVE)
    return db.Sql(postgres=text + lock, sqlite=text)


FIND = _of_living(
    "SELECT id, name, role, agent_id, digest, expires_at, last_used_at, replaces FROM api_key"
    " WHERE digest IN ({ids:$1}) AND {living}"
)
TOUCHED = db.Sql("UPDATE api_key SET last_used_at = $2 WHERE id IN ({ids:$1})")
USE = db.Sql(
    "UPDATE api_key SET last_used_at = CASE WHEN id = $1 THEN $2 ELSE last_used_at END,"
    " ended_at = CASE WHEN id = $3 AND ended_at IS NULL THEN $2 ELSE ended_at END WHERE id IN ($1, $3)"
)
LIVING = _of_living("SELECT * FROM api_key WHERE id = $1 AND {living}", lock=" FOR UPDATE")
NEWEST = _of_living(
    "SELECT id FROM api_key WHERE agent_id = $1 AND {living}"
    " ORDER BY CASE WHEN id = $3 THEN 0 ELSE 1 END, created_at DESC, id DESC LIMIT 1"
)
SHORTEN = db.Sql("UPDATE api_key SET expires_at = $2 WHERE id = $1 AND (expires_at IS NULL OR expires_at > $2)")
SUCCESSOR = db.Sql("SELECT expires_at FROM api_key WHERE replaces = $1 ORDER BY created_at DESC, id DESC LIMIT 1")
END_SUCCESSORS = db.Sql("UPDATE api_key SET ended_at = $2 WHERE replaces = $1 AND ended_at IS NULL")
END_LOGINS = db.Sql("DELETE FROM login WHERE key_id = $1")
END = db.Sql("UPDATE api_key SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL RETURNING id")
FIND_TOKEN = db.Sql(
    "SELECT id, name, digest FROM enrolment_token WHERE digest = $1 AND uses < max_uses AND expires_at > $2"
)
SPEND_TOKEN = db.Sql(
    "UPDATE enrolment_token SET uses = uses + 1, last_used_at = $2"
    " WHERE id = $1 AND uses < max_uses AND expires_at > $2 RETURNING id"
)


def digest(key: str) -> str:
    """Return what is kept of a key. Keys are random, so a plain hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of the environment, as digests."""

    entries: tuple[tuple[str, Principal], ...]

    @classmethod
    def of_settings(cls, settings: Settings) -> Keyring:
        """Return the keys that the settings name, the static enrolment token among them."""
        auth, bootstrap_token = settings.auth, settings.agent_bootstrap_token.get_secret_value()
        found = [(secret, Principal(SHARED_ADMIN, Role.ADMIN, named=False)) for secret in auth.secrets]
        found += [(named.key, Principal(named.name, Role(named.role))) for named in auth.named_keys]
        if bootstrap_token:
            found.append((bootstrap_token, Principal("enrolment", Role.ENROLMENT, actor_type="Agent", named=False)))
        return cls(tuple((digest(key), principal) for key, principal in found))

    def find(self, wanted: str, of: Callable[[str], str] = str) -> Principal | None:
        """Return whose key's digest, or what ``of`` makes of it, is ``wanted``.

        It takes a time that does not tell how far anything matched.
        """
        found = [principal for kept, principal in self.entries if hmac.compare_digest(of(kept), wanted)]
        return found[0] if found else None


async def authenticate(key: str, keyring: Keyring, now: datetime) -> Principal | None:
    """Return whose key it is; None for one that is unknown, expired or ended alike.

    The first use of a key that replaces another ends the other one.
    """
    wanted = digest(key)
    if known := keyring.find(wanted):
        return known
    row = await _find((wanted, now))
    if row is None or not hmac.compare_digest(row["digest"], wanted):
        return None
    if row["last_used_at"] is None and row["replaces"]:
        await db.fetch(USE, row["id"], now, row["replaces"])
        return principal_of(row)
    return await used(row, now)


async def used(row: db.Row, now: datetime) -> Principal:
    """Note, once a minute, that a stored key is in use, and return whose it is."""
    if row["last_used_at"] is None or now - row["last_used_at"] >= TOUCH:
        await _touch((row["id"], now))
    return principal_of(row)


async def _find_all(asked: list[tuple[str, datetime]]) -> list[db.Row | None]:
    digests = json.dumps([wanted for wanted, _ in asked])
    found = {row["digest"]: row for row in await db.fetch(FIND, digests, max(now for _, now in asked))}
    return [found.get(wanted) for wanted, _ in asked]


async def _touch_all(used: list[tuple[str, datetime]]) -> list[None]:
    await db.fetch(TOUCHED, json.dumps([id for id, _ in used]), max(now for _, now in used))
    return [None] * len(used)


_find, _touch = db.Together(_find_all), db.Together(_touch_all)


async def authenticate_token(key: str, now: datetime) -> Principal | None:
    """Return the holder of an enrolment token that is not used up; its secret part is enough."""
    wanted = digest(key.partition(".")[0])
    rows = await db.fetch(FIND_TOKEN, wanted, now)
    if not rows or not hmac.compare_digest(rows[0]["digest"], wanted):
        return None
    return Principal(rows[0]["name"] or rows[0]["id"], Role.ENROLMENT, key_id=rows[0]["id"], actor_type="Agent")


async def spend_token(token_id: str, now: datetime) -> bool:
    """Count one registration against the token; False if it has none left. The static token's id is empty."""
    return not token_id or bool(await db.fetch(SPEND_TOKEN, token_id, now))


def principal_of(row: db.Row) -> Principal:
    """Return whose stored key it is."""
    agent = row["agent_id"] or ""
    return Principal(
        name=agent or row["name"],
        role=Role(row["role"]),
        key_id=row["id"],
        agent_id=agent,
        actor_type="Agent" if agent else "User",
        expires_at=row["expires_at"],
    )


async def create_key(
    name: str,
    role: Role | str,
    *,
    expires_at: datetime | None = None,
    agent_id: str | None = None,
    replaces: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return its row and its text, which nobody can read again.

    Args:
        name: Whose it is; the actor of what is done with it.
        role: What it may do: admin, operator, viewer, or agent, which needs ``agent_id``.
        expires_at: When it ends; None is never.
        agent_id: The agent it belongs to.
        replaces: The id of the key that ends once this one is used.

    Raises:
        ValueError: another role, or an agent's without the agent.
    """
    role = Role(role)
    if role not in STORED or (role is Role.AGENT) != (agent_id is not None):
        raise ValueError(f"a stored key is an admin's, an operator's, a viewer's or one agent's, not {role}")
    suffix = secrets.token_hex(4)
    prefix = f"{'cca' if agent_id else 'cck'}_{suffix}"
    text = f"{prefix}_{secrets.token_urlsafe(SECRET_BYTES)}"
    row = ApiKey(
        id=new_id("key"),
        name=name,
        role=role.value,
        agent_id=agent_id,
        prefix=prefix,
        digest=digest(text),
        created_at=db.now(),
        expires_at=expires_at,
        replaces=replaces,
    )
    await ApiKey.insert(row)
    return row, text


async def rotate_key(key_id: str, now: datetime) -> tuple[ApiKey, str]:
    """Make the successor of a living key: same name, role and agent, and the end that the first one had.

    The older one lasts until the newer is used, and 24 hours at most. A key has one successor: rotating it again,
    or the successor before it was used, ends that one. Its logins end at once.

    Raises:
        Refused: 404 if there is no such living key.
    """
    async with db.transaction():
        old = await _living(key_id, now)
        if old["last_used_at"] is None and (older := await db.fetch(LIVING, old["replaces"] or "", now)):
            old = older[0]
        earlier = await db.fetch(SUCCESSOR, old["id"])
        # Its own end is shortened by now, the successor's is what it was.
        end = (earlier[0] if earlier else old)["expires_at"]
        await db.fetch(END_SUCCESSORS, old["id"], now)
        row, text = await create_key(
            old["name"], old["role"], expires_at=end, agent_id=old["agent_id"], replaces=old["id"]
        )
        await db.fetch(SHORTEN, old["id"], now + OVERLAP)
        await db.fetch(END_LOGINS, old["id"])
    return row, text


async def rotate_agent_key(agent_id: str, presented: str, now: datetime) -> tuple[ApiKey, str]:
    """Make the successor of an agent's key: of the one with the id ``presented`` if that is its own, else the newest.

    Raises:
        Refused: 409 if it has no living key to replace.
    """
    rows = await db.fetch(NEWEST, agent_id, now, presented)
    if not rows:
        raise conflict("The agent has no key to replace: enrol it again")
    return await rotate_key(rows[0]["id"], now)


async def end_key(key_id: str, now: datetime) -> None:
    """End a key at once, and the logins that were made with it; in the caller's transaction, if there is one.

    Raises:
        Refused: 404 if there is none, or it has ended already.
    """
    if not await db.fetch(END, key_id, now):
        raise Refused(HTTPStatus.NOT_FOUND, "Key not found")
    await db.fetch(END_LOGINS, key_id)


async def _living(key_id: str, now: datetime) -> dict[str, Any]:
    rows = await db.fetch(LIVING, key_id, now)
    if not rows:
        raise Refused(HTTPStatus.NOT_FOUND, "Key not found")
    return rows[0]


async def create_token(
    *, name: str = "", max_uses: int = 1, expires_at: datetime | None = None, created_by: str = ""
) -> tuple[EnrolmentToken, str]:
    """Make an enrolment token and return its row and its secret part; by default for one use within 24 hours."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    now = db.now()
    row = EnrolmentToken(
        id=new_id("et"),
        name=name,
        digest=digest(secret),
        max_uses=max_uses,
        expires_at=expires_at or now + TOKEN_LIFE,
        created_at=now,
        created_by=created_by,
    )
    await EnrolmentToken.insert(row)
    return row, secret
