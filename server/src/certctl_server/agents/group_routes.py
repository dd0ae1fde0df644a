"""Groups of agents over HTTP: the groups, and who belongs to them at this moment."""

from dataclasses import replace
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from litestar import Response, delete, get, put
from litestar.params import FromPath

from certctl_server.agents.groups import COUNT, MEMBERS, check_group, included, say, unsay, written
from certctl_server.agents.routes import AGENTS, Word, show
from certctl_server.agents.tables import Agent, AgentGroup
from certctl_server.audit.record import audited
from certctl_server.auth.principal import Req, Where, actor_of
from certctl_server.auth.roles import LISTED, READ, WRITE
from certctl_server.body import HARMLESS, Name, new
from certctl_server.crud import Crud, crud_routes, one
from certctl_server.errors import not_found
from certctl_server.filters import flag
from certctl_server.lists import Row, list_response

BASE = "/api/v1/agent-groups"
ONE_MEMBER = BASE + "/{id:str}/members/{agent_id:str}"
ALIASES = {
    "os_match": "match_os",
    "architecture_match": "match_architecture",
    "ip_cidr_match": "match_ip_cidr",
    "version_match": "match_version",
}
UPDATED = "update_agent_group"


class GroupBody(msgspec.Struct):
    """What clients may set. Criteria that are given must all fit; without any, members are named one by one."""

    name: Name
    description: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    match_os: Word = ""
    match_architecture: Word = ""
    match_ip_cidr: Annotated[str, msgspec.Meta(max_length=64, pattern=HARMLESS)] = ""
    match_version: Annotated[str, msgspec.Meta(max_length=255, pattern=HARMLESS)] = ""
    enabled: bool = True
    max_concurrent_deployments: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class MemberBody(msgspec.Struct):
    """Whether the agent belongs, whatever the criteria say."""

    membership_type: Literal["include", "exclude"]


GROUPS = Crud(
    BASE,
    AgentGroup,
    GroupBody,
    "ag",
    "Agent group",
    actions=("create_agent_group", "update_agent_group", "delete_agent_group"),
    filters={"enabled": flag("item.enabled")},
    aliases=ALIASES,
    computed={"member_count": COUNT},
    types={"member_count": int},
    optional=frozenset({"max_concurrent_deployments"}),
    check=check_group,
    changed=written,
)


Membership = Literal["dynamic", "include"]
MEMBER_LIST = replace(
    AGENTS,
    name="AgentGroupMember",
    fields=AGENTS.fields | {"membership_type"},
    types={**AGENTS.types, "membership_type": Membership},
)


class MemberSaid(TypedDict):
    """What a person said of an agent and a group."""

    group_id: str
    agent_id: str
    membership_type: Literal["include", "exclude"]


@get(BASE + "/{id:str}/members", opt={"roles": READ, "query": LISTED, "list": MEMBER_LIST})
async def members(id: FromPath[str], request: Req) -> Response[bytes]:
    """List who belongs to a group now."""
    await GROUPS.one(id, request.user)
    added = await included(id)

    def show_member(row: Row) -> Row:
        # An agent that fits and was added as well is there because somebody added it.
        return show(row) | {"membership_type": "include" if row["id"] in added else "dynamic"}

    return await list_response(request, replace(MEMBER_LIST, show=show_member), where=Where(MEMBERS, (id,)))


@put(ONE_MEMBER, opt={"roles": WRITE, "body": MemberBody})
async def put_member(id: FromPath[str], agent_id: FromPath[str], request: Req) -> MemberSaid:
    """Put an agent into a group, or keep it out."""
    group = await GROUPS.one(id, request.user)
    await one(Agent, agent_id, request.user, "Agent")
    asked = await new(request, MemberBody)
    told = {"agent_id": agent_id, "membership_type": asked.membership_type}
    async with audited(actor_of(request), UPDATED, GROUPS.resource_type, group["id"], told):
        await say(id, agent_id, asked.membership_type)
    return {"group_id": id, "agent_id": agent_id, "membership_type": asked.membership_type}


@delete(ONE_MEMBER, opt={"roles": WRITE})
async def delete_member(id: FromPath[str], agent_id: FromPath[str], request: Req) -> None:
    """Leave it to the criteria again whether an agent belongs."""
    group = await GROUPS.one(id, request.user)
    told = {"agent_id": agent_id, "membership_type": ""}
    async with audited(actor_of(request), UPDATED, GROUPS.resource_type, group["id"], told):
        if not await unsay(id, agent_id):
            raise not_found("Member")


routes: list[Any] = [crud_routes(GROUPS), members, put_member, delete_member]
