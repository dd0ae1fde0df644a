"""The calls of the API, with the types of what they take and return, apart from whoever makes them.

``teams.list({"sort": "name"})`` is a ``Call[Page[Team]]``: ``Client.send`` makes it and returns the page,
``AsyncClient.send`` is awaited for the same, and an agent sends it in its own way. The types of objects, bodies and
queries are written by ``tools/client_types.py`` from the server's OpenAPI document.
"""

from certctl_sdk.api.calls import Call, Json, Page, Readable, Resource, Rows
from certctl_sdk.api.resources import (
    agent_groups,
    agents,
    audit,
    auth,
    certificates,
    connectors,
    discovered_certificates,
    discovery_scans,
    discovery_summary,
    health,
    issuers,
    jobs,
    keys,
    metrics,
    notifications,
    notifiers,
    owners,
    profiles,
    renewal_policies,
    targets,
    teams,
    tokens,
)

__all__ = [
    "Call",
    "Json",
    "Page",
    "Readable",
    "Resource",
    "Rows",
    "agent_groups",
    "agents",
    "audit",
    "auth",
    "certificates",
    "connectors",
    "discovered_certificates",
    "discovery_scans",
    "discovery_summary",
    "health",
    "issuers",
    "jobs",
    "keys",
    "metrics",
    "notifications",
    "notifiers",
    "owners",
    "profiles",
    "renewal_policies",
    "targets",
    "teams",
    "tokens",
]
