"""How an agent comes to exist: by a token that is spent, or by a person's key."""

from __future__ import annotations

from collections.abc import Mapping

from certctl_server import db
from certctl_server.audit.record import Actor, audited
from certctl_server.auth.keys import create_key, spend_token
from certctl_server.auth.principal import Principal
from certctl_server.auth.roles import Role
from certctl_server.errors import conflict
from certctl_server.ids import new_id

RESERVED = frozenset({"retired", "tokens", "server-scanner"})
"""Ids that the API uses for something else."""
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


async def register(values: Mapping[str, str], caller: Principal, actor: Actor) -> tuple[str, str | None]:
    """Register an agent; return its id and its key, None if it existed and asks with its own key.

    Raises:
        Refused: 409 for an id or name that is taken, 401 for a token that somebody else has just spent.
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
        return id, None
    async with audited(
        actor, "agent_registered", "agent", id, {"name": values["name"], "hostname": values["hostname"]}
    ):
        if caller.role is Role.ENROLMENT and caller.key_id and not await spend_token(caller.key_id, db.now()):
            raise conflict("The enrolment token was used meanwhile")
        if not await db.fetch(INSERT, id, values["name"], values["hostname"], *said):
            raise conflict(f"An agent with the id {id} or the name {values['name']} exists")
        _, key = await create_key(values["name"], Role.AGENT, agent_id=id)
    return id, key
