"""Move rollouts on: send the next wave, halt and put back what fails, end what is through (docs/rollouts.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from certctl_core.job import JobState
from certctl_core.rollout import Progress, Step, next_step

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor, Event, record
from certctl_server.certificates.rollout_state import (
    HALTED,
    ROW,
    RUNNING,
    await_again,
    call_off,
    plan_of,
    progress,
    put,
    put_targets,
    standing,
    takes_part,
    targets_of,
)
from certctl_server.certificates.status import TRIES, hold, settle
from certctl_server.certificates.timing import PUT_BACK
from certctl_server.certificates.versions import CALLED_OFF, deploy, fitting
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.leader import Leadership
from certctl_server.notices.tell import Notice, tell

BATCH = 200
AT_LATEST = timedelta(minutes=10)
"""How often a rollout is looked at that nothing else wakes."""
DUE = db.Sql("SELECT certificate_id FROM rollout WHERE due_at <= {now} ORDER BY due_at LIMIT $1")
NEXT = db.Sql("SELECT min(due_at) AS due_at FROM rollout WHERE due_at IS NOT NULL")
ROLLOUTS = "SELECT r.*, c.name, c.version_id FROM rollout r JOIN certificate c ON c.id = r.certificate_id"
OF = f"{ROLLOUTS} WHERE r.certificate_id IN ({{ids:$1}})"
UNDER_WAY = db.Sql(f"{OF} AND r.status = 'Running'")
HALTED_ONES = db.Sql(f"{OF} AND r.status = 'Halted'")
_FAILED = f"state = 'failed', failures = CASE WHEN failures < {TRIES} THEN {TRIES} ELSE failures END"
GIVEN_UP = db.with_rows(
    ROW,
    f"""
    UPDATE certificate_target SET {_FAILED} FROM {{row}}
    WHERE certificate_target.certificate_id = row.certificate_id AND certificate_target.target_id = row.target_id
    """,  # noqa: S608  # ours
)
ALL_HELD_GIVEN_UP = db.Sql(
    f"""
    UPDATE certificate_target SET {_FAILED} WHERE (certificate_id, target_id) IN (
        SELECT h.certificate_id, h.target_id FROM rollout r JOIN rollout_target h ON h.certificate_id = r.certificate_id
        WHERE r.status = 'Running' AND h.wave IS NULL)
    """  # noqa: S608  # ours
)
ALL_UNDER_WAY = db.Sql(f"{ROLLOUTS} WHERE r.status = 'Running' ORDER BY r.certificate_id")
HALT_ALL = db.Sql("UPDATE rollout SET status = 'Halted', due_at = NULL, reason = $1 WHERE status = 'Running'")
SAY = db.update_rows("certificate", "id", {"last_error": "text"})


@dataclass(frozen=True, slots=True)
class Move:
    """One rollout and the step it takes."""

    rollout: db.Row
    rows: Sequence[db.Row]
    """The targets that take part."""
    step: Step
    now: datetime

    @property
    def certificate_id(self) -> str:
        """Whose rollout it is."""
        return str(self.rollout["certificate_id"])

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The targets whose turn it is, as they are to be written."""
        return [row | {"wave": self.step.wave} for row in self.held[: self.step.send]]

    @property
    def held(self) -> list[db.Row]:
        """The targets whose wave has not begun."""
        return [row for row in self.rows if row["wave"] is None]

    @property
    def wave(self) -> list[db.Row]:
        """The targets of the wave that is under way."""
        return [row for row in self.rows if row["wave"] == self.rollout["wave"]]

    @property
    def failed(self) -> list[db.Row]:
        """The targets that count as failed."""
        return [row for row in self.rows if progress(row, self.now) is Progress.FAILED]


async def advance(leadership: Leadership) -> datetime | None:
    """Take the next step of every rollout that is due; return when the next one is."""
    while True:
        async with leadership.leading():
            ids = [row["certificate_id"] for row in await db.fetch(DUE, BATCH)]
            await take_steps(ids, SYSTEM)
        if len(ids) < BATCH:
            return await db.moment(NEXT)


