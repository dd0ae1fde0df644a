"""What is particular to issuers: their lanes, their certificates, their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from certctl_server import db
from certctl_server.body import Name
from certctl_server.certificates.follow import follow
from certctl_server.connectors.config import files
from certctl_server.connectors.service import Change, Family, Given
from certctl_server.errors import conflict
from certctl_server.files import is_ours
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs import lanes
from certctl_server.jobs.create import lane_of_issuer

RESERVED = frozenset({"iss-local"})
"""The server's own certificate comes from it."""
LIMIT = db.Sql(
    "INSERT INTO lane (name, concurrency, rates) VALUES ($1, $2, $3)"
    " ON CONFLICT (name) DO UPDATE SET concurrency = excluded.concurrency, rates = excluded.rates, room_at = NULL"
)
DROP_LANE = db.Sql("DELETE FROM lane WHERE name = $1")
DROP_BUDGET = db.Sql("DELETE FROM budget WHERE lane = $1")
FORGET = db.Sql("DELETE FROM connector_memory WHERE connector_id = $1")
USED = db.Sql("SELECT 1 AS used FROM certificate WHERE issuer_id = $1 LIMIT 1")


class Rate(msgspec.Struct):
    """No more than ``count`` orders in any ``per_seconds``."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    per_seconds: Annotated[int, msgspec.Meta(ge=1, le=366 * 86400)]
    scope: Literal["account", "domain", "names"]


class Limits(msgspec.Struct):
    """What the CA takes."""

    max_concurrent: Annotated[int, msgspec.Meta(ge=1, le=1000)] | msgspec.UnsetType = msgspec.UNSET
    rates: Annotated[list[Rate], msgspec.Meta(max_length=32)] = msgspec.field(default_factory=list)


class IssuerBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    type: Annotated[str, msgspec.Meta(max_length=64)]
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    enabled: bool = True
    limits: Limits | None = None


def _unsafe(given: Given) -> Mapping[str, str]:
    """What the server reads for anyone lies in its own directory: an option must not lead to other files."""
    home = given.ctx.settings.data_dir.resolve()
    return {
        key: "must be the full path of a file in the server's data directory, and none of certctl's own"
        for key, value in files(given.model, given.raw)
        if not _may_be_read(home, Path(value))
    }


def _may_be_read(home: Path, path: Path) -> bool:
    try:
        found = path.resolve()
        return path.is_absolute() and found.is_relative_to(home) and not is_ours(found)
    except (OSError, RuntimeError, ValueError):
        return False


async def _written(change: Change) -> None:
    if change.id in RESERVED and change.changed("type", "enabled"):
        raise conflict(f"Issuer {change.id} signs the server's own certificate: its type and enabled stay as they are")
    if change.changed("type") and await db.fetch(USED, change.id):
        raise conflict("The type of an issuer in use stays as it is")
    limits = json.loads(change.after["limits"]) if change.after["limits"] else {}
    if change.changed("enabled"):
        await follow("issuer_id", change.id, actor=change.actor)
    lane = lane_of_issuer(change.id)
    if change.before is None or change.changed("limits"):
        await db.fetch(LIMIT, lane, limits.get("max_concurrent"), json.dumps(limits.get("rates", [])))
        # With the lane held: what a claim puts off by the old rates is seen only when that claim is over. Who ends a
        # job holds that one before the lane, but it runs, and those that run wait for no room.
        await lanes.relax(lane)
    if change.changed("config", "type", "enabled"):
        await lanes.reset(lane)


async def _removing(change: Change) -> None:
    for column in Issuer._meta.foreign_key_references:
        user = column._meta.table
        if await user.exists().where(column == change.id):
            raise conflict(f"Issuer is in use: {user._meta.tablename} refers to it")
    # With it goes the key of a CA of ours: nothing it signed is left.
    await db.fetch(FORGET, f"issuer:{change.id}")
    await db.fetch(DROP_LANE, lane_of_issuer(change.id))
    await db.fetch(DROP_BUDGET, lane_of_issuer(change.id))


ISSUERS = Family(
    path="/api/v1/issuers",
    table=Issuer,
    kind="Issuer",
    object_name="Issuer",
    prefix="iss",
    body=IssuerBody,
    types=(
        *("ACME", "GenericCA", "StepCA", "OpenSSL", "VaultPKI", "DigiCert", "Sectigo"),
        *("GoogleCAS", "AWSACMPCA", "Entrust", "GlobalSign", "EJBCA"),
    ),
    aliases={"local": "GenericCA", "local_ca": "GenericCA", "step-ca": "StepCA"},
    classes=lambda plugins: plugins.issuers,
    states=("ready", "incomplete", "failing", "disabled"),
    status=lanes.status_in_sql("issuer"),
    more=("last_tested_at", "limits"),
    json=frozenset({"limits"}),
    optional=frozenset({"last_tested_at", "limits"}),
    reserved=RESERVED,
    unsafe=_unsafe,
    written=_written,
    removing=_removing,
)
