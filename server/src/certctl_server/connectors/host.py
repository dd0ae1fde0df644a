"""What a connector instance is given: its memory, the rules for outgoing calls, the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from certctl_core.run import Allowed
from certctl_sdk.egress import Guard

from certctl_server import db
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.sealing import Cipher, place

READ = db.Sql("SELECT value FROM connector_memory WHERE connector_id = $1 AND name = $2")
FIRST = db.Sql(
    "INSERT INTO connector_memory (connector_id, name, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING name"
)
SWAP = db.Sql(
    "UPDATE connector_memory SET value = $4 WHERE connector_id = $1 AND name = $2 AND value = $3 RETURNING name"
)
FORGET = db.Sql("DELETE FROM connector_memory WHERE connector_id = $1 AND name = $2 AND value = $3 RETURNING name")


class Memory:
    """``host.store``: a map of one instance in the database, sealed, changed by compare-and-set."""

    def __init__(self, connector_id: str, cipher: Cipher, loop: ConnectorLoop) -> None:
        self._id = connector_id
        self._cipher = cipher
        self._loop = loop

    async def get(self, key: str) -> str | None:
        """The value last swapped in."""
        sealed = await self._loop.back(lambda: self._read(key))
        return None if sealed is None else self._cipher.open(sealed, self._place(key))

    async def swap(self, key: str, *, old: str | None, new: str | None) -> bool:
        """Set ``key`` to ``new`` if it still is ``old``; False: another worker was first."""
        return await self._loop.back(lambda: self._swap(key, old, new))

    async def _read(self, key: str) -> str | None:
        return next((str(row["value"]) for row in await db.fetch(READ, self._id, key)), None)

    async def _swap(self, key: str, old: str | None, new: str | None) -> bool:
        # What is stored differs each time it is sealed: compare the text, then set on what was read.
        stored = await self._read(key)
        if (None if stored is None else self._cipher.open(stored, self._place(key))) != old:
            return False
        if new is None:
            return old is None or bool(await db.fetch(FORGET, self._id, key, stored))
        sealed = self._cipher.seal(new, self._place(key))
        if stored is None:
            return bool(await db.fetch(FIRST, self._id, key, sealed))
        return bool(await db.fetch(SWAP, self._id, key, stored, sealed))

    def _place(self, key: str) -> str:
        return place("connector_memory", f"{self._id}/{key}", "value")


@dataclass(frozen=True, slots=True)
class ServerHost:
    """The server as an instance sees it. It touches no files and runs no commands for anyone."""

    store: Memory
    egress: Guard
    clock: Callable[[], datetime]
    allowed: Allowed = Allowed()  # noqa: RUF009  # frozen