async def take_steps(ids: Iterable[str], actor: Actor) -> None:
    """Take the next step of the rollouts of these certificates that are not halted, in the present transaction."""
    if not (wanted := sorted(set(ids))):
        return
    now = db.now()
    async with db.transaction():
        await hold(wanted)
        targets = await targets_of(wanted)
        moves = []
        for rollout in await db.fetch(UNDER_WAY, json.dumps(wanted)):
            every = targets[rollout["certificate_id"]]
            step = next_step(plan_of(rollout), standing(rollout, every, now), now)
            moves.append(Move(rollout, [row for row in every if takes_part(row, now)], step, now))
        await _go_on([move for move in moves if not (move.step.halt or move.step.over)], actor)
        await _halt([move for move in moves if move.step.halt])
        await _end([move for move in moves if move.step.over])
        await settle(wanted, now=now, actor=actor)


async def _go_on(moves: Sequence[Move], actor: Actor) -> None:
    await put(
        [
            move.rollout
            | {
                "wave": move.step.wave,
                "passed_at": move.step.passed_at,
                "due_at": min(move.step.look_at or move.now + AT_LATEST, move.now + AT_LATEST),
            }
            for move in moves
        ]
    )
    sent = [row for move in moves for row in move.sent]
    await put_targets(sent)
    await _deploy(sent, "version_id", actor)
    await record(_event(move, "rollout_wave_started", actor, targets=len(move.sent)) for move in moves if move.sent)
    hurried = [move for move in moves if move.step.override]
    await record(_event(move, "rollout_overridden", actor) for move in hurried)
    await tell(*(_overridden(move) for move in hurried))


async def _deploy(rows: Sequence[db.Row], which: str, actor: Actor, **more: Any) -> None:
    """Deploy to the targets of ``rows`` the version that their column ``which`` names."""
    wanted = {(row["certificate_id"], row["target_id"]): row[which] for row in rows}
    fits = await fitting({certificate_id for certificate_id, _ in wanted}) if wanted else []
    chosen = [row for row in fits if (row["certificate_id"], row["target_id"]) in wanted]
    await deploy(
        [row | {"version_id": wanted[row["certificate_id"], row["target_id"]], **more} for row in chosen], actor=actor
    )


async def _halt(moves: Sequence[Move]) -> None:
    """Stop sending; the wave gets back what it had, where that lives and its agent still has the key."""
    waves = [row for move in moves for row in move.wave]
    reached = [row for row in waves if _was_reached(row)]
    back = [row for row in reached if _can_return(row, moves[0].now)]
    jobs = [row["job_id"] for row in waves if row["job_id"]]
    if jobs:
        await cancel(Job.id.is_in(jobs), actor=SYSTEM, reason="the rollout was halted")
        await db.fetch(CALLED_OFF, json.dumps(jobs))
    await put([move.rollout | {"status": HALTED, "due_at": None, "reason": _why(move)} for move in moves])
    await put_targets([row | {"wave": None} for row in waves])
    lacking = [row for move in moves for row in (*move.failed, *move.held)]
    if lacking:
        await db.fetch(GIVEN_UP, json.dumps([{name: row[name] for name in ROW} for row in lacking]))
    # An emergency: what was put in place does not wait for a window to be taken away.
    await _deploy(back, "previous_version_id", SYSTEM, maintenance_windows="[]", **{PUT_BACK: True})
    await record(_halted(move, reached, back) for move in moves)
    if moves:
        await db.fetch(SAY, json.dumps([{"id": move.certificate_id, "last_error": _why(move)} for move in moves]))
    told = "the targets of that wave get back what they had, the others keep what they have"
    await tell(*(_told_of_halt(move.rollout, f"{_why(move)}; {told}") for move in moves))


async def halt_all(reason: str) -> list[Notice]:
    """Halt every rollout that is under way, and put nothing back; return what is to be told of each.

    The caller calls off their deployments, says why on the certificates, and settles them.
    """
    rollouts = await db.fetch(ALL_UNDER_WAY)
    await db.fetch(ALL_HELD_GIVEN_UP)
    await db.fetch(HALT_ALL, reason)
    return [_told_of_halt(rollout, f"{reason}; every target keeps what it has") for rollout in rollouts]


