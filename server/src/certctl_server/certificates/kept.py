"""CSRs that agents send before there is an order for them: kept for a day, found again by a digest of their names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from hashlib import sha256
from http import HTTPStatus

from certctl_core.csr import CheckedCsr, name_in
from certctl_core.errors import RejectedError
from certctl_core.keys import KeyKind
from certctl_core.names import San, normalise_sans
from certctl_core.profile import check_key

from certctl_server import db
from certctl_server.errors import Refused
from certctl_server.jobs.issue import key_in_use, ordered

KEPT = timedelta(hours=24)
MOST = 20
"""Of one agent."""
FORGET = db.Sql("DELETE FROM kept_csr WHERE agent_id = $1 AND until <= {now}")
KEEP = db.Sql(
    """
    INSERT INTO kept_csr (agent_id, csr_sha256, csr_pem, names_sha256, public_key_sha256, key_algorithm, key_size,
        until)
    SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS INTEGER), {after:$8}
    WHERE (SELECT count(*) FROM kept_csr k WHERE k.agent_id = $1 AND k.csr_sha256 <> $2) < $9
    ON CONFLICT (agent_id, csr_sha256) DO UPDATE SET until = excluded.until RETURNING csr_sha256
    """
)
OF_AGENTS = db.Sql(
    """
    SELECT agent_id, csr_sha256, names_sha256, public_key_sha256, key_algorithm, key_size FROM kept_csr
    WHERE agent_id IN ({ids:$1}) AND until > {now} ORDER BY until
    """
)
NAMES = db.Sql("SELECT id, common_name, sans FROM certificate WHERE id IN ({ids:$1})")
TAKE = db.Sql("DELETE FROM kept_csr WHERE agent_id = $1 AND csr_sha256 = $2 RETURNING csr_sha256, csr_pem")


def digest(names: Iterable[San], other_name: str = "") -> str:
    """Return what tells one set of names from another; ``other_name`` is a common name that is no name of a host."""
    return sha256(json.dumps([other_name, *sorted({str(name) for name in names})]).encode()).hexdigest()


async def keep(agent_id: str, csr: CheckedCsr) -> None:
    """Keep a CSR that fits no waiting order of an agent for a day, should such an order come.

    Raises:
        Refused: 429, the agent has 20 of them.
    """
    other = csr.common_name if csr.common_name and name_in(csr.common_name) is None else ""
    said = (csr.sha256, csr.pem, digest(csr.names, other), csr.public_key_sha256, *csr.key)
    await db.fetch(FORGET, agent_id)
    if not await db.fetch(KEEP, agent_id, *said, KEPT.total_seconds(), MOST):
        message = f"{MOST} CSRs of this agent wait for an order already: send it with its certificate_id"
        headers = {"Retry-After": str(int(KEPT.total_seconds()))}
        raise Refused(HTTPStatus.TOO_MANY_REQUESTS, message, headers=headers)


async def fitting(jobs: Sequence[db.Row]) -> list[tuple[db.Row, db.Row]]:
    """Take the kept CSRs out that fit exactly one of these orders of agents; return order and CSR.

    No signature is verified here: that was done when the CSR came, and is done again before it is signed.
    """
    agents = sorted({job["agent_id"] for job in jobs})
    waiting = await db.fetch(OF_AGENTS, json.dumps(agents)) if agents else []
    if not waiting:
        return []
    of_names = await _by_names(jobs, {row["agent_id"] for row in waiting})
    found = []
    for csr in waiting:
        wanted = of_names[csr["agent_id"], csr["names_sha256"]]
        if len(wanted) == 1 and await _may_have(wanted[0], csr):
            job = wanted.pop()
            found += [(job, taken) for taken in await db.fetch(TAKE, csr["agent_id"], csr["csr_sha256"])]
    return found


async def _by_names(jobs: Sequence[db.Row], agents: set[str]) -> dict[tuple[str, str], list[db.Row]]:
    jobs = [job for job in jobs if job["agent_id"] in agents]
    rows = await db.fetch(NAMES, json.dumps(sorted({job["certificate_id"] for job in jobs})))
    digests = {row["id"]: _names(row) for row in rows}
    found: dict[tuple[str, str], list[db.Row]] = defaultdict(list)
    for job in jobs:
        found[job["agent_id"], digests[job["certificate_id"]]].append(job)
    return found


def _names(row: db.Row) -> str:
    sans = json.loads(row["sans"])
    return digest(normalise_sans([row["common_name"], *sans] if row["common_name"] else sans))


async def _may_have(job: db.Row, csr: db.Row) -> bool:
    try:
        order = await ordered(job["certificate_id"], forced=True)
    except RejectedError:
        return False
    if check_key(order.profile, KeyKind(csr["key_algorithm"], csr["key_size"])):
        return False
    return not await key_in_use(csr["public_key_sha256"], job["certificate_id"])
