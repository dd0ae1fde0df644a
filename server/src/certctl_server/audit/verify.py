"""Walk the audit trail from its first row to its last and say whether anything was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from certctl_core.audit import START, Faults, Link, Walk, is_signed, key_text
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from certctl_server import db
from certctl_server.audit import chain, entries, witness
from certctl_server.audit.archives import Archive, archived
from certctl_server.audit.chain import HEAD_FILE
from certctl_server.audit.entries import link_of
from certctl_server.sealing import Cipher
from certctl_server.settings import Settings

RESTORES = chain.statement(
    "SELECT {texts} FROM audit_event WHERE action = 'database_restored' ORDER BY audit_event.timestamp, id"
)
UNSEALED = db.Sql("SELECT count(*) AS rows FROM audit_event WHERE sequence IS NULL")


@dataclass(slots=True)
class Verdict:
    """What was found. The trail is as it was written if there are no faults."""

    key: str = ""
    """Whose signatures are good: what an export is to be compared with."""
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
    archives: list[Archive] = field(default_factory=list)
    """What older rows went to."""
    restores: list[str] = field(default_factory=list)
    """What restores of the database took away, as the trail itself says."""
    found: Faults = field(default_factory=Faults)

    @property
    def faults(self) -> list[str]:
        """What does not fit, first things first; the first fifty."""
        return self.found.told


async def verify(settings: Settings, cipher: Cipher) -> Verdict:
    """Check every hash, every signature and the head outside the database, in bounded memory.

    Raises:
        MisconfiguredError: the signing key cannot be opened.
    """
    key = (await chain.signing_key(cipher)).public_key()
    found = Verdict(key=key_text(key))
    # Read first: what is sealed meanwhile only makes the chain longer.
    seen = await witness.current(settings.data_dir)
    found.witness = seen.link if seen else None
    found.restores = [_lost(row) for row in await db.fetch(RESTORES)]
    found.archives = await archived(key, found.found)
    await _walk(found, key)
    found.unsealed = (await db.fetch(UNSEALED))[0]["rows"]
    if witness.read(settings.data_dir) is None and (settings.data_dir / HEAD_FILE).exists():
        found.found.add(f"{HEAD_FILE} cannot be read")
    if seen and not is_signed(key, seen.link, seen.signature):
        found.found.add(f"{HEAD_FILE} holds a signature that is not ours")
    if found.witness and found.witness.sequence > found.head.sequence:
        gone = f"rows {found.head.sequence + 1} to {found.witness.sequence}"
        found.found.add(f"{gone}, which {HEAD_FILE} names, are gone")
    return found


def lines(found: Verdict) -> Iterator[str]:
    """Say what was found, for people."""
    yield f"sealed rows: {found.rows}, checkpoints: {found.checkpoints}, not sealed yet: {found.unsealed}"
    for each in found.archives:
        yield f"rows {each.trailer.first} to {each.trailer.last} are in {each.file}, sha256 {each.trailer.digest}"
    yield f"head: {found.head.sequence} {found.head.hash}"
    yield f"head in {HEAD_FILE}: {found.witness.sequence if found.witness else 'none'}"
    yield f"signed by: {found.key}"
    yield from found.restores
    for words in found.faults:
        yield f"FAULT: {words}"
    if found.found.count > len(found.faults):
        yield f"FAULT: and {found.found.count - len(found.faults)} more"


def _lost(row: db.Row) -> str:
    at = chain.texts(row)[1][:19].replace("T", " ")
    try:
        told = json.loads(row["details"])
        places = f"{int(told['sequence'])}, {int(told['seen_sequence']) or 'nothing'} was seen before"
    except (ValueError, KeyError, TypeError):
        # Somebody changed it, which the walk tells.
        places = "nobody can read which"
    return f"restored at {at} UTC: the trail goes on after row {places}"


async def _walk(found: Verdict, key: Ed25519PublicKey) -> None:
    """Follow the rows and, between them, the checkpoints."""
    start = found.archives[-1].trailer.link if found.archives else START
    walk, kept = Walk(start, faults=found.found), found.witness
    async for page in entries.pages(start.sequence, (await entries.extent()).upto):
        for row in page:
            if "signature" in row:
                walk.checkpoint(key, link_of(row), row["signature"])
            else:
                walk.row(row["sequence"], row["previous_hash"], row["hash"], chain.texts(row))
        if kept and page[0]["sequence"] <= kept.sequence <= page[-1]["sequence"]:
            seen = [row["hash"] for row in page if row["sequence"] == kept.sequence]
            if seen and seen[0] != kept.hash:
                found.found.add(f"row {kept.sequence} is not the one that {HEAD_FILE} names")
    walk.end()
    found.rows, found.checkpoints, found.head = walk.rows, walk.checkpoints, walk.head
