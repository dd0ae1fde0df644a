"""When maintenance windows let a job start, and who is told where an expiry overrides them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from certctl_core.job import ORDERS, JobType
from certctl_core.windows import start_at

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.jobs import bell
from certctl_server.jobs.create import NewJob
from certctl_server.notices.tell import Notice, tell
from certctl_server.rules.windows import of_text

LOOP = "maintenance windows"
"""The loop that looks at jobs again when ``window_at`` has come."""
PUT_BACK = "put_back"
"""In a deployment's request: it takes away what a halted rollout brought, and waits for no window."""
NAMES = db.Sql("SELECT id, name FROM certificate WHERE id IN ({ids:$1})")


@dataclass(frozen=True, slots=True)
class Expiring:
    """What a job is to replace, or to bring where nothing is."""

    version: str
    """The version's id; of a certificate that was made elsewhere its end."""
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Overriding:
    """A job that starts outside of maintenance windows because of what is about to expire."""

    job_id: str
    type: JobType
    certificate_id: str
    expiring: Expiring


class Held(TypedDict):
    """Columns of a job, as ``jobs/tables.py`` explains them."""

    opens_at: datetime | None
    window_at: datetime | None


def timed(type_: JobType, windows: str, expiring: Expiring | None, now: datetime) -> tuple[Held, bool]:
    """Return when a job may start, and whether it may only because an expiry is near; ``windows`` are the policy's."""
    start = start_at(of_text(windows), now, expires_at=expiring.expires_at if expiring else None)
    opens_at, window_at = start.opens_at, start.closes_at
    if type_ in ORDERS and opens_at is not None and opens_at > now:
        # An agent takes what it is offered by itself; an order is sent to it when the window begins.
        window_at = opens_at
    return Held(opens_at=opens_at, window_at=window_at), start.overrides


def replaced_on_target(row: db.Row) -> Expiring:
    """Return what expires first: what is on a target, or what is to be brought there (a row of ``fitting``)."""
    coming = Expiring(row["version_id"], row["not_after"])
    if row["there_until"] is None:
        return coming
    return min(Expiring(row["there"] or "", row["there_until"]), coming, key=lambda each: each.expires_at)


def replaced_by_order(
    version_id: str | None, not_after: datetime | None, expires_at: datetime | None
) -> Expiring | None:
    """Return what an order replaces: the agent's version, else a certificate that was made elsewhere."""
    if version_id is not None and not_after is not None:
        return Expiring(version_id, not_after)
    return Expiring(expires_at.isoformat(), expires_at) if expires_at else None


async def announce_new(jobs: Sequence[NewJob], overriding: Mapping[str, Expiring]) -> None:
    """``announce`` jobs that were just made; ``overriding`` are those of them that override windows, by id."""
    await announce(
        (Held(opens_at=job.opens_at, window_at=job.window_at) for job in jobs),
        (
            Overriding(job.id, job.type, str(job.certificate_id), overriding[job.id])
            for job in jobs
            if job.id in overriding
        ),
    )


async def announce(held: Iterable[Held], overriding: Iterable[Overriding]) -> None:
    """Wake the loop for jobs that are held to windows, and say loudly which windows an expiry overrides.

    Each job is audited, people are told once for each version that expires.
    """
    if any(each["window_at"] for each in held):
        bell.poke(LOOP)
    if not (jobs := list(overriding)):
        return
    wanted = json.dumps(sorted({job.certificate_id for job in jobs}))
    names = {row["id"]: row["name"] for row in await db.fetch(NAMES, wanted)}
    await record(_event(job) for job in jobs)
    # What was made elsewhere has no version but its end, which others may share.
    told = {(job.certificate_id, job.expiring.version): _notice(job, names[job.certificate_id]) for job in jobs}
    await tell(*told.values())


def _event(job: Overriding) -> Event:
    details = {
        "certificate_id": job.certificate_id,
        "type": str(job.type),
        "version": job.expiring.version,
        "expires_at": job.expiring.expires_at.isoformat(),
    }
    return Event(SYSTEM, "maintenance_windows_overridden", "job", job.job_id, details)


def _notice(job: Overriding, name: str) -> Notice:
    until = f"{job.expiring.expires_at:%Y-%m-%d %H:%M} UTC"
    return Notice(
        type="ExpirationWarning",
        certificate_id=job.certificate_id,
        subject="Maintenance windows are overridden",
        message=f"The {str(job.type).lower()} of {name} starts outside of them: the certificate expires on {until}",
        severity="critical",
        occurrence=f"{job.certificate_id}|{job.expiring.version}|outside",
    )
