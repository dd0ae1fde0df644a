"""Walk the audit trail from its first row to its last and say whether anything was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from certctl_server import db
from certctl_server.audit import chain, witness
from certctl_server.audit.chain import HEAD_FILE, START, Link
from certctl_server.audit.sealer import CHECKPOINT_ROWS
from certctl_server.sealing import Cipher
from certctl_server.settings import Settings

PAGE = 2000
TOLD = 50
ROWS = db.Sql("SELECT * FROM audit_event WHERE sequence > $1 ORDER BY sequence LIMIT $2")
FIRST = db.Sql("SELECT sequence, previous_hash FROM audit_event WHERE sequence IS NOT NULL ORDER BY sequence LIMIT 1")
CHECKPOINTS = db.Sql(
    "SELECT sequence, hash, signature FROM audit_checkpoint WHERE sequence > $1 ORDER BY sequence LIMIT $2"
)
RESTORES = db.Sql(
    "SELECT timestamp, details FROM audit_event WHERE action = 'database_restored' ORDER BY timestamp, id"
)
UNSEALED = db.Sql("SELECT count(*) AS rows FROM audit_event WHERE sequence IS NULL")


@dataclass(slots=True)
class Verdict:
    """What was found. The trail is as it was written if ``faults`` is empty."""

    rows: int = 0
    """Sealed rows that were looked at."""
    unsealed: int = 0
    """Rows that wait for the sealer: nothing protects their order yet."""
    checkpoints: int = 0
    """Signatures that are good."""
    head: Link = START
    """The end of the chain."""
    witness: Link | None = None
    """The head that the file in the data directory holds, if there is one."""
    restores: list[str] = field(default_factory=list)
    """What restores of the database took away, as the trail itself says."""
    faults: list[str] = field(default_factory=list)
    """What does not fit, first things first; no more than ``TOLD``."""

    def fault(self, words: str) -> None:
        """Note a fault."""
        if len(self.faults) < TOLD:
            self.faults.append(words)


async def verify(settings: Settings, cipher: Cipher) -> Verdict:
    """Check every hash, every signature and the head outside the database, in bounded memory.

    Raises:
        MisconfiguredError: the signing key cannot be opened.
    """
    found = Verdict()
    key = (await chain.signing_key(cipher)).public_key()
    # Read first: what is sealed meanwhile only makes the chain longer.
    kept = witness.read(settings.data_dir)
    # What was seen before a restore that is on record is no part of the trail any more.
    current = kept is not None and kept.epoch >= await witness.epoch()
    found.witness = kept.link if kept and current else None
    found.restores = [_lost(row) for row in await db.fetch(RESTORES)]
    await _walk(found, key, await _start(found))
    found.unsealed = (await db.fetch(UNSEALED))[0]["rows"]
    if kept is None and (settings.data_dir / HEAD_FILE).exists():
        found.fault(f"{HEAD_FILE} cannot be read")
    if kept and current and not chain.is_signed(key, kept.link, kept.signature):
        found.fault(f"{HEAD_FILE} holds a signature that is not ours")
    if found.witness and found.witness.sequence > found.head.sequence:
        found.fault(f"rows {found.head.sequence + 1} to {found.witness.sequence}, which {HEAD_FILE} names, are gone")
    return found


def lines(found: Verdict) -> Iterator[str]:
    """Say what was found, for people."""
    yield f"sealed rows: {found.rows}, checkpoints: {found.checkpoints}, not sealed yet: {found.unsealed}"
    yield f"head: {found.head.sequence} {found.head.hash}"
    yield f"head in {HEAD_FILE}: {found.witness.sequence if found.witness else 'none'}"
    yield from found.restores
    for words in found.faults:
        yield f"FAULT: {words}"


def _lost(row: db.Row) -> str:
    told = json.loads(row["details"])
    return (
        f"restored at {row['timestamp']:%Y-%m-%d %H:%M:%S} UTC: the trail goes on after row {told['sequence']},"
        f" {told['seen_sequence'] or 'nothing'} was seen before"
    )


async def _start(found: Verdict) -> Link:
    """What the first row must follow: nothing, or the checkpoint that archived rows have left."""
    rows = await db.fetch(FIRST)
    first = rows[0]["sequence"] if rows else 1
    if first == 1:
        return START
    before = await db.fetch(CHECKPOINTS, first - 2, 1)
    if before and before[0]["sequence"] == first - 1:
        return Link(before[0]["sequence"], before[0]["hash"])
    found.fault(f"rows 1 to {first - 1} are gone")
    return Link(first - 1, rows[0]["previous_hash"])


async def _walk(found: Verdict, key: Ed25519PublicKey, start: Link) -> None:
    """Follow the rows and, beside them, the checkpoints."""
    at, signed = start, max(0, start.sequence - 1)
    kept = {found.witness.sequence: found.witness.hash} if found.witness else {}
    signed = await _checkpoints(found, key, start.sequence, signed, {start.sequence: start.hash})
    while rows := await db.fetch(ROWS, at.sequence, PAGE):
        hashes: dict[int, str] = {}
        for row in rows:
            at = _step(found, at, row)
            hashes[at.sequence] = at.hash
            if kept.get(at.sequence, at.hash) != at.hash:
                found.fault(f"row {at.sequence} is not the one that {HEAD_FILE} names")
        signed = await _checkpoints(found, key, at.sequence, signed, hashes)
    found.head = at
    if at.sequence - signed >= CHECKPOINT_ROWS:
        found.fault(f"rows {signed + 1} to {at.sequence} are not signed")
    for row in await db.fetch(CHECKPOINTS, at.sequence, 1):
        found.fault(f"rows {at.sequence + 1} to {row['sequence']}, which a checkpoint names, are gone")


def _step(found: Verdict, before: Link, row: db.Row) -> Link:
    """Check one row against what it must follow; go on from what it says, so that one change is one fault."""
    found.rows += 1
    sequence = row["sequence"]
    if sequence != before.sequence + 1:
        found.fault(f"rows {before.sequence + 1} to {sequence - 1} are gone")
        before = Link(sequence - 1, row["previous_hash"])
    elif row["previous_hash"] != before.hash:
        found.fault(f"row {sequence} does not follow row {before.sequence}")
    made = chain.follow(Link(before.sequence, row["previous_hash"]), row)
    if made.hash != row["hash"]:
        found.fault(f"row {sequence} ({row['id']}) was changed")
    return Link(sequence, row["hash"])


async def _checkpoints(found: Verdict, key: Ed25519PublicKey, upto: int, signed: int, hashes: dict[int, str]) -> int:
    """Check the checkpoints after ``signed`` up to ``upto``; return the last one's sequence."""
    while rows := [row for row in await db.fetch(CHECKPOINTS, signed, PAGE) if row["sequence"] <= upto]:
        for row in rows:
            link = Link(row["sequence"], row["hash"])
            if link.sequence - signed > CHECKPOINT_ROWS:
                found.fault(f"a checkpoint between rows {signed} and {link.sequence} is gone")
            if not chain.is_signed(key, link, row["signature"]):
                found.fault(f"the checkpoint at row {link.sequence} holds a signature that is not ours")
            elif hashes.get(link.sequence, link.hash) != link.hash:
                found.fault(f"row {link.sequence} is not the one that was signed")
            else:
                found.checkpoints += 1
            signed = link.sequence
    return signed
