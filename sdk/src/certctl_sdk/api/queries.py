"""What lists and a few others may be asked. Written by tools/client_types.py from the server's OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Listed(TypedDict):
    """What every list may be asked."""

    cursor: NotRequired[str]
    fields: NotRequired[str | Sequence[str]]
    page: NotRequired[int]
    page_size: NotRequired[int]
    per_page: NotRequired[int]
    sort: NotRequired[str]
    sort_desc: NotRequired[bool | str]


class Dated(Listed):
    """What lists of things that change may be asked."""

    created_after: NotRequired[str]
    created_before: NotRequired[str]
    updated_after: NotRequired[str]
    updated_before: NotRequired[str]


class AgentGroups(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]


class AgentGroupsMembers(Listed):
    """What may be said."""

    architecture: NotRequired[str | Sequence[str]]
    created_after: NotRequired[str]
    created_before: NotRequired[str]
    name: NotRequired[str | Sequence[str]]
    os: NotRequired[str | Sequence[str]]
    status: NotRequired[str | Sequence[str]]
    version: NotRequired[str | Sequence[str]]


class Agents(Listed):
    """What may be said."""

    architecture: NotRequired[str | Sequence[str]]
    created_after: NotRequired[str]
    created_before: NotRequired[str]
    name: NotRequired[str | Sequence[str]]
    os: NotRequired[str | Sequence[str]]
    status: NotRequired[str | Sequence[str]]
    version: NotRequired[str | Sequence[str]]


class AgentsTokens(Listed):
    """What may be said."""

    created_after: NotRequired[str]
    created_before: NotRequired[str]
    expires_after: NotRequired[str]
    expires_before: NotRequired[str]


class AgentsWork(TypedDict):
    """What may be said."""

    wait: NotRequired[int]


class Audit(Listed):
    """What may be said."""

    action: NotRequired[str | Sequence[str]]
    actor: NotRequired[str | Sequence[str]]
    actor_type: NotRequired[str | Sequence[str]]
    after: NotRequired[str]
    before: NotRequired[str]
    resource: NotRequired[str | Sequence[str]]
    resource_id: NotRequired[str | Sequence[str]]
    resource_type: NotRequired[str | Sequence[str]]
    since: NotRequired[str]
    until: NotRequired[str]


class AuthKeys(Listed):
    """What may be said."""

    created_after: NotRequired[str]
    created_before: NotRequired[str]
    expires_after: NotRequired[str]
    expires_before: NotRequired[str]
    role: NotRequired[str | Sequence[str]]


class Certificates(Dated):
    """What may be said."""

    agent_id: NotRequired[str]
    certificate_profile_id: NotRequired[str | Sequence[str]]
    common_name: NotRequired[str | Sequence[str]]
    environment: NotRequired[str | Sequence[str]]
    expires_after: NotRequired[str]
    expires_before: NotRequired[str]
    issuer_id: NotRequired[str | Sequence[str]]
    name: NotRequired[str | Sequence[str]]
    owner_id: NotRequired[str | Sequence[str]]
    profile_id: NotRequired[str | Sequence[str]]
    q: NotRequired[str]
    status: NotRequired[str | Sequence[str]]
    team_id: NotRequired[str | Sequence[str]]


class CertificatesDeployments(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]
    status: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class CertificatesVersions(Listed):
    """What may be said."""

    created_after: NotRequired[str]
    created_before: NotRequired[str]
    expires_after: NotRequired[str]
    expires_before: NotRequired[str]


class DiscoveredCertificates(Dated):
    """What may be said."""

    agent_id: NotRequired[str | Sequence[str]]
    expires_after: NotRequired[str]
    expires_before: NotRequired[str]
    is_ca: NotRequired[bool | str]
    key_algorithm: NotRequired[str | Sequence[str]]
    status: NotRequired[str | Sequence[str]]


class DiscoveryScans(Listed):
    """What may be said."""

    agent_id: NotRequired[str | Sequence[str]]


class Issuers(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]
    status: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class Jobs(Listed):
    """What may be said."""

    agent_id: NotRequired[str | Sequence[str]]
    certificate_id: NotRequired[str | Sequence[str]]
    created_after: NotRequired[str]
    created_before: NotRequired[str]
    status: NotRequired[str | Sequence[str]]
    target_id: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class NetworkScanTargets(Dated):
    """What may be said."""


class Notifications(Listed):
    """What may be said."""

    certificate_id: NotRequired[str | Sequence[str]]
    channel: NotRequired[str | Sequence[str]]
    created_after: NotRequired[str]
    created_before: NotRequired[str]
    status: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class Notifiers(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]
    status: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class Owners(Dated):
    """What may be said."""

    team_id: NotRequired[str | Sequence[str]]


class Policies(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]
    severity: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class PoliciesViolations(Listed):
    """What may be said."""

    certificate_id: NotRequired[str | Sequence[str]]
    created_after: NotRequired[str]
    created_before: NotRequired[str]
    resolved: NotRequired[bool | str]
    severity: NotRequired[str | Sequence[str]]


class Profiles(Dated):
    """What may be said."""

    enabled: NotRequired[bool | str]


class RenewalPolicies(Dated):
    """What may be said."""


class StatsExpirationTimeline(TypedDict):
    """What may be said."""

    bucket: NotRequired[str]
    days: NotRequired[int]


class StatsIssuanceRate(TypedDict):
    """What may be said."""

    bucket: NotRequired[str]
    days: NotRequired[int]


class StatsJobTrends(TypedDict):
    """What may be said."""

    bucket: NotRequired[str]
    days: NotRequired[int]


class Targets(Dated):
    """What may be said."""

    agent_id: NotRequired[str | Sequence[str]]
    enabled: NotRequired[bool | str]
    status: NotRequired[str | Sequence[str]]
    type: NotRequired[str | Sequence[str]]


class Teams(Dated):
    """What may be said."""
