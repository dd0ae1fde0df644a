"""Credentials, as digests only."""

from piccolo.columns import BigInt, ForeignKey, OnDelete, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.agents.tables import Agent


class ApiKey(Table):
    """A key of a person, a program or an agent. ``replaces`` ends the older key once this one is used."""

    id = Varchar(length=128, primary_key=True)
    name = Varchar(length=255, default="")
    role = Varchar(length=16)
    agent_id = ForeignKey(Agent, null=True, default=None, on_delete=OnDelete.restrict)
    prefix = Varchar(length=64, default="")
    digest = Varchar(length=64)
    created_at = Timestamptz()
    expires_at = Timestamptz(null=True, default=None)
    last_used_at = Timestamptz(null=True, default=None)
    replaces = Varchar(length=128, null=True, default=None)
    ended_at = Timestamptz(null=True, default=None)


class Login(Table):
    """A browser's login. A key of the environment has no row, so ``proof`` ties the login to it instead."""

    digest = Varchar(length=64, primary_key=True)
    key_id = ForeignKey(ApiKey, null=True, default=None, on_delete=OnDelete.restrict)
    proof = Varchar(length=64, default="")
    created_at = Timestamptz()
    expires_at = Timestamptz()


class EnrolmentToken(Table):
    """What lets an agent register, a limited number of times."""

    id = Varchar(length=128, primary_key=True)
    name = Varchar(length=255, default="")
    digest = Varchar(length=64)
    max_uses = BigInt(default=1)
    uses = BigInt(default=0)
    expires_at = Timestamptz()
    created_at = Timestamptz()
    created_by = Varchar(length=255, default="")
    last_used_at = Timestamptz(null=True, default=None)


class Setting(Table):
    """What the installation remembers of itself: flags that never go back, check values."""

    name = Varchar(length=64, primary_key=True)
    value = Text()
