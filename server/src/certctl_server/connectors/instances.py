"""Connector instances, made when first used and again when their row changes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from certctl_core.config import read
from certctl_core.connector import Connector
from certctl_core.errors import MisconfiguredError
from certctl_core.issuer import Issuer
from certctl_core.notifier import Notifier
from certctl_sdk.egress import Guard, parse_allow

from certctl_server import db
from certctl_server.connectors.config import unseal
from certctl_server.connectors.host import Memory, ServerHost
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.context import Context
from certctl_server.sealing import place
from certctl_server.telemetry import tracing

log = logging.getLogger(__name__)
C = TypeVar("C", bound=Connector)
T = TypeVar("T")
LONGEST_CALL = timedelta(minutes=10)
"""How long one call of a connector may take at most."""
ISSUERS = db.Sql("SELECT id, type, config, config_version, enabled FROM issuer WHERE id IN ({ids:$1})")
NOTIFIERS = db.Sql("SELECT id, type, config, config_version, enabled FROM notifier WHERE id IN ({ids:$1})")


def _found_by(sql: db.Sql) -> db.Together[str, db.Row | None]:
    async def rows(ids: list[str]) -> list[db.Row | None]:
        found = {row["id"]: row for row in await db.fetch(sql, json.dumps(list(set(ids))))}
        return [found.get(id) for id in ids]

    return db.Together(rows)


ROWS = {"issuer": _found_by(ISSUERS), "notifier": _found_by(NOTIFIERS)}


@dataclass(frozen=True, slots=True)
class _Kept:
    version: int
    connector: Connector


def _enabled(table: str, row: db.Row) -> db.Row:
    if not row["enabled"]:
        raise MisconfiguredError(f"{table} {row['id']} is disabled")
    return row


class Instances:
    """The instances of this process, by row and version of its options."""

    def __init__(self, ctx: Context, loop: ConnectorLoop) -> None:
        self._ctx = ctx
        self.loop = loop
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._retired: dict[asyncio.Task[None], Connector] = {}
        #: By identity, for a plugin's class may define equality as it likes.
        self._names: dict[int, tuple[str, str]] = {}

    async def call(self, connector: Connector, verb: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what ``work`` comes to, a call of ``verb`` of ``connector``; errors are those of ``loop.call``."""
        return await tracing.call(self.loop, self._names[id(connector)], connector, verb, work)

    async def issuer(self, issuer_id: str) -> Issuer:
        """Return the issuer of a row.

        Raises:
            MisconfiguredError: it is gone, disabled, incomplete, or its connector is not installed.
        """
        row = _enabled("issuer", await self._row("issuer", issuer_id))
        return await self._of("issuer", row, self._ctx.plugins.issuers, private=True)

    async def own_ca(self, issuer_id: str) -> Issuer:
        """Return the issuer of the server's own certificate; unlike ``issuer`` also while it is disabled."""
        row = await self._row("issuer", issuer_id)
        return await self._of("issuer", row, self._ctx.plugins.issuers, private=True)

    async def notifier(self, notifier_id: str) -> Notifier:
        """Return the notifier of a row; raise MisconfiguredError as ``issuer`` does."""
        row = _enabled("notifier", await self._row("notifier", notifier_id))
        return await self._of("notifier", row, self._ctx.plugins.notifiers, private=False)

    @staticmethod
    async def _row(table: str, row_id: str) -> db.Row:
        row = await ROWS[table](row_id)
        if row is None:
            raise MisconfiguredError(f"{table} {row_id} is gone")
        return row

    async def _of(self, table: str, row: db.Row, kinds: Mapping[str, type[C]], *, private: bool) -> C:
        row_id = row["id"]
        kept = self._kept.get((table, row_id))
        if kept is None or kept.version != row["config_version"]:
            fresh = self._make(table, row, self._ctx.plugins.pick(kinds, row["type"]), private=private)
            self._kept[table, row_id] = _Kept(row["config_version"], fresh)
            self._names[id(fresh)] = table, row_id
            if kept:
                self._retire(kept.connector)
            return fresh
        return kept.connector  # type: ignore[return-value]  # of the class that its kind names

    def _make(self, table: str, row: db.Row, cls: type[C], *, private: bool) -> C:
        raw = unseal(json.loads(row["config"]), self._ctx.cipher, place(table, row["id"], "config"))
        reading = read(cls.Config, {**self._of_environment(row), **raw})
        if reading.config is None:
            faults = "; ".join(f"{path}: {message}" for path, message in reading.faults)
            raise MisconfiguredError(f"{table} {row['id']} is incomplete: {faults}")
        return cls(reading.config, self._host(f"{table}:{row['id']}", private=private))

    def _of_environment(self, row: db.Row) -> dict[str, Any]:
        """What the environment says about the reserved rows."""
        settings = self._ctx.settings
        if row["id"] == "iss-local" and settings.ca_cert_path and settings.ca_key_path:
            return {"ca_cert_path": str(settings.ca_cert_path), "ca_key_path": str(settings.ca_key_path)}
        return {}

    def _host(self, name: str, *, private: bool) -> ServerHost:
        guard = Guard(private_allowed=private, allow=parse_allow(",".join(self._ctx.settings.egress_allow)))
        return ServerHost(Memory(name, self._ctx.cipher, self.loop), guard, self._ctx.clock)

    def _retire(self, connector: Connector) -> None:
        """Close an instance once the last job that may use it must have ended."""
        task = asyncio.create_task(self._close_later(connector), name=f"retired {connector.kind}")
        self._retired[task] = connector
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    async def _close_later(self, connector: Connector) -> None:
        await asyncio.sleep(LONGEST_CALL.total_seconds())
        await self._close(connector)

    async def _close(self, connector: Connector) -> None:
        try:
            async with asyncio.timeout(5):
                await self.loop.call(connector.aclose)
        except Exception as exc:  # a connector that cannot even close concerns nobody else
            log.warning("connector did not close", extra={"kind": connector.kind}, exc_info=exc)
        self._names.pop(id(connector), None)

    async def aclose(self) -> None:
        """Close every instance."""
        retired, kept = dict(self._retired), self._kept
        self._kept = {}
        for task in retired:
            task.cancel()
        for connector in (*retired.values(), *(each.connector for each in kept.values())):
            await self._close(connector)
