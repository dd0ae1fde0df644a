"""How an agent comes to exist: by a token that is spent, or by a person's key."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from certctl_server import db
from certctl_server.agents.groups import note_keys
from certctl_server.agents.tables import SCANNER
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.keys import create_key, spend_token
from certctl_server.auth.principal import Principal
from certctl_server.auth.roles import Role
from certctl_server.errors import conflict
from certctl_server.ids import new_id

RESERVED = frozenset({"retired", "tokens", SCANNER})
"""Ids that the API uses for something else."""
ACTORS = frozenset(
    {"system", "anonymous", "admin", "local", "enrolment", "api-key-user", "est-client", "certctl-server"}
)
"""What the audit trail calls others than agents."""
OTHERS = ("et-", "key-")
"""How ids of enrolment tokens and keys begin, which stand for actors as well."""
INSERT = db.Sql(
    """
    INSERT INTO agent (id, name, hostname, os, architecture, ip_address, version, status, registered_at, created_at,
        updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'Offline', {now}, {now}, {now})
    ON CONFLICT DO NOTHING RETURNING id
    """
)
REFRESH = db.Sql(
    """
    UPDATE agent SET hostname = $2, os = $3, architecture = $4, ip_address = $5, version = $6, updated_at = {now}
    WHERE id = $1
    """
)
FIELDS = ("os", "architecture", "ip_address", "version")


async def register(
    values: Mapping[str, str], caller: Principal, actor: Actor, people: Collection[str] = ()
) -> tuple[str, str | None]:
    """Register an agent; return its id and its key, None if it existed and asks with its own key.

    Args:
        values: What it says of itself, its id among that if it chooses one.
        caller: With whose key.
        actor: Who the audit trail says did it.
        people: The names of the environment's keys, which no agent may take.

    Raises:
        Refused: 409 for an id or name that is taken or another actor's, 401 for a token that somebody else has just
            spent.
    """
    id = values.get("id") or new_id("ag")
    if id in RESERVED:
        raise conflict(f"The id {id} is reserved")
    said = [values.get(name, "") for name in FIELDS]
    if caller.role is Role.AGENT:
        if caller.agent_id != id:
            raise conflict(f"An agent with the id {id} exists")
        async with audited(actor, "agent_registered", "agent", id, {"again": True}):
            await db.fetch(REFRESH, id, values["hostname"], *said)
            await note_keys(id, dict(zip(FIELDS, said, strict=True)))
        return id, None
    for word, text in (("id", id), ("name", values["name"])):
        if _is_reserved(text, people):
            raise conflict(f"The {word} {text} is reserved: the audit trail knows somebody else by it")
    async with audited(
        actor, "agent_registered", "agent", id, {"name": values["name"], "hostname": values["hostname"]}
    ):
        if caller.role is Role.ENROLMENT and caller.key_id and not await spend_token(caller.key_id, db.now()):
            raise conflict("The enrolment token was used meanwhile")
        if not await db.fetch(INSERT, id, values["name"], values["hostname"], *said):
            raise conflict(f"An agent with the id {id} or the name {values['name']} exists")
        await note_keys(id, dict(zip(FIELDS, said, strict=True)))
        _, key = await create_key(values["name"], Role.AGENT, agent_id=id)
    return id, key


def _is_reserved(text: str, people: Collection[str]) -> bool:
    folded = text.strip().casefold()
    return folded in ACTORS or folded in {name.casefold() for name in people} or folded.startswith(OTHERS)
