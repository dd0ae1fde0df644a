"""The daemons on the machines."""

from piccolo.columns import BigInt, Boolean, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.resource import Resource

SCANNER = "server-scanner"
"""The agent that stands for the server's own scans: it is no machine, and is not listed."""


class Agent(Resource):
    """One daemon. ``capabilities`` is a JSON list, NULL for an agent that sends none.

    The keys are what the criteria of groups are compared with (``agents/matching.py``).
    """

    hostname = Varchar(length=255, default="")
    status = Varchar(length=16, default="")
    last_heartbeat_at = Timestamptz(null=True, default=None)
    registered_at = Timestamptz()
    os = Varchar(length=64, default="")
    architecture = Varchar(length=64, default="")
    ip_address = Varchar(length=64, default="")
    version = Varchar(length=64, default="")
    capabilities = Text(null=True, default=None)
    clock_offset_ms = BigInt(null=True, default=None)
    boot_id = Varchar(length=128, default="")
    retired_at = Timestamptz(null=True, default=None)
    retired_reason = Varchar(length=255, default="")
    os_key = Varchar(length=64, default="")
    architecture_key = Varchar(length=64, default="")
    ip_key = Varchar(length=64, null=True, default=None)
    version_key = Varchar(length=255, null=True, default=None)


class AgentGroup(Resource):
    """Agents that fit all criteria that are given, and those that a person adds; with a bound on what they change."""

    description = Text(default="")
    match_os = Varchar(length=64, default="")
    match_architecture = Varchar(length=64, default="")
    match_ip_cidr = Varchar(length=64, default="")
    match_version = Varchar(length=255, default="")
    enabled = Boolean(default=True)
    max_concurrent_deployments = BigInt(null=True, default=None)


class AgentGroupMember(Table):
    """That a person put an agent into a group, or keeps it out. The real key is (group_id, agent_id)."""

    group_id = Varchar(length=128, primary_key=True)
    agent_id = Varchar(length=128)
    membership_type = Varchar(length=16)
    created_at = Timestamptz()


class AgentGroupWait(Table):
    """That an agent waits for room among the changes of a group. The real key is (group_id, agent_id)."""

    group_id = Varchar(length=128, primary_key=True)
    agent_id = Varchar(length=128)
    since = Timestamptz()
    asked_at = Timestamptz()
