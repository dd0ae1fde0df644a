"""Renew, revoke or hand over all certificates that match: each by the rules of one, in sets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict, cast

from certctl_core.job import JobType
from certctl_core.policy import Act, Breach

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.bulk import TOLD, Answer, Objection, Selection, Tally, carry_out
from certctl_server.certificates.act import RENEWABLE, kind_of_order, unrenewable
from certctl_server.certificates.orders import Order, place
from certctl_server.certificates.revoke import REVOCABLE, Revocation, revoke_held, unrevocable
from certctl_server.certificates.status import hold
from certctl_server.policies.judge import Breaches, foreseen, refusal, review

KIND = "Certificate"
UNDER_WAY = Objection("A renewal is under way", settled=True)
IMPOSSIBLE = Objection("Nothing can be ordered for it", settled=False)
OWNED = db.Sql("SELECT id, archived_at, owner_id, team_id FROM certificate WHERE id IN ({ids:$1}) ORDER BY id")
REASSIGN = db.Sql(
    """
    UPDATE certificate SET owner_id = $2, team_id = coalesce(nullif($3, ''), team_id), updated_at = {now}
    WHERE id IN ({ids:$1})
    """
)
Judge: TypeAlias = Callable[[db.Row], Objection | None]
Do: TypeAlias = Callable[[list[db.Row]], Awaitable[Mapping[str, Objection]]]
"""Does, or for a dry run foresees, what is wanted with certificates that nothing in their rows speaks against.

Returns those for which it comes to nothing."""


class Unacted(TypedDict):
    """A certificate with which nothing could be done, and why."""

    certificate_id: str
    error: str


class Counts(TypedDict):
    """Every match was acted on, skipped or failed."""

    total_matched: int
    total_skipped: int
    total_failed: int
    errors: list[Unacted]
    reasons: dict[str, int]
    """How many were left alone, by why."""


class Enqueued(TypedDict):
    """A job that renews a certificate."""

    certificate_id: str
    job_id: str


class Renewals(Counts):
    """What was ordered."""

    total_enqueued: int
    enqueued_jobs: list[Enqueued]


class Revocations(Counts):
    """How many were revoked."""

    total_revoked: int


class Reassignments(Counts):
    """How many have another owner or team now."""

    total_reassigned: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Which certificates, by whom, and whether only to count."""

    selection: Selection
    actor: Actor
    dry_run: bool = False


async def renew_all(asked: Asked) -> Renewals:
    """Order a renewal of every certificate that is selected and can be renewed now, whatever its window says."""
    jobs: list[Enqueued] = []

    def judge(row: db.Row) -> Objection | None:
        if row["archived_at"] is None and row["open_orders"]:
            return UNDER_WAY
        why = unrenewable(row)
        return Objection(why, settled=row["archived_at"] is not None) if why else None

    async def do(rows: list[db.Row]) -> Mapping[str, Objection]:
        made, forbidden = await _order(rows, asked.actor)
        told: list[Enqueued] = [{"certificate_id": id, "job_id": job_id} for id, ids in made.items() for job_id in ids]
        jobs.extend(told[: TOLD - len(jobs)])
        why = _against_policy(forbidden)
        return {row["id"]: why.get(row["id"], IMPOSSIBLE) for row in rows if row["id"] not in made}

    async def foresee(rows: list[db.Row]) -> Mapping[str, Objection]:
        return _against_policy(await foreseen(Act.ORDER, [row["id"] for row in rows]))

    tally = await _in_sets(asked, RENEWABLE, judge, foresee if asked.dry_run else do)
    return cast(Renewals, {**await _told(asked, tally, "enqueued", "certificates_renewed"), "enqueued_jobs": jobs})


def _against_policy(forbidden: Breaches) -> dict[str, Objection]:
    return {id: Objection(refusal(broken), settled=False) for id, broken in forbidden.items()}


async def _order(rows: Sequence[db.Row], actor: Actor) -> tuple[Mapping[str, list[str]], Breaches]:
    """Order renewals, or what was never issued; return the jobs of each certificate that got some, and what forbids."""
    wanted: dict[JobType, list[str]] = defaultdict(list)
    for row in rows:
        wanted[kind_of_order(row)].append(row["id"])
    made: dict[str, list[str]] = defaultdict(list)
    forbidden: dict[str, Sequence[Breach]] = {}
    for type_, ids in wanted.items():
        placed = await place(ids, Order(type=type_), actor)
        forbidden |= placed.forbidden
        for job in placed.jobs:
            made[str(job.certificate_id)].append(job.id)
    await record(Event(actor, "renewal_triggered", "certificate", id, {"force": False}) for id in made)
    return made, forbidden


async def revoke_all(asked: Asked, revocation: Revocation) -> Revocations:
    """Revoke every certificate that is selected and can be."""

    async def do(rows: list[db.Row]) -> Mapping[str, Objection]:
        await revoke_held(rows, revocation)
        return {}

    judge = lambda row: unrevocable(row, revocation.reason)  # noqa: E731
    tally = await _in_sets(asked, REVOCABLE, judge, _foresee_nothing if asked.dry_run else do)
    return cast(Revocations, await _told(asked, tally, "revoked", "certificates_revoked", reason=revocation.reason))


async def reassign_all(asked: Asked, owner_id: str, team_id: str) -> Reassignments:
    """Give every certificate that is selected to an owner, and to a team unless ``team_id`` is empty."""
    wanted = {"owner_id": owner_id} | ({"team_id": team_id} if team_id else {})

    def judge(row: db.Row) -> Objection | None:
        if row["archived_at"] is not None:
            return Objection("The certificate is archived", settled=True)
        if all(row[name] == value for name, value in wanted.items()):
            return Objection("It is theirs already", settled=True)
        return None

    async def do(rows: list[db.Row]) -> Mapping[str, Objection]:
        ids = [row["id"] for row in rows]
        await db.fetch(REASSIGN, json.dumps(ids), owner_id, team_id)
        told = {"fields": sorted(wanted), **wanted}
        await record(Event(asked.actor, "certificate_updated", "certificate", id, told) for id in ids)
        await review(ids, asked.actor)
        return {}

    tally = await _in_sets(asked, OWNED, judge, _foresee_nothing if asked.dry_run else do)
    return cast(Reassignments, await _told(asked, tally, "reassigned", "certificates_reassigned", **wanted))


async def _foresee_nothing(rows: list[db.Row]) -> Mapping[str, Objection]:  # noqa: ARG001  # as every Do
    return {}


async def _in_sets(asked: Asked, facts: db.Sql, judge: Judge, do: Do) -> Tally:
    async def looked_at(ids: list[str]) -> Mapping[str, Objection]:
        rows = await db.fetch(facts, json.dumps(ids))
        objections = {row["id"]: found for row in rows if (found := judge(row))}
        able = [row for row in rows if row["id"] not in objections]
        return {**objections, **await do(able)} if able else objections

    async def act(ids: list[str]) -> Mapping[str, Objection]:
        if asked.dry_run:
            return await looked_at(ids)
        async with db.transaction():
            # Judged once nobody else can change them.
            await hold(ids)
            return await looked_at(ids)

    return await carry_out(asked.selection, KIND, act)


async def _told(asked: Asked, tally: Tally, verb: str, action: str, **details: str) -> Answer:
    """Return the answer, once the trail says what was asked and what came of it."""
    if not asked.dry_run:
        counts = {verb: tally.done, "skipped": tally.skipped, "failed": tally.failed}
        await record([Event(asked.actor, action, "certificate", "", {**details, **counts})])
    return {**tally.answer("certificate", verb), "reasons": dict(tally.reasons)}
