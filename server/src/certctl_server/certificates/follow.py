"""Let certificates follow a change of their issuer or renewal policy: some at once, the others by a loop.

However many there are, nobody waits for long: each set is a transaction. How far it has come is a row, which outlives
a crash. Until it comes to a certificate, its due moment may be old: ``orders`` looks at the facts.
"""

# ruff: noqa: S608  # column names are ours, values are parameters
from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from certctl_server import db
from certctl_server.audit.record import SYSTEM, Actor
from certctl_server.certificates.status import settle
from certctl_server.certificates.windows import time_anew
from certctl_server.jobs import bell
from certctl_server.leader import Leadership

LOOP = "followers"
SET = 200
"""So many certificates are one transaction, and follow within the request that changes something."""
PAGE = 10_000
"""So many ids are read at once, before the transactions that use them."""
Reference: TypeAlias = Literal["issuer_id", "renewal_policy_id"]
REFERRING = {
    column: db.Sql(f"SELECT id FROM certificate WHERE {column} = $1 AND id > $2 ORDER BY id LIMIT $3")
    for column in ("issuer_id", "renewal_policy_id")
}
BEGIN = db.Sql(
    """
    INSERT INTO follow_up (reference, row_id, reached) VALUES ($1, $2, $3)
    ON CONFLICT (reference, row_id) DO UPDATE SET reached = excluded.reached, round = follow_up.round + 1
    """
)
NEXT = db.Sql("SELECT reference, row_id, reached, round FROM follow_up ORDER BY reference, row_id LIMIT 1")
_STILL = "SELECT 1 AS still FROM follow_up WHERE reference = $1 AND row_id = $2 AND reached = $3 AND round = $4"
# Whoever changes the row again meanwhile waits, and then lets the walk begin anew.
STILL = db.Sql(postgres=f"{_STILL} FOR UPDATE", sqlite=_STILL)
REACHED = db.Sql("UPDATE follow_up SET reached = $3 WHERE reference = $1 AND row_id = $2")
DONE = db.Sql("DELETE FROM follow_up WHERE reference = $1 AND row_id = $2")


async def follow(reference: Reference, id: str, *, actor: Actor = SYSTEM) -> None:
    """Let all certificates follow whose ``reference`` is the row ``id``, in the transaction that changed it.

    Beyond ``SET`` of them, the others follow by the loop.
    """
    ids = await _ids(reference, id, "", SET + 1)
    if len(ids) > SET:
        ids.pop()
        # Before the certificates are held: the loop takes both in this order as well.
        await db.fetch(BEGIN, reference, id, ids[-1])
        bell.poke(LOOP)
    await _settle(reference, ids, actor)


async def look(leadership: Leadership) -> datetime | None:
    """Go on with all walks; none is due at a moment that is known."""
    while rows := await db.fetch(NEXT):
        await _walk(leadership, rows[0])
    return None


async def _walk(leadership: Leadership, row: db.Row) -> None:
    """Walk on for a page, or until somebody lets the walk begin anew."""
    key, reached = (row["reference"], row["row_id"]), row["reached"]
    ids = await _ids(*key, reached, PAGE)
    for start in range(0, len(ids) or 1, SET):
        some = ids[start : start + SET]
        async with leadership.leading():
            if not await db.fetch(STILL, *key, reached, row["round"]):
                return
            await _settle(row["reference"], some, SYSTEM)
            if len(ids) < PAGE and start + SET >= len(ids):
                await db.fetch(DONE, *key)
            else:
                reached = some[-1]
                await db.fetch(REACHED, *key, reached)


async def _ids(reference: Reference, id: str, after: str, most: int) -> list[str]:
    return [row["id"] for row in await db.fetch(REFERRING[reference], id, after, most)]


async def _settle(reference: Reference, ids: Sequence[str], actor: Actor) -> None:
    if not ids:
        return
    if reference == "renewal_policy_id":
        await time_anew(ids)
    await settle(ids, actor=actor)
