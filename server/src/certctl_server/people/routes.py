"""Teams and owners over HTTP."""

from typing import Annotated

import msgspec

from certctl_server.body import ID, Email, Name
from certctl_server.crud import Crud, crud_routes
from certctl_server.filters import equal
from certctl_server.people.tables import Owner, Team


class TeamBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    description: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    email: Email = ""


class OwnerBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    team_id: ID
    email: Email = ""


TEAMS = Crud(
    "/api/v1/teams",
    Team,
    TeamBody,
    "t",
    "Team",
    optional=frozenset({"email"}),
    reserved=frozenset({"t-unassigned"}),
)
OWNERS = Crud(
    "/api/v1/owners",
    Owner,
    OwnerBody,
    "o",
    "Owner",
    filters={"team_id": equal("item.team_id")},
    reserved=frozenset({"o-unassigned"}),
)
routes = [crud_routes(TEAMS), crud_routes(OWNERS)]
