"""A database that went back in time is noticed, and nothing is signed or deployed twice because of it.

See docs/decisions/013-restore-epoch.md. Noticed it is by what the data directory has seen of the audit trail, or,
where a dump was read into another database, by PostgreSQL itself.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from certctl_core.audit import sign
from certctl_core.job import JobType

from certctl_server import db, tally
from certctl_server.audit import chain, sealer, witness
from certctl_server.audit.record import SYSTEM, Event, record
from certctl_server.audit.witness import EPOCH, Witness
from certctl_server.certificates.rollout import halt_all
from certctl_server.certificates.status import hold_of, settle
from certctl_server.certificates.versions import CALLED_OFF
from certctl_server.context import Context
from certctl_server.jobs.intents import RESTORED
from certctl_server.jobs.state import cancel
from certctl_server.jobs.tables import Job
from certctl_server.leader import NAME, Leadership, NotLeading
from certctl_server.notices.tell import tell
from certctl_server.sealing import Cipher, recall
from certctl_server.settings import Settings

log = logging.getLogger(__name__)
ELSEWHERE = "PostgreSQL says that this is another database than the one that was used before"
WENT_BACK = "the audit trail lacks what was seen of it before"
CALLED_OFF_BY = "the database was restored: look at what the target serves, then deploy again"
IDENTITY = "database_identity"
CHUNK = 2000
"""Certificates that are settled by one set of statements."""
# One at a time; others then see that it was noticed.
LOCK = db.Sql(postgres="SELECT pg_advisory_xact_lock(7381952)", sqlite="SELECT 1 AS locked")
KEEP = db.Sql(
    "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
# The same after a crash and on a standby; another one where a dump was read in. A file says nothing of the kind.
WHO = db.Sql(
    postgres="""
    SELECT (SELECT system_identifier FROM pg_control_system()) || '/'
        || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || 'audit_event'::regclass::oid AS id
    """,
    sqlite="SELECT '' AS id",
)
# Numbers that grow by one could meet themselves again. Seconds since 1970 are ahead of all that were given before.
_AHEAD = "CASE WHEN {0} >= $1 THEN {0} + 1 ELSE $1 END"
LEADER = db.Sql(
    f"""
    INSERT INTO lease (name, epoch) VALUES ('{NAME}', $1)
    ON CONFLICT (name) DO UPDATE SET epoch = {_AHEAD.format("lease.epoch")}, lease_until = NULL
    """  # noqa: S608  # ours
)
FENCES = db.Sql(f"UPDATE job SET fence = {_AHEAD.format('fence')} WHERE place IS NOT NULL")  # noqa: S608  # ours
DOUBT = db.Sql("UPDATE intent SET reason = $1 WHERE status = 'open'")
DOUBTED = db.Sql(
    """
    INSERT INTO intent (
        job_id, number, issuer_id, certificate_id, csr_sha256, public_key_sha256, status, reason, created_at)
    SELECT j.id, coalesce((SELECT max(number) FROM intent i WHERE i.job_id = j.id), 0) + 1, j.issuer_id,
        j.certificate_id, j.csr_sha256, '', 'open', $1, j.created_at
    FROM job j WHERE j.place IS NOT NULL AND j.type IN ('Issuance', 'Renewal')
        AND NOT EXISTS (SELECT 1 FROM intent i WHERE i.job_id = j.id AND i.status = 'open')
    """
)
IN_DOUBT = db.Sql("SELECT count(*) AS n FROM intent WHERE status = 'open'")
SAY = db.Sql("UPDATE certificate SET last_error = $2 WHERE id IN ({ids:$1})")
UNSENT = db.Sql(
    """
    UPDATE notification SET status = 'dead', next_retry_at = NULL,
        error = 'the database was restored: nobody knows whether this was sent'
    WHERE status IN ('pending', 'failed') RETURNING id
    """
)
TOKENS = db.Sql("UPDATE enrolment_token SET expires_at = {now} WHERE expires_at > {now} RETURNING id")
LOGINS = db.Sql("DELETE FROM login RETURNING digest")


@dataclass(frozen=True, slots=True)
class Opened:
    """A new epoch."""

    epoch: int
    old: Witness | None
    new: Witness | None
    """For the data directory, once the database is the one in use."""

    def keep(self, settings: Settings) -> None:
        """Let the data directory know."""
        witness.renew(settings.data_dir, self.old, self.new)


async def notice(settings: Settings, cipher: Cipher) -> bool:
    """Compare the open database with what was seen of it before; open a new epoch if it went back.

    Return whether it did. Several processes may ask at once.

    Raises:
        MisconfiguredError: the signing key of the audit trail cannot be opened.
    """
    seen, identity = witness.read(settings.data_dir), await _identity()
    if not await _why(seen, identity):
        if identity != await recall(IDENTITY):
            await db.fetch(KEEP, IDENTITY, identity)
        return False
    async with db.transaction():
        await db.fetch(LOCK)
        why = await _why(seen, identity)
        opened = await _open(why, seen, identity, cipher) if why else None
    if opened is not None:
        opened.keep(settings)
    return opened is not None


async def declare(settings: Settings, cipher: Cipher, why: str) -> Opened:
    """Open a new epoch because somebody says so; the caller lets the data directory know."""
    seen, identity = witness.read(settings.data_dir), await _identity()
    async with db.transaction():
        await db.fetch(LOCK)
        return await _open(why, seen, identity, cipher)


async def watch(ctx: Context, leadership: Leadership) -> datetime | None:
    """The loop ``restores``: notice what happens to a database under running servers.

    Raises:
        NotLeading: there is a new epoch, and this process no longer leads.
    """
    async with leadership.leading():
        pass
    if await notice(ctx.settings, ctx.cipher):
        raise NotLeading("the database was restored")
    return None


async def _identity() -> str:
    with suppress(asyncpg.PostgresError):  # not everybody may ask everywhere
        return str((await db.fetch(WHO))[0]["id"])
    return ""


async def _why(seen: Witness | None, identity: str) -> str:
    """Why the database must be taken for restored; empty if nothing speaks for it."""
    head = await sealer.head()
    if seen is not None and not await witness.holds(seen, head):
        return WENT_BACK
    known = await recall(IDENTITY)
    moved = bool(known and identity and known != identity)
    # A move that lost nothing is none: the end of the trail is where it was left.
    return ELSEWHERE if moved and (seen is None or seen.link != head) else ""


async def _open(why: str, seen: Witness | None, identity: str, cipher: Cipher) -> Opened:
    epoch = max(await witness.epoch(), seen.epoch if seen else 0) + 1
    head, now = await sealer.head(), int(db.now().timestamp())
    await db.fetch(KEEP, EPOCH, str(epoch))
    await db.fetch(KEEP, IDENTITY, identity)
    await db.fetch(LEADER, now)
    done = await _nothing_twice()
    await db.fetch(FENCES, now)
    done["tokens_ended"] = len(await db.fetch(TOKENS))
    # A dump that was read into a schema that counts along has counted twice.
    done["totals_corrected"] = len(await tally.recount())
    done["logins_ended"] = len(await db.fetch(LOGINS))
    told = {"epoch": epoch, "why": why, "sequence": head.sequence}
    told |= {"seen_sequence": seen.link.sequence, "seen_hash": seen.link.hash} if seen else {"seen_sequence": 0}
    await record([Event(SYSTEM, "database_restored", "database", str(epoch), told | done)])
    log.error("the database was restored: read docs/backup.md", extra=told | done)
    signature = sign(await chain.signing_key(cipher), head)
    return Opened(epoch, seen, Witness(head, signature, epoch) if head.sequence else None)


async def _nothing_twice() -> dict[str, Any]:
    """Call off what may have been done already; what was to be signed is first asked after by the runner."""
    deployments = (Job.type == JobType.DEPLOYMENT) & Job.place.is_not_null()
    messages = (Job.type == JobType.NOTIFICATION) & Job.place.is_not_null()
    await hold_of(deployments)
    gone = await cancel(deployments, actor=SYSTEM, reason=CALLED_OFF_BY)
    ids = json.dumps([row["id"] for row in gone])
    # Else the next wave would send the same older version, and what was called off be put back.
    halted = await halt_all(CALLED_OFF_BY)
    certificates = sorted({*(notice.certificate_id for notice in halted), *(row["certificate_id"] for row in gone)})
    await db.fetch(CALLED_OFF, ids)
    await db.fetch(SAY, json.dumps(certificates), CALLED_OFF_BY)
    for start in range(0, len(certificates), CHUNK):
        await settle(certificates[start : start + CHUNK])
    await db.fetch(DOUBT, RESTORED)
    await db.fetch(DOUBTED, RESTORED)
    await cancel(messages, actor=SYSTEM, reason="the database was restored")
    unsent = len(await db.fetch(UNSENT))
    # Only now: these are of after the restore.
    await tell(*halted)
    return {
        "deployments_called_off": len(gone),
        "rollouts_halted": len(halted),
        "orders_in_doubt": (await db.fetch(IN_DOUBT))[0]["n"],
        "messages_called_off": unsent,
    }
