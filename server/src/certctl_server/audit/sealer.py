"""Chain committed audit rows, sign the chain from time to time, and keep its head outside the database."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from certctl_core.audit import CHECKPOINT_ROWS, START, Link, sign
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certctl_server import db
from certctl_server.audit import chain, witness
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.audit.witness import Witness
from certctl_server.context import Context
from certctl_server.leader import Leadership

log = logging.getLogger(__name__)
PASS = 2000
CHECKPOINT_AFTER = timedelta(seconds=60)

# One at a time: the second waits here, then sees what the first has chained.
LOCK = db.Sql(postgres="SELECT pg_advisory_xact_lock(7381951)", sqlite="SELECT 1 AS locked")
WAITING = db.Sql("SELECT number FROM audit_event WHERE sequence IS NULL LIMIT 1")
UNSEALED = chain.statement("SELECT {texts} FROM audit_event WHERE sequence IS NULL ORDER BY number LIMIT $1")
HEAD = db.Sql("SELECT sequence, hash FROM audit_event WHERE sequence IS NOT NULL ORDER BY sequence DESC LIMIT 1")
LAST_CHECKPOINT = db.Sql("SELECT sequence, hash, created_at FROM audit_checkpoint ORDER BY sequence DESC LIMIT 1")
WRITE = db.update_rows("audit_event", "id", {"sequence": "bigint", "previous_hash": "text", "hash": "text"})
CHECKPOINT = db.Sql(
    "INSERT INTO audit_checkpoint (sequence, hash, signature, created_at) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (sequence) DO NOTHING"
)


async def seal(ctx: Context, leadership: Leadership) -> datetime | None:
    """Chain the rows that were committed since; return when to look again if there are more than one pass takes.

    Raises:
        NotLeading: another process does it now; nothing was written.
        MisconfiguredError: the signing key cannot be opened.
    """
    sealed = await seal_pass(ctx, leadership)
    return db.now() if sealed == PASS else None


async def seal_pass(ctx: Context, leadership: Leadership) -> int:
    """Chain up to ``PASS`` rows and return how many; errors as ``seal``.

    Rows are chained in the order of their numbers among those that are committed by now.
    """
    if not await db.fetch(WAITING) and not await _checkpoint_is_due(ctx):
        return 0
    key = await chain.signing_key(ctx.cipher)
    async with leadership.leading():
        await db.fetch(LOCK)
        before = await head()
        kept, epoch = witness.read(ctx.settings.data_dir), await witness.epoch()
        unbroken = kept is None or await witness.holds(kept, before)
        rows = await db.fetch(UNSEALED, PASS)
        links = list(_chained(before, rows))
        if rows:
            await db.fetch(WRITE, json.dumps(list(_columns(before, rows, links))))
        await _sign(ctx, key, links or [before])
    if links and unbroken:
        witness.write(ctx.settings.data_dir, Witness(links[-1], sign(key, links[-1]), epoch))
    elif links and kept:
        # The file is the witness that rows are gone: restored.py looks into that.
        told = {"file": str(ctx.settings.data_dir / HEAD_FILE), "was": kept.link.sequence, "is": before.sequence}
        log.error("the audit trail is not the one that was seen before: verify it", extra=told)
    return len(links)


async def head() -> Link:
    """Return the end of the chain in the database."""
    # Rows that were archived leave their last checkpoint behind, and the chain goes on from there.
    found = await db.fetch(HEAD) or await db.fetch(LAST_CHECKPOINT)
    return Link(found[0]["sequence"], found[0]["hash"]) if found else START


def _chained(before: Link, rows: Sequence[db.Row]) -> Iterator[Link]:
    for row in rows:
        before = chain.follow(before, row)
        yield before


def _columns(before: Link, rows: Sequence[db.Row], links: Sequence[Link]) -> Iterator[dict[str, Any]]:
    for row, previous, link in zip(rows, [before, *links], links, strict=False):
        yield {"id": row["id"], "sequence": link.sequence, "previous_hash": previous.hash, "hash": link.hash}


async def _checkpoint_is_due(ctx: Context) -> bool:
    """Whether rows that nothing was chained after have waited for a signature long enough."""
    last = await db.fetch(LAST_CHECKPOINT)
    if not last or ctx.clock() - last[0]["created_at"] < CHECKPOINT_AFTER:
        return False
    return (await head()).sequence > int(last[0]["sequence"])


async def _sign(ctx: Context, key: Ed25519PrivateKey, links: Sequence[Link]) -> None:
    """Sign what lies too far behind the last checkpoint, in rows or in time."""
    found = await db.fetch(LAST_CHECKPOINT)
    signed, at = (found[0]["sequence"], found[0]["created_at"]) if found else (0, datetime.min.replace(tzinfo=UTC))
    now = ctx.clock()
    for link in links:
        late = link is links[-1] and link.sequence > signed and now - at >= CHECKPOINT_AFTER
        if late or link.sequence >= signed + CHECKPOINT_ROWS:
            await db.fetch(CHECKPOINT, link.sequence, link.hash, sign(key, link), now)
            signed = link.sequence
