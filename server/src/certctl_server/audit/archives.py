"""Old rows leave the database for a signed file, and leave a signed record and their last checkpoint behind.

The database lets go of rows that such a record covers and of no others (m0010_audit). A crash in the middle leaves
either everything as it was and a file too many, or a record whose rows the next archive removes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certctl_core.audit import START, Faults, Link, Trailer, is_signed, key_text
from certctl_core.errors import MisconfiguredError
from certctl_sdk import audit_file
from certctl_sdk.audit_file import Line
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from certctl_server import db, files
from certctl_server.audit import chain, export
from certctl_server.audit.entries import Extent, checkpoint, link_of
from certctl_server.audit.record import ON_HOST, Event, record
from certctl_server.audit.sealer import LOCK
from certctl_server.sealing import Cipher

AT_ONCE = 1000
"""Rows that one transaction removes: the server that runs meanwhile has its turn between two."""
PAUSE_SECONDS = 0.02
ALL = db.Sql("SELECT trailer, file FROM audit_archive ORDER BY last_sequence")
KEEP = db.Sql(
    """
    INSERT INTO audit_archive (first_sequence, last_sequence, hash, trailer, file, created_at)
    VALUES ($1, $2, $3, $4, $5, {now})
    """
)
OLDEST = db.Sql("SELECT sequence FROM audit_event WHERE sequence IS NOT NULL ORDER BY sequence LIMIT 1")
NEWER = db.Sql(
    """
    SELECT sequence FROM audit_event WHERE timestamp >= $1 AND sequence IS NOT NULL ORDER BY timestamp, id LIMIT 1
    """
)
CUT = db.Sql("SELECT sequence, hash FROM audit_checkpoint WHERE sequence <= $1 ORDER BY sequence DESC LIMIT 1")
REMOVE = db.Sql("DELETE FROM audit_event WHERE sequence BETWEEN $1 AND $2 RETURNING sequence")
LAST = 2**62
"""More than any place."""


@dataclass(frozen=True, slots=True)
class Archive:
    """What a file took over."""

    trailer: Trailer
    signature: str
    file: str
    """Its name; where it lies is its keeper's business."""


@dataclass(frozen=True, slots=True)
class Archived:
    """What came of an order to archive."""

    archive: Archive | None
    """None: no checkpoint is old enough."""
    removed: int
    """Rows that left the database, those of an earlier archive that a crash had left there among them."""


async def archived(key: Ed25519PublicKey, faults: Faults) -> list[Archive]:
    """Return what was archived, oldest first, up to a record that is not signed; note what does not fit."""
    found: list[Archive] = []
    at = START
    for row in await db.fetch(ALL):
        line = audit_file.read(row["trailer"].encode())
        if line is None or line.trailer is None:
            faults.add(f"the record of {row['file']} cannot be read")
            break
        each = Archive(line.trailer, line.signature, row["file"])
        named = f"the archive of rows {each.trailer.first} to {each.trailer.last}"
        if not is_signed(key, each.trailer, each.signature):
            faults.add(f"{named} holds a signature that is not ours")
            break
        if each.trailer.first != at.sequence + 1:
            faults.add(f"rows {at.sequence + 1} to {each.trailer.first - 1} are in no archive")
        at = each.trailer.link
        if link_of(await checkpoint(at.sequence)) != at:
            faults.add(f"the checkpoint that {named} left behind is gone")
        found.append(each)
    return found


async def archive(cipher: Cipher, before: datetime, directory: Path) -> Archived:
    """Move the rows up to the last checkpoint before a moment into a new file in ``directory``.

    Nothing leaves the database that was not read back from the file and found to be what was sealed.

    Raises:
        MisconfiguredError: the file cannot be written, or the trail is not as it was sealed.
        TransientError: somebody else archives at the same time.
    """
    key, faults = await chain.signing_key(cipher), Faults()
    so_far = await archived(key.public_key(), faults)
    _refuse(faults)
    after = so_far[-1].trailer.link if so_far else START
    removed = await _remove(after.sequence)
    cut = await _cut(before)
    if cut.sequence <= after.sequence:
        return Archived(None, removed)
    path = directory / f"audit-{after.sequence + 1:012}-{cut.sequence:012}.ndjson"
    try:
        made = await _write(path, key, after, cut)
    except OSError as exc:
        raise MisconfiguredError(f"{path} cannot be written: {exc.strerror}") from exc
    await _note(made)
    removed += await _remove(cut.sequence)
    return Archived(made, removed)


async def _cut(before: datetime) -> Link:
    """Return the last checkpoint in front of the first row of ``before`` or later."""
    newer = await db.fetch(NEWER, before)
    rows = await db.fetch(CUT, newer[0]["sequence"] - 1 if newer else LAST)
    return link_of(rows[0] if rows else None)


async def _write(path: Path, key: Ed25519PrivateKey, after: Link, cut: Link) -> Archive:
    with files.draft(path) as draft:
        with draft.open("wb") as file:
            async for part in export.verifiable(key, Extent(after.sequence, cut.sequence)):
                file.write(part)
        with draft.open("rb") as file:
            found = audit_file.verify([file], key_text(key.public_key()))
        _refuse(found.faults)
        if not found.end or not found.end.trailer or (found.first, found.head) != (after.sequence + 1, cut):
            raise MisconfiguredError("the database gave other rows than were asked for: nothing was archived")
        files.put(draft, path)
    return Archive(found.end.trailer, found.end.signature, path.name)


def _refuse(faults: Faults) -> None:
    if faults.count:
        raise MisconfiguredError(
            f"the trail is not as it was sealed, and nothing was archived: {faults.told[0]};"
            " certctl audit verify says all of it"
        )


async def _note(made: Archive) -> None:
    """Keep the record, without which the database lets go of nothing."""
    trailer = made.trailer
    text = audit_file.encode(Line(trailer=trailer, signature=made.signature)).decode()
    facts = {"first": trailer.first, "last": trailer.last, "hash": trailer.hash}
    told = {**facts, "sha256": trailer.digest, "file": made.file}
    async with db.transaction():
        await db.fetch(LOCK)
        await db.fetch(KEEP, *facts.values(), text, made.file)
        await record([Event(ON_HOST, "audit_archived", "audit", f"{trailer.first}-{trailer.last}", told)])


async def _remove(upto: int) -> int:
    """Remove the rows up to a place that an archive covers; return how many there were."""
    removed = 0
    while (rows := await db.fetch(OLDEST)) and rows[0]["sequence"] <= upto:
        first = rows[0]["sequence"]
        last = min(upto, first + AT_ONCE - 1)
        removed += len(await db.fetch(REMOVE, first, last))
        await asyncio.sleep(PAUSE_SECONDS)
    return removed
