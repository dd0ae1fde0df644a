"""The end of the audit trail as it was last seen, kept in the data directory: it knows when the database went back.

An epoch is the life of a database between two restores. The file names the one it was written in; a file of an older
epoch than the database's tells nothing new: that restore was noticed, perhaps by another server.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from certctl_core.audit import Link

from certctl_server import db, files
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.sealing import recall

log = logging.getLogger(__name__)
EPOCH, FIRST_EPOCH = "restore_epoch", 1
HASH_AT = db.Sql(
    """
    SELECT hash FROM audit_event WHERE sequence = $1
    UNION ALL SELECT hash FROM audit_checkpoint WHERE sequence = $1 LIMIT 1
    """
)


@dataclass(frozen=True, slots=True)
class Witness:
    """What the file says."""

    link: Link
    signature: str
    epoch: int = FIRST_EPOCH


async def epoch() -> int:
    """Return the epoch of the open database."""
    return int(await recall(EPOCH) or FIRST_EPOCH)


def read(directory: Path) -> Witness | None:
    """Return what the file in ``directory`` says; None if there is none that can be read."""
    try:
        kept = json.loads((directory / HEAD_FILE).read_text(encoding="utf-8"))
        link = Link(int(kept["sequence"]), str(kept["hash"]))
        return Witness(link, str(kept["signature"]), int(kept.get("epoch", FIRST_EPOCH)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


async def current(directory: Path) -> Witness | None:
    """Return what the file says of the trail that goes on; None if what it saw was before a restore on record."""
    seen = read(directory)
    return seen if seen and seen.epoch >= await epoch() else None


def write(directory: Path, seen: Witness) -> None:
    """Replace the file; if it cannot be written, that is logged and no more."""
    path = directory / HEAD_FILE
    text = {"sequence": seen.link.sequence, "hash": seen.link.hash, "signature": seen.signature, "epoch": seen.epoch}
    try:
        files.replace(path, json.dumps(text) + "\n", mode=0o600)
    except OSError as exc:
        log.warning("the head of the audit trail is not kept", extra={"file": str(path)}, exc_info=exc)


def renew(directory: Path, old: Witness | None, new: Witness | None) -> None:
    """Begin the file of a new epoch; what the old one witnessed stays beside it."""
    if old is not None:
        path = directory / HEAD_FILE
        path.replace(path.with_name(f"{HEAD_FILE}.epoch-{old.epoch}-{old.link.sequence}"))
    if new is not None:
        write(directory, new)


async def holds(seen: Witness, head: Link) -> bool:
    """Whether the open database, whose trail ends with ``head``, still has what was seen of it."""
    known = await epoch()
    if seen.epoch != known:
        return seen.epoch < known
    if seen.link == head:
        return True
    if seen.link.sequence > head.sequence:
        return False
    # Rows that were archived are gone, but their checkpoint stays.
    rows = await db.fetch(HASH_AT, seen.link.sequence)
    return not rows or bool(rows[0]["hash"] == seen.link.hash)
