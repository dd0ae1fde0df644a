"""API keys, handled by whoever has the database: the way back in."""

from __future__ import annotations

from certctl_core.errors import MisconfiguredError

from certctl_server import db
from certctl_server.audit.record import ON_HOST, Event, record
from certctl_server.auth.keys import create_key, end_key
from certctl_server.errors import Refused

LIST = db.Sql("SELECT id, name, role, prefix, created_at, expires_at, last_used_at, ended_at FROM api_key ORDER BY id")


async def create(name: str, role: str) -> str:
    """Make a key and return its text, which nobody can read again."""
    async with db.transaction():
        row, text = await create_key(name, role)
        await record([Event(ON_HOST, "key_created", "api_key", row.id, {"name": name, "role": role})])
    return text


async def listed() -> list[str]:
    """Return a line for every key, the ended ones included."""
    now = db.now()
    lines = [("ID", "ROLE", "NAME", "PREFIX", "STATE", "LAST USED")]
    for row in await db.fetch(LIST):
        ended = row["ended_at"] or (row["expires_at"] and row["expires_at"] <= now)
        used = f"{row['last_used_at']:%Y-%m-%d %H:%M}Z" if row["last_used_at"] else "never"
        lines.append((row["id"], row["role"], row["name"], row["prefix"], "ended" if ended else "valid", used))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


async def revoke(key_id: str) -> None:
    """End a key at once.

    Raises:
        MisconfiguredError: there is no such key, or it has ended already.
    """
    try:
        async with db.transaction():
            await end_key(key_id, db.now())
            await record([Event(ON_HOST, "key_deleted", "api_key", key_id)])
    except Refused as exc:
        raise MisconfiguredError(f"no valid key is called {key_id}") from exc
