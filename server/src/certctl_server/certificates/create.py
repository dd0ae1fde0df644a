"""Make, change and archive certificates: what the rows say is wanted. Getting it is ``orders``'s."""

# ruff: noqa: S608  # table names are ours, values are parameters
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from certctl_core.certificate import Status
from certctl_core.job import TELLING, JobType
from certctl_core.names import San, SanKind, normalise_sans, parse_san
from certctl_core.profile import DEFAULT, check_names
from piccolo.columns import Column

from certctl_server import db
from certctl_server.audit.record import Actor, Event, audited, record
from certctl_server.certificates.mapping import catch_up, map_targets
from certctl_server.certificates.orders import Order, place
from certctl_server.certificates.rollout_state import call_off
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.tables import Certificate
from certctl_server.certificates.windows import time_anew
from certctl_server.errors import conflict, invalid
from certctl_server.ids import new_id
from certctl_server.jobs.create import NewJob
from certctl_server.jobs.priorities import URGENT
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.policies.judge import refused, review
from certctl_server.rules.profiles import of_row

REFERENCES = {
    "owner_id": "owner",
    "team_id": "team",
    "issuer_id": "issuer",
    "renewal_policy_id": "renewal_policy",
    "certificate_profile_id": "certificate_profile",
}
# Every reference of a certificate in one round trip.
_known = db.once(
    db.Sql(
        " UNION ALL ".join(
            f"SELECT '{name}' AS field, id FROM {table} WHERE id = ${number}"
            for number, (name, table) in enumerate(REFERENCES.items(), start=1)
        )
        + " UNION ALL SELECT 'target_ids', id FROM target WHERE id IN ({ids:$6})"
    )
)
PROFILE = db.Sql("SELECT * FROM certificate_profile WHERE id = $1")
# A range and not LIKE, which no index on SQLite serves: ")" follows "(".
TAKEN = db.Sql(
    "SELECT name FROM certificate WHERE name = $1 UNION ALL SELECT name FROM certificate WHERE name >= $2 AND name < $3"
)
INSERT = db.Sql(
    """
    INSERT INTO certificate (id, name, common_name, sans, environment, owner_id, team_id, issuer_id, renewal_policy_id,
        certificate_profile_id, tags, status, decided, was_active, expires_at, not_before, serial_number, fingerprint,
        created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $18, $13, $14, $15, $16, $17, $17)
    ON CONFLICT DO NOTHING RETURNING id
    """
)
ARCHIVE = db.Sql("UPDATE certificate SET archived_at = {now}, updated_at = {now} WHERE id = $1")
IMPORTED = {"owner_id": "o-unassigned", "team_id": "t-unassigned"}
IMPORT = "imported"
NAMES = frozenset({"common_name", "sans"})
HELD = db.Sql("SELECT * FROM certificate WHERE id = $1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A certificate to be, checked field by field but not yet against the rest of the world."""

    common_name: str
    sans: tuple[str, ...]
    owner_id: str
    team_id: str
    issuer_id: str
    name: str = ""
    id: str = ""
    environment: str = ""
    renewal_policy_id: str = "rp-default"
    certificate_profile_id: str | None = None
    target_ids: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    status: Status = Status.PENDING
    """Active: it was made elsewhere, and nothing is to be issued now."""
    not_before: datetime | None = None
    expires_at: datetime | None = None
    serial_number: str = ""
    fingerprint: str = ""


def names_of(common_name: str, sans: Sequence[str]) -> tuple[str, tuple[San, ...], dict[str, str]]:
    """Return the names in their normal form, and a fault for each that is none."""
    faults, found = {}, list[San]()
    cn = common_name
    if common_name:
        try:
            parsed = parse_san(common_name)
            cn = parsed.value
            if parsed.kind not in {SanKind.DNS, SanKind.IP}:
                faults["common_name"] = "is neither a DNS name nor an IP address"
        except ValueError as exc:
            faults["common_name"] = str(exc)
    for number, text in enumerate(sans):
        try:
            found.append(parse_san(text))
        except ValueError as exc:
            faults[f"sans[{number}]"] = str(exc)
    if not common_name and not sans:
        faults["common_name"] = "required unless sans has a name"
    return cn, () if faults else normalise_sans(map(str, found)), faults


async def create(wanted: Wanted, actor: Actor) -> tuple[str, str | None]:
    """Store a certificate and order it; return its id and that of its first job.

    Raises:
        Refused: 400 with every fault, or where a policy forbids to issue it; 409 for an id or name that is taken.
    """
    cn, sans, faults = names_of(wanted.common_name, wanted.sans)
    faults |= await _missing(wanted)
    if not faults:
        faults |= await _outside(wanted.certificate_profile_id, cn, sans)
    if faults:
        raise invalid(faults)
    id = wanted.id or new_id("mc")
    async with audited(
        actor, "certificate_created", "certificate", id, {"common_name": cn, "issuer_id": wanted.issuer_id}
    ):
        await _insert(id, wanted, cn, sans)
        if wanted.target_ids:
            await map_targets(id, wanted.target_ids, actor)
        made = await _order(id, actor) if wanted.status is Status.PENDING else []
        if wanted.status is not Status.PENDING:
            await review([id], actor)
        if not made:  # who orders settles
            await settle([id], actor=actor)
    return id, made[0].id if made else None


async def _order(id: str, actor: Actor) -> list[NewJob]:
    placed = await place([id], Order(type=JobType.ISSUANCE, priority=URGENT), actor, held=True)  # nobody sees it yet
    if placed.forbidden:
        raise refused(placed.forbidden[id])
    return placed.jobs


async def _missing(wanted: Wanted) -> dict[str, str]:
    ids = [getattr(wanted, name) or "" for name in REFERENCES]
    known = {(row["field"], row["id"]) for row in await _known((*ids, json.dumps(wanted.target_ids)))}
    faults = {}
    for name in REFERENCES:
        value = getattr(wanted, name)
        if value and (name, value) not in known:
            faults[name] = "no such id"
        elif not value and name != "certificate_profile_id":
            faults[name] = "required"
    lost = [id for id in wanted.target_ids if ("target_ids", id) not in known]
    return faults | ({"target_ids": f"no such id: {', '.join(lost)}"} if lost else {})


async def _outside(profile_id: str | None, common_name: str, sans: tuple[San, ...]) -> dict[str, str]:
    """What the profile says against the names."""
    rows = await db.fetch(PROFILE, profile_id) if profile_id else []
    every = normalise_sans([common_name, *map(str, sans)] if common_name else map(str, sans))
    refused = check_names(of_row(rows[0]) if rows else DEFAULT, every)
    return {"sans": "; ".join(refused)} if refused else {}


async def _insert(id: str, wanted: Wanted, common_name: str, sans: tuple[San, ...]) -> None:
    now = db.now()
    values = (
        *(common_name, json.dumps([str(san) for san in sans]), wanted.environment),
        *(wanted.owner_id, wanted.team_id, wanted.issuer_id, wanted.renewal_policy_id, wanted.certificate_profile_id),
        *(json.dumps(dict(wanted.tags)), wanted.status, wanted.expires_at, wanted.not_before),
        *(wanted.serial_number, wanted.fingerprint, now, wanted.status is Status.ACTIVE),
    )
    name = wanted.name or common_name or str(sans[0])
    made = await db.fetch(INSERT, id, name, *values)
    if not made and not wanted.name:
        made = await db.fetch(INSERT, id, name := await _free_name(name), *values)
    if not made:
        raise conflict(f"A certificate with the id {id} or the name {name} exists")


async def _free_name(wanted: str) -> str:
    """Return ``wanted``, or the first of ``wanted (2)``, ``wanted (3)`` ... that no certificate has."""
    taken = {row["name"] for row in await db.fetch(TAKEN, wanted, f"{wanted} (", f"{wanted} )")}
    if wanted not in taken:
        return wanted
    return next(name for n in range(2, len(taken) + 3) if (name := f"{wanted} ({n})") not in taken)


async def change(id: str, values: Mapping[str, Any], actor: Actor) -> None:
    """Change what is wanted of a certificate; names, issuer and profile take effect at its next renewal.

    Raises:
        Refused: 400 with every fault, 409 when it is archived or the name is taken.
    """
    async with audited(actor, "certificate_updated", "certificate", id, {"fields": sorted(values)}):
        # Read once nobody else can change it: another change may have come in between.
        await hold([id])
        [row] = await db.fetch(HELD, id)
        if row["archived_at"] is not None:
            raise conflict("The certificate is archived")
        names = await _checked(row, values)
        columns: dict[Column | str, Any] = {"updated_at": db.now()}
        columns.update(names)
        columns.update((name, value) for name, value in values.items() if name not in {*NAMES, "target_ids", "tags"})
        if "tags" in values:
            columns["tags"] = json.dumps(values["tags"])
        await Certificate.update(columns).where(Certificate.id == id)
        if "target_ids" in values:
            await map_targets(id, values["target_ids"], actor)
            await catch_up([id], actor)
        if "renewal_policy_id" in values:
            await time_anew([id])
        await review([id], actor)
        await settle([id], actor=actor)


async def _checked(row: db.Row, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the names if they are to change.

    Raises:
        Refused: 400, what is wanted is not possible.
    """
    after = {**row, **values}
    cn, normal, faults = names_of(after["common_name"], values.get("sans", json.loads(row["sans"])))
    faults |= await _missing(_as_wanted(after, values.get("target_ids", ())))
    if not faults:
        faults |= await _outside(after["certificate_profile_id"], cn, normal)
    if faults:
        raise invalid(faults)
    changed = NAMES & values.keys()
    return {"common_name": cn, "sans": json.dumps([str(san) for san in normal])} if changed else {}


def _as_wanted(row: Mapping[str, Any], target_ids: Sequence[str]) -> Wanted:
    references = {name: row[name] for name in REFERENCES}
    return Wanted(common_name=row["common_name"], sans=(), target_ids=tuple(target_ids), **references)


async def archive(row: db.Row, actor: Actor) -> None:
    """Put a certificate away: its open jobs are called off, but for what a CA or people are still to be told.

    The row stays listed. Twice is a success.
    """
    if row["archived_at"] is not None:
        return
    async with audited(actor, "certificate_archived", "certificate", row["id"]):
        await hold([row["id"]])
        await db.fetch(ARCHIVE, row["id"])
        await call_off([row["id"]])
        its_own = (Job.certificate_id == row["id"]) & Job.type.not_in(list(TELLING))
        await cancel(its_own, actor=actor, reason="the certificate was archived")
        await review([row["id"]], actor)
        await settle([row["id"]], actor=actor)


async def adopt(found: Wanted, actor: Actor) -> str:
    """Manage a certificate that was made elsewhere: it is renewed by us when its time comes.

    Raises:
        Refused: as ``create`` does.
    """
    id, _ = await create(found, actor)
    await record([Event(actor, "certificate_adopted", "certificate", id, {"fingerprint": found.fingerprint})])
    return id
