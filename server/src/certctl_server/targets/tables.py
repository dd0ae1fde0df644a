"""The places that serve certificates."""

from piccolo.columns import ForeignKey, OnDelete

from certctl_server.agents.tables import Agent
from certctl_server.connectors.tables import Configured


class Target(Configured):
    """One place, deployed to by its agent."""

    agent_id = ForeignKey(Agent, null=True, default=None, on_delete=OnDelete.restrict)
