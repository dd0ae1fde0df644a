"""Who certificates belong to."""

from piccolo.columns import ForeignKey, OnDelete, Text, Varchar

from certctl_server.resource import Resource


class Team(Resource):
    """People who answer for certificates together."""

    description = Text(default="")
    email = Varchar(length=255, default="")


class Owner(Resource):
    """Who is told when something is wrong."""

    email = Varchar(length=255, default="")
    team_id = ForeignKey(Team, null=False, on_delete=OnDelete.restrict)