def _was_reached(row: db.Row) -> bool:
    """Whether the new version is in place on a target, or may be: agents say Running before they touch anything."""
    return bool(row["there"] == row["version_id"] or row["job_status"] == JobState.RUNNING)


def _can_return(row: db.Row, now: datetime) -> bool:
    known = row["previous_version_id"] is not None and row["previous_revoked_at"] is None
    return bool(known and row["previous_until"] > now and not row["key_lost"])


def _why(move: Move) -> str:
    names = [row["target_id"] for row in move.failed]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")  # noqa: PLR2004
    return f"the rollout was halted in wave {move.rollout['wave'] + 1}: {shown} failed"


def _halted(move: Move, reached: Sequence[db.Row], back: Sequence[db.Row]) -> Event:
    def names(rows: Sequence[db.Row]) -> list[str]:
        return [row["target_id"] for row in rows if row["certificate_id"] == move.certificate_id]

    left = [name for name in names(reached) if name not in names(back)]
    return _event(move, "rollout_halted", SYSTEM, failed=names(move.failed), put_back=names(back), not_put_back=left)


def _event(move: Move, action: str, actor: Actor, **details: Any) -> Event:
    wave = move.step.wave + 1
    return Event(actor, action, "certificate", move.certificate_id, {"wave": wave, **details})


def _told_of_halt(rollout: db.Row, text: str) -> Notice:
    id = rollout["certificate_id"]
    occurrence = f"{id}|{rollout['version_id']}|{rollout['started_at']}|halted"
    return Notice("DeploymentFailure", id, f"The rollout of {rollout['name']} was halted", text, "critical", occurrence)


def _overridden(move: Move) -> Notice:
    text = "what the targets serve that wait for their wave expires too soon: all of them get the new version now"
    occurrence = f"{move.certificate_id}|{move.rollout['version_id']}|waves"
    subject = f"The waves of {move.rollout['name']} are overridden"
    return Notice("ExpirationWarning", move.certificate_id, subject, text, "critical", occurrence)


async def _end(moves: Sequence[Move]) -> None:
    if moves:
        await call_off(move.certificate_id for move in moves)
        await record(
            _event(move, "rollout_completed", SYSTEM, failed=[row["target_id"] for row in move.failed])
            for move in moves
        )


async def release(certificate_id: str, target_id: str, actor: Actor) -> None:
    """Send a version to one target ahead of its wave, or, with none named, let a halted rollout go on.

    What is asked for is deployed by the caller. Nothing happens where nothing is held back.
    """
    rows = (await targets_of([certificate_id]))[certificate_id]
    held = [row for row in rows if row["version_id"] is not None and row["wave"] is None]
    if target_id:
        chosen = [row for row in held if row["target_id"] == target_id]
        rollouts = await db.fetch(db.Sql(OF), json.dumps([certificate_id])) if chosen else []
        await put_targets([row | {"wave": rollout["wave"]} for row in chosen for rollout in rollouts])
        return
    for rollout in await db.fetch(HALTED_ONES, json.dumps([certificate_id])):
        now = db.now()
        again = [row for row in rows if takes_part(row, now) and progress(row, now) in {Progress.HELD, Progress.FAILED}]
        resumed = {"status": RUNNING, "passed_at": None, "due_at": now, "reason": "", "started_at": now}
        await put([rollout | resumed])
        await put_targets([row | {"wave": None} for row in again])
        # Else what is tried on from an earlier wave would keep its tries, and its time.
        if tried := [row["job_id"] for row in again if row["job_id"]]:
            await cancel(Job.id.is_in(tried), actor=actor, reason="the rollout goes on, and tries anew")
        await await_again(again)
        told = {"wave": rollout["wave"] + 1}
        await record([Event(actor, "rollout_resumed", "certificate", certificate_id, told)])
        await take_steps([certificate_id], actor)
