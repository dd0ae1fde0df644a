"""Try again what failed or was called off: one job, or all that match, by the same rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

from certctl_core.job import ORDERS, TELLING, JobState, JobType
from certctl_core.policy import Breach

from certctl_server import db
from certctl_server.audit.record import Actor, Event, record
from certctl_server.bulk import Objection, Selection, Tally
from certctl_server.certificates.orders import Order, place
from certctl_server.certificates.rollout_state import is_held
from certctl_server.certificates.status import hold, settle
from certctl_server.certificates.versions import deploy, fitting
from certctl_server.jobs import bell
from certctl_server.jobs.create import (
    NewJob,
    create,
    deployment_place,
    notification_place,
    order_place,
    revocation_place,
)
from certctl_server.jobs.priorities import NORMAL
from certctl_server.jobs.state import requeue
from certctl_server.jobs.tables import Job
from certctl_server.policies.judge import Breaches, refusal

CHUNK = 500
CHANGED = "What the job was for has changed since: agent, version or order"
# Ids are made in the order of time: of two jobs for the same place the newer one comes first.
PAGE = """SELECT item.id, item.certificate_id FROM job AS item
    WHERE {condition} AND item.status IN ('Failed', 'Cancelled') AND item.id < {last}
    ORDER BY item.id DESC LIMIT {most}"""
OTHERS = "SELECT count(*) AS others FROM job AS item WHERE {condition} AND item.status NOT IN ('Failed', 'Cancelled')"
FACTS = db.Sql(
    """
    SELECT j.*, c.archived_at, c.revoked_at, v.revoked_at AS gone_at, v.not_after
    FROM job j LEFT JOIN certificate c ON c.id = j.certificate_id
        LEFT JOIN certificate_version v ON v.id = j.version_id
    WHERE j.id IN ({ids:$1}) AND j.status IN ('Failed', 'Cancelled') ORDER BY j.id DESC
    """
)
HOLDERS = db.Sql("SELECT place, id FROM job WHERE place IN ({ids:$1})")
SET_PLACES = db.update_rows("job", "id", {"place": "text"})


class Unretried(TypedDict):
    """A job that cannot be tried again."""

    job_id: str
    error: str


class Retries(TypedDict):
    """How many were tried again; every match is one of the three."""

    total_matched: int
    total_retried: int
    total_skipped: int
    total_failed: int
    errors: list[Unretried]


@dataclass(slots=True)
class Outcome:
    """What became of the jobs that were to be tried again."""

    done: dict[str, str] = field(default_factory=dict)
    """By the id of the old job, that of the one that does its work now: the same, or a new one."""
    objections: dict[str, Objection] = field(default_factory=dict)


def place_of(row: Mapping[str, Any]) -> str:
    """Return the place that a job takes while it is open."""
    if row["type"] == JobType.DEPLOYMENT:
        return deployment_place(row["version_id"], row["target_id"])
    if row["type"] in ORDERS:
        return order_place(row["certificate_id"], row["agent_id"])
    asked = json.loads(row["request"])
    if row["type"] == JobType.REVOCATION:
        return revocation_place(row["issuer_id"], asked["serial_number"])
    return (
        notification_place(asked["notification_id"]) if row["type"] == JobType.NOTIFICATION else f"retried|{row['id']}"
    )


async def facts_of(ids: Sequence[str]) -> list[db.Row]:
    """Return the jobs among ``ids`` that failed or were cancelled, newest first, with what is for or against them."""
    return await db.fetch(FACTS, json.dumps(list(ids)))


def objection(row: Mapping[str, Any], holders: Mapping[str, str]) -> Objection | None:
    """Return what speaks against a job: it could not succeed, or another one has its place; ``holders`` by place."""
    if holders.get(place_of(row), row["id"]) != row["id"]:
        return Objection("Another open job of that certificate has its place", settled=True)
    if row["archived_at"] and row["type"] not in TELLING:
        return Objection("The certificate is archived", settled=True)
    if row["type"] in ORDERS and row["revoked_at"] and not json.loads(row["request"]).get("force"):
        return Objection("The certificate is revoked: renew it with force", settled=False)
    if row["type"] == JobType.DEPLOYMENT and (row["gone_at"] or row["not_after"] <= db.now()):
        return Objection("The version is revoked or has expired", settled=False)
    return None


async def retry(rows: Sequence[db.Row], actor: Actor, *, priority: int, holders: dict[str, str]) -> Outcome:
    """Try ``rows`` of ``facts_of`` again, in the present transaction; their certificates are held.

    ``holders`` are jobs that have their place by now or will; what is retried here is added.
    """
    places = json.dumps(sorted({place_of(row) for row in rows}))
    holders |= {row["place"]: row["id"] for row in await db.fetch(HOLDERS, places)}
    outcome = Outcome()
    again: list[db.Row] = []
    anew: list[db.Row] = []
    for row in rows:
        if found := objection(row, holders):
            outcome.objections[row["id"]] = found
            continue
        holders[place_of(row)] = row["id"]
        (anew if row["status"] == JobState.CANCELLED else again).append(row)
    await _again(again, actor, priority, outcome)
    await _anew(anew, actor, priority, outcome)
    await settle({row["certificate_id"] for row in (*again, *anew) if row["certificate_id"]}, actor=actor)
    return outcome


async def _again(rows: Sequence[db.Row], actor: Actor, priority: int, outcome: Outcome) -> None:
    """Put failed jobs back into their queues, with all their tries."""
    if not rows:
        return
    await db.fetch(SET_PLACES, json.dumps([{"id": row["id"], "place": place_of(row)} for row in rows]))
    counted = {"attempts": 0, "failures": 0, "crashes": 0}
    facts: dict[str, Any] = {**counted, "requested_by": actor.name}
    wanted = {"priority": priority, "urgency": priority}
    # A person's order ignores maintenance windows, a deployment does not. What tells keeps its place before all orders.
    more: dict[str, dict[str, Any]] = {
        "order": wanted | {"opens_at": None, "window_at": None},
        "deployment": wanted,
        "telling": {},
    }
    kinds = {row["id"]: _kind(row) for row in rows}
    for kind in sorted(set(kinds.values())):
        ids = [id for id, each in kinds.items() if each == kind]
        for row in await requeue(Job.id.is_in(ids), actor=actor, **facts, **more[kind]):
            outcome.done[row["id"]] = row["id"]
            if row["agent_id"]:
                bell.ring_agent(row["agent_id"])
            if row["lane"]:
                bell.ring(row["lane"])
    for row in rows:
        if row["id"] not in outcome.done:
            outcome.objections[row["id"]] = Objection("The job was moved on by somebody else", settled=True)


def _kind(row: Mapping[str, Any]) -> str:
    return "order" if row["type"] in ORDERS else "telling" if row["type"] in TELLING else "deployment"


async def _anew(rows: Sequence[db.Row], actor: Actor, priority: int, outcome: Outcome) -> None:
    """Make jobs like those that were cancelled."""
    ordered, forbidden = await _order_anew(rows, actor, priority)
    made = [*ordered, *await _deploy_anew(rows, actor), *await _tell_anew(rows, actor)]
    by_place = {job.place: job.id for job in made}
    for row in rows:
        if job_id := by_place.get(place_of(row)):
            outcome.done[row["id"]] = job_id
        elif others := [job.id for job in made if _for_any_agent(row) and job.certificate_id == row["certificate_id"]]:
            outcome.done[row["id"]] = others[0]
        elif row["type"] in ORDERS and row["certificate_id"] in forbidden:
            why = refusal(forbidden[row["certificate_id"]])
            outcome.objections[row["id"]] = Objection(why, settled=False)
        else:
            outcome.objections[row["id"]] = Objection(CHANGED, settled=False)


def _for_any_agent(row: Mapping[str, Any]) -> bool:
    return row["type"] in ORDERS and not row["agent_id"]


async def _order_anew(rows: Sequence[db.Row], actor: Actor, priority: int) -> tuple[list[NewJob], Breaches]:
    """Return the jobs, and what policies have against the certificates that get none."""
    made: list[NewJob] = []
    forbidden: dict[str, Sequence[Breach]] = {}
    asks: list[tuple[list[str], Order]] = []
    sets: dict[tuple[str, bool, bool], list[db.Row]] = {}
    for row in rows:
        if row["type"] not in ORDERS:
            continue
        force = bool(json.loads(row["request"]).get("force"))
        if row["csr_pem"] and not row["agent_id"]:
            # Made by a caller, who has its key: each such order has its own.
            csr = {"csr_pem": row["csr_pem"], "csr_sha256": row["csr_sha256"]}
            own = Order(type=JobType(row["type"]), force=force, priority=priority, **csr)
            asks.append(([row["certificate_id"]], own))
        else:
            sets.setdefault((row["type"], force, bool(row["agent_id"])), []).append(row)
    for (kind, force, agents), some in sets.items():
        only = frozenset((row["certificate_id"], row["agent_id"]) for row in some) if agents else None
        asked = Order(type=JobType(kind), force=force, only=only, priority=priority)
        asks.append(([row["certificate_id"] for row in some], asked))
    for ids, asked in asks:
        placed = await place(ids, asked, actor)
        made += placed.jobs
        forbidden |= placed.forbidden
    return made, forbidden


async def _deploy_anew(rows: Sequence[db.Row], actor: Actor) -> list[NewJob]:
    wanted = {(row["target_id"], row["version_id"]) for row in rows if row["type"] == JobType.DEPLOYMENT}
    if not wanted:
        return []
    certificates = [row["certificate_id"] for row in rows if row["type"] == JobType.DEPLOYMENT]
    fits = [each for each in await fitting(certificates) if (each["target_id"], each["version_id"]) in wanted]
    return await deploy([each for each in fits if not is_held(each)], actor=actor)


async def _tell_anew(rows: Sequence[db.Row], actor: Actor) -> list[NewJob]:
    """What was to be said, to a CA or to people, is still to be said: nothing follows it by itself."""
    made = await create([_like(row) for row in rows if row["type"] in TELLING], actor)
    for lane in {job.lane for job in made}:
        bell.ring(lane)
    return made


def _like(row: db.Row) -> NewJob:
    same = {name: row[name] for name in ("certificate_id", "issuer_id", "lane", "max_attempts")}
    return NewJob(
        type=JobType(row["type"]),
        place=place_of(row),
        priority=row["urgency"],
        due=True,
        request=json.loads(row["request"]),
        **same,
    )


class _Undo(Exception):
    """Ends a transaction without a trace."""


async def retry_all(selection: Selection, actor: Actor, *, dry_run: bool) -> Retries:
    """Try every job again that is selected; with ``dry_run`` only count, by doing and undoing it.

    Whoever was named and is not there is a failure. Each set of jobs is a transaction.
    """
    tally = Tally()
    tally.object(dict.fromkeys(await selection.unknown(), Objection("Job not found", settled=False)))
    condition, bound = selection.condition, selection.bound
    [row] = await db.fetch(db.Sql(OTHERS.format(condition=condition)), *bound.args)
    tally.skipped += row["others"]
    holders: dict[str, str] = {}
    page, args = PAGE.format(condition=condition, last=bound.add("\x7f"), most=bound.add(CHUNK)), bound.args
    while rows := await db.fetch(db.Sql(page), *args):
        args = [*args[:-2], rows[-1]["id"], CHUNK]
        outcome = await _retry_page(rows, actor, holders, dry_run=dry_run)
        tally.done += len(outcome.done)
        tally.object(outcome.objections)
    if not dry_run:
        told = {"retried": tally.done, "skipped": tally.skipped, "failed": tally.failed}
        await record([Event(actor, "jobs_retried", "job", "", told)])
    return cast(Retries, tally.answer("job", "retried"))


async def _retry_page(rows: Sequence[db.Row], actor: Actor, holders: dict[str, str], *, dry_run: bool) -> Outcome:
    outcome = Outcome()
    with suppress(_Undo):
        async with db.transaction():
            await hold(row["certificate_id"] for row in rows if row["certificate_id"])
            facts = await facts_of([row["id"] for row in rows])
            outcome = await retry(facts, actor, priority=NORMAL, holders=holders)
            moved_on = {row["id"] for row in rows} - {row["id"] for row in facts}
            outcome.objections |= dict.fromkeys(moved_on, Objection("The job was moved on", settled=True))
            if dry_run:
                raise _Undo
    return outcome
