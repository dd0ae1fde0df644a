"""Hold certificates against the rules, and keep what breaks them: each breach once, until it is over."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import TypeAlias

from certctl_core.errors import RejectedError
from certctl_core.policy import Act, Breach, Severity, Subject, evaluate

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.status import hold
from certctl_server.errors import Refused
from certctl_server.ids import new_id
from certctl_server.notices.tell import Notice, tell
from certctl_server.policies.rules import Book, book, rules

Breaches: TypeAlias = Mapping[str, Sequence[Breach]]
"""By certificate."""
MANY = 10
"""From more new breaches of one rule on, people are told once and not of each."""
FORBIDDEN = "a policy does not allow it"
#: What ``subject_of`` reads, of certificate ``c`` and its issuer ``i``.
SUBJECT = """c.id, c.name, c.common_name, c.sans, c.environment, c.owner_id, c.team_id, c.tags, c.issuer_id,
    i.type AS issuer_type, c.archived_at, c.revoked_at, c.not_before AS begins_at, c.expires_at"""
SUBJECTS = db.Sql(
    f"SELECT {SUBJECT} FROM certificate c JOIN issuer i ON i.id = c.issuer_id WHERE c.id IN ({{ids:$1}})"  # noqa: S608  # ours
)
ROW = dict.fromkeys(("id", "certificate_id", "rule_id", "message", "severity"), "text") | {"created_at": "timestamptz"}


def _insert(lock: str) -> db.Sql:
    # A rule that is being deleted takes its violations along, these among them.
    columns = ", ".join(ROW)
    return db.with_rows(
        ROW,
        f"""
        INSERT INTO policy_violation ({columns}) SELECT {", ".join(f"row.{name}" for name in ROW)}
        FROM {{row}} JOIN policy_rule r ON r.id = row.rule_id WHERE true {lock} ON CONFLICT DO NOTHING RETURNING id
        """,  # noqa: S608  # names are ours
    )


INSERT = db.Sql(postgres=_insert("FOR KEY SHARE OF r").postgres, sqlite=_insert("").sqlite)
CHANGE = db.update_rows("policy_violation", "id", {"message": "text", "severity": "text"})
RESOLVE = db.Sql(
    """
    UPDATE policy_violation SET resolved_at = {now} WHERE id IN ({ids:$1}) AND resolved_at IS NULL
    RETURNING id, certificate_id, rule_id
    """
)
LATE_NO_MORE = db.Sql(
    """
    SELECT v.id FROM policy_violation v JOIN policy_rule r ON r.id = v.rule_id
    WHERE v.certificate_id IN ({ids:$1}) AND v.resolved_at IS NULL AND r.type = 'RenewalLeadTime'
    """
)
SAY = db.update_rows("certificate", "id", {"last_error": "text"})
UNSAY = db.Sql(
    f"UPDATE certificate SET last_error = '' WHERE id IN ({{ids:$1}}) AND last_error LIKE '{FORBIDDEN}:%'"  # noqa: S608  # ours
)


class Forbidden(RejectedError):
    """A policy does not allow what was ordered."""


@dataclass(slots=True)
class Difference:
    """What is to be written, so that the violations that are open are the breaches that there are."""

    new: list[tuple[db.Row, Breach]] = field(default_factory=list)
    """Each with its certificate."""
    changed: list[dict[str, str]] = field(default_factory=list)
    over: list[db.Row] = field(default_factory=list)
    """Violations."""

    def certificates(self) -> set[str]:
        """Return whose violations these are."""
        return {row["id"] for row, _ in self.new} | {row["certificate_id"] for row in (*self.changed, *self.over)}


def subject_of(row: db.Row) -> Subject:
    """Return the certificate that ``SUBJECT`` read, as rules see it."""
    names = json.loads(row["sans"])
    if row["common_name"] and row["common_name"] not in names:
        names = [row["common_name"], *names]
    return Subject(
        names=tuple(names),
        issuer_id=row["issuer_id"],
        issuer_type=row["issuer_type"],
        environment=row["environment"],
        owner_id=row["owner_id"],
        team_id=row["team_id"],
        tags=json.loads(row["tags"]),
        not_before=row["begins_at"],
        not_after=None if row["revoked_at"] else row["expires_at"],
    )


def breaches_of(found: Book, rows: Iterable[db.Row], now: datetime) -> Breaches:
    """Return what the certificates of ``SUBJECT`` break; what is archived breaks nothing."""
    return {row["id"]: [] if row["archived_at"] else evaluate(found.rules, subject_of(row), now) for row in rows}


def difference(found: Book, rows: Mapping[str, db.Row], breaches: Breaches) -> Difference:
    """Return what is to be written for certificates that break these rules; pure."""
    result = Difference()
    for id, broken in breaches.items():
        left = dict(found.open.get(id, {}))
        for breach in broken:
            known = left.pop(breach.rule.id, None)
            said = {"message": breach.message, "severity": str(breach.rule.severity)}
            if known is None:
                result.new.append((rows[id], breach))
            elif any(known[name] != value for name, value in said.items()):
                result.changed.append({"id": known["violation_id"], "certificate_id": id, **said})
        result.over += left.values()
    return result


async def judge(rows: Iterable[db.Row], actor: Actor) -> Breaches:
    """Note what the certificates of ``SUBJECT`` break now, and what they break no more; return the former.

    In the present transaction, which holds them.
    """
    by_id = {row["id"]: row for row in rows}
    if not by_id:
        return {}
    found = await book(by_id)
    breaches = breaches_of(found, by_id.values(), db.now())
    changes = difference(found, by_id, breaches)
    # Rule before violation, as whoever deletes a rule locks them.
    if changes.new:
        await _begin(changes.new, actor)
    if changes.changed:
        await db.fetch(CHANGE, json.dumps(changes.changed))
    if changes.over:
        await _end([row["violation_id"] for row in changes.over], breaches, actor)
    return breaches


async def review(ids: Iterable[str], actor: Actor) -> Breaches:
    """Do as ``judge`` with certificates as they are once nobody else can change them."""
    wanted = sorted(set(ids))
    async with db.transaction():
        await hold(wanted)
        return await judge(await db.fetch(SUBJECTS, json.dumps(wanted)), actor)


async def refresh(rows: Sequence[db.Row]) -> None:
    """``review`` those certificates of ``SUBJECT`` of which something is to be written; nobody waits for the others."""
    by_id = {row["id"]: row for row in rows}
    if not by_id:
        return
    found = await book(by_id)
    if stale := difference(found, by_id, breaches_of(found, rows, db.now())).certificates():
        await review(stale, SYSTEM)


async def renewed(ids: Iterable[str]) -> None:
    """Note that certificates, which the caller holds, have a new version: none of them is late any more."""
    rows = await db.fetch(LATE_NO_MORE, json.dumps(list(ids)))
    if rows:
        await _end([row["id"] for row in rows], {}, SYSTEM)


async def _begin(new: Sequence[tuple[db.Row, Breach]], actor: Actor) -> None:
    now = str(db.now())
    found = {new_id("pv"): each for each in new}
    rows = [
        {
            "id": id,
            "certificate_id": row["id"],
            "rule_id": breach.rule.id,
            "message": breach.message,
            "severity": breach.rule.severity,
            "created_at": now,
        }
        for id, (row, breach) in found.items()
    ]
    made = {row["id"] for row in await db.fetch(INSERT, json.dumps(rows))}
    by_rule: dict[str, list[Notice]] = defaultdict(list)
    events = []
    for row in rows:
        if row["id"] in made:
            certificate, breach = found[row["id"]]
            told = {"violation_id": row["id"], **{name: row[name] for name in ("rule_id", "severity", "message")}}
            events.append(Event(actor, "policy_violation_detected", "certificate", certificate["id"], told))
            by_rule[breach.rule.id].append(_notice(row["id"], certificate, breach))
    await record(events)
    await tell(*(notice for id, notices in by_rule.items() for notice in _few(id, notices)))


def _notice(id: str, certificate: db.Row, breach: Breach) -> Notice:
    text = f"{certificate['name']} violates the policy {breach.rule.name}: {breach.message}"
    return Notice("PolicyViolation", certificate["id"], "Policy violated", text, _loudness(breach.rule.severity), id)


def _few(rule_id: str, notices: Sequence[Notice]) -> Sequence[Notice]:
    """One word, once a day, for many: a new rule in a big inventory is not thousands of messages."""
    if len(notices) <= MANY:
        return notices
    text = f"many certificates violate the rule {rule_id}, which lists them; for example: {notices[0].message}"
    occurrence = f"{rule_id}|{db.now():%Y-%m-%d}"
    return [Notice("PolicyViolation", "", "Policy violated by many", text, notices[0].severity, occurrence)]


def _loudness(severity: Severity) -> str:
    return "warning" if severity is Severity.WARNING else "critical"


async def _end(ids: Sequence[str], breaches: Breaches, actor: Actor) -> None:
    rows = await db.fetch(RESOLVE, json.dumps(ids))
    await record(
        Event(
            actor,
            "policy_violation_resolved",
            "certificate",
            row["certificate_id"],
            {"violation_id": row["id"], "rule_id": row["rule_id"]},
        )
        for row in rows
    )
    free = {row["certificate_id"] for row in rows if not obstacles(breaches.get(row["certificate_id"], ()), Act.ORDER)}
    if free:
        await db.fetch(UNSAY, json.dumps(sorted(free)))


def obstacles(breaches: Iterable[Breach], act: Act) -> list[Breach]:
    """Return those that forbid ``act``."""
    return [breach for breach in breaches if breach.rule.blocks(act)]


def against(breaches: Breaches, act: Act) -> dict[str, list[Breach]]:
    """Return what forbids ``act``, of those certificates for which something does."""
    return {id: found for id, broken in breaches.items() if (found := obstacles(broken, act))}


def refusal(broken: Iterable[Breach]) -> str:
    """Return why something is forbidden, in one line."""
    return f"{FORBIDDEN}: " + "; ".join(f"{breach.rule.name}: {breach.message}" for breach in broken)


def refused(broken: Iterable[Breach]) -> Refused:
    """Return the 400 that names every field of the certificate that breaks a rule, and the rule."""
    faults: dict[str, str] = {}
    for breach in broken:
        for fault in breach.faults:
            text = f"{fault.message} (policy {breach.rule.name})"
            faults[fault.field] = f"{faults[fault.field]}; {text}" if fault.field in faults else text
    return Refused(HTTPStatus.BAD_REQUEST, "A policy does not allow this", faults)


async def say(why: Breaches) -> None:
    """Let certificates say why nothing was ordered for them."""
    if why:
        rows = [{"id": id, "last_error": refusal(broken)} for id, broken in why.items()]
        await db.fetch(SAY, json.dumps(rows))


async def forbidden(act: Act, ids: Iterable[str]) -> dict[str, list[Breach]]:
    """Return what forbids ``act``, of those certificates for which something does; that is then noted.

    One statement while no rule could, and asked together with others. Not for use in a transaction.
    """
    suspects = await _suspects((act, tuple(ids)))
    return against(await review(suspects, SYSTEM), act) if suspects else {}


async def foreseen(act: Act, ids: Iterable[str]) -> dict[str, list[Breach]]:
    """Return the same as ``forbidden``, for whoever does nothing yet: nothing is noted."""
    able = [rule for rule in await rules() if rule.blocks(act)]
    rows = await db.fetch(SUBJECTS, json.dumps(list(ids))) if able else []
    return against(breaches_of(Book(able), rows, db.now()), act)


async def _look(asked: list[tuple[Act, tuple[str, ...]]]) -> list[set[str]]:
    every = await rules()
    able = {act: [rule for rule in every if rule.blocks(act)] for act, _ in asked}
    wanted = sorted({id for act, ids in asked for id in ids if able[act]})
    if not wanted:
        return [set() for _ in asked]
    subjects = {row["id"]: row for row in await db.fetch(SUBJECTS, json.dumps(wanted))}
    now = db.now()
    found: dict[Act, Breaches] = {act: breaches_of(Book(some), subjects.values(), now) for act, some in able.items()}
    return [{id for id in ids if found[act].get(id)} for act, ids in asked]


_suspects = db.Together(_look)
