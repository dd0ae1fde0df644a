"""Whoever calls, and what of the inventory they may see."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeAlias

from litestar import Request
from litestar.datastructures import State
from piccolo.table import Table

from certctl_server import db
from certctl_server.audit.record import Actor
from certctl_server.auth.roles import WRITE, Role
from certctl_server.errors import Refused, request_id
from certctl_server.settings import Settings

OWN_KEY_USED = db.Sql(
    "SELECT 1 AS used FROM api_key WHERE agent_id = $1 AND last_used_at IS NOT NULL AND ended_at IS NULL LIMIT 1"
)
AGENTS = "agent"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. ``key_id`` is empty for keys of the environment, ``agent_id`` for all but agents."""

    name: str
    role: Role
    key_id: str = ""
    agent_id: str = ""
    actor_type: str = "User"
    """As the audit trail spells it: User, Agent or System."""
    expires_at: datetime | None = None
    named: bool = True
    """Whether the name says who it is; one shared by many, such as ``api-key-user``, does not."""
    csrf_token: str = field(default="", repr=False)
    """What must come with every change if the caller is known by a login's cookie; empty for whoever shows a key."""

    def actor(self, request: str = "") -> Actor:
        """Return who the audit trail says did it, in the request of that id."""
        return Actor(self.name, self.actor_type, request)


NOBODY = Principal("anonymous", Role.ANONYMOUS, named=False)
EVERYBODY = Principal("anonymous", Role.ADMIN, named=False)
"""Whoever calls while CERTCTL_AUTH_TYPE is none."""

Req: TypeAlias = Request[Principal, Any, State]
"""A request that passed the guard: ``request.user`` is the principal."""


def actor_of(request: Req) -> Actor:
    """Return who the audit trail says did what ``request`` asks."""
    return request.user.actor(request_id(request.scope))


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on the rows of a table called ``item``; each ``{}`` in it stands for one of ``args``."""

    sql: str
    args: tuple[Any, ...] = ()


NOTHING = Where("1 = 0")


def visible(principal: Principal, table: type[Table]) -> Where | None:
    """Return what rows of ``table`` the principal may see and refer to; None is all of them.

    Agents see themselves and what carries their ``agent_id``; everybody else with a key sees everything.
    """
    if principal.role not in {Role.AGENT, Role.ENROLMENT, Role.ANONYMOUS}:
        return None
    if not principal.agent_id:
        return NOTHING
    if table._meta.tablename == AGENTS:
        return Where("item.id = {}", (principal.agent_id,))
    if any(column._meta.name == "agent_id" for column in table._meta.columns):
        return Where("item.agent_id = {}", (principal.agent_id,))
    return NOTHING


async def agent_caller(principal: Principal, agent_id: str, settings: Settings, *, reading: bool = False) -> bool:
    """Return whether ``principal`` acts as the agent (True) or is a person or program that only looks (False).

    With CERTCTL_AGENT_KEYS=optional an admin or operator key stands in for an agent until that agent's own key
    was used. Where no keys are asked for (CERTCTL_AUTH_TYPE=none), everybody acts as any agent.

    Args:
        principal: Who calls.
        agent_id: The agent that the path names.
        settings: Says which keys agents may use.
        reading: The call changes nothing, so admins and operators may make it under any setting.

    Raises:
        Refused: 403, neither is allowed.
    """
    if principal == EVERYBODY or (principal.agent_id and principal.agent_id == agent_id):
        return True
    if principal.role in WRITE:
        if settings.agent_keys == "optional" and not await db.fetch(OWN_KEY_USED, agent_id):
            return True
        if reading:
            return False
    raise Refused(HTTPStatus.FORBIDDEN, "Only the agent's own key may do this")
