"""What there is at a server. Written by tools/client_types.py from the server's OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

JobState: TypeAlias = Literal[
    "AwaitingApproval", "AwaitingCSR", "Cancelled", "Completed", "Failed", "Pending", "Running"
]
"""As the API spells it."""


JobType: TypeAlias = Literal[
    "CrlBuild", "Deployment", "Issuance", "Notification", "Renewal", "Revocation", "Scan", "Validation"
]
"""What a job does, as the API spells it; the last four are internal."""


RuleType: TypeAlias = Literal[
    "AllowedDomains", "AllowedEnvironments", "AllowedIssuers", "RenewalLeadTime", "RequiredMetadata"
]
"""What a rule is about."""


Severity: TypeAlias = Literal["Critical", "Error", "Warning"]
"""What comes of a breach."""


class KeyRuleBody(TypedDict):
    """A key algorithm that is allowed, from a size on."""

    algorithm: Literal["ECDSA", "Ed25519", "RSA"]
    min_size: NotRequired[int]


class Limits(TypedDict):
    """What the CA takes."""

    max_concurrent: NotRequired[int]
    rates: NotRequired[list[Rate]]


class Rate(TypedDict):
    """No more than ``count`` orders in any ``per_seconds``."""

    count: int
    per_seconds: int
    scope: Literal["account", "domain", "names"]


class Rollout(TypedDict):
    """How a new version spreads over the targets."""

    waves: list[int]
    soak_seconds: NotRequired[int]
    max_failures: NotRequired[int]


class Window(TypedDict):
    """A stretch of the week; an end that is not after the start lies on the next day."""

    days: list[Literal["fri", "mon", "sat", "sun", "thu", "tue", "wed"]]
    start: str
    end: str
    timezone: str


class RolloutShown(TypedDict):
    """How far the rollout is that a target is part of."""

    held: bool
    reason: NotRequired[str]
    status: str
    wave: NotRequired[int]
    waves: list[int]


class Owner(TypedDict):
    """Who is told when something is wrong."""

    created_at: str
    email: str
    id: str
    name: str
    team_id: str
    updated_at: str


class Team(TypedDict):
    """People who answer for certificates together."""

    created_at: str
    description: str
    email: NotRequired[str]
    id: str
    name: str
    updated_at: str


class PolicyViolation(TypedDict):
    """That a certificate breaks a rule, or did: at most one is open of the two. It goes with its rule."""

    certificate_id: str
    created_at: str
    id: str
    message: str
    resolved_at: NotRequired[str]
    rule_id: str
    severity: Literal["Warning", "Error", "Critical"]


class ApiKey(TypedDict):
    """A key of a person, a program or an agent. ``replaces`` ends the older key once this one is used."""

    created_at: str
    expires_at: NotRequired[str]
    id: str
    key: NotRequired[str]
    last_used_at: NotRequired[str]
    name: str
    prefix: str
    role: Literal["admin", "operator", "viewer", "agent"]


class PolicyRule(TypedDict):
    """One rule; its config is JSON, with the real names of its keys."""

    config: dict[str, Any]
    created_at: str
    enabled: bool
    id: str
    name: str
    severity: Severity
    type: RuleType
    updated_at: str


class DiscoveryScan(TypedDict):
    """One report of one agent."""

    agent_id: str
    certificates_found: int
    certificates_new: int
    completed_at: NotRequired[str]
    directories: list[str]
    errors_count: int
    id: str
    scan_duration_ms: int
    started_at: str


class EnrolmentToken(TypedDict):
    """What lets an agent register, a limited number of times."""

    created_at: str
    created_by: str
    expires_at: str
    id: str
    last_used_at: NotRequired[str]
    max_uses: int
    name: str
    token: NotRequired[str]
    uses: int


class DeploymentTarget(TypedDict):
    """One place, deployed to by its agent."""

    agent_id: str
    config: dict[str, Any]
    config_warnings: NotRequired[list[str]]
    created_at: str
    enabled: bool
    id: str
    name: str
    status: Literal["ready", "incomplete", "offline", "disabled"]
    type: str
    updated_at: str


class Notifier(TypedDict):
    """One configured channel. ``events`` is a JSON list of notification types."""

    config: dict[str, Any]
    config_warnings: NotRequired[list[str]]
    created_at: str
    enabled: bool
    events: list[
        Literal[
            "DeploymentFailure",
            "DeploymentSuccess",
            "ExpirationWarning",
            "PolicyViolation",
            "RenewalFailure",
            "RenewalSuccess",
            "Revocation",
        ]
    ]
    id: str
    name: str
    status: Literal["ready", "incomplete", "failing", "disabled"]
    type: str
    updated_at: str


class AuditEvent(TypedDict):
    """One thing that was done. ``details`` is JSON text; the last three are NULL until the row is sealed."""

    action: str
    actor: str
    actor_type: Literal["User", "System", "Agent"]
    details: dict[str, Any]
    hash: NotRequired[str]
    id: str
    previous_hash: NotRequired[str]
    request_id: NotRequired[str]
    resource_id: str
    resource_type: str
    timestamp: str


class Issuer(TypedDict):
    """One configured CA. ``limits`` is JSON."""

    config: dict[str, Any]
    config_warnings: NotRequired[list[str]]
    created_at: str
    enabled: bool
    id: str
    last_tested_at: NotRequired[str]
    limits: NotRequired[Limits]
    name: str
    status: Literal["ready", "incomplete", "failing", "disabled"]
    type: str
    updated_at: str


class AgentGroup(TypedDict):
    """Agents that fit all criteria that are given, and those that a person adds; with a bound on what they change."""

    created_at: str
    description: str
    enabled: bool
    id: str
    match_architecture: str
    match_ip_cidr: str
    match_os: str
    match_version: str
    max_concurrent_deployments: NotRequired[int]
    member_count: int
    name: str
    updated_at: str


class NetworkScanTarget(TypedDict):
    """Networks, the ports that are tried in them, and what the last scan found. ``cidrs`` and ``ports`` are JSON."""

    cidrs: list[str]
    created_at: str
    enabled: bool
    id: str
    last_scan_at: NotRequired[str]
    last_scan_certs_found: NotRequired[int]
    last_scan_duration_ms: NotRequired[int]
    name: str
    ports: list[int]
    scan_interval_hours: int
    timeout_ms: int
    updated_at: str


class NotificationEvent(TypedDict):
    """One message through one channel; ``occurrence`` names what it is about, once per channel."""

    certificate_id: NotRequired[str]
    channel: Literal["", "Email", "JiraServiceManagement", "OpsGenie", "PagerDuty", "Slack", "Teams", "Webhook"]
    created_at: str
    error: NotRequired[str]
    id: str
    last_error: NotRequired[str]
    message: str
    next_retry_at: NotRequired[str]
    recipient: str
    retry_count: int
    sent_at: NotRequired[str]
    status: Literal["pending", "sent", "failed", "read", "dead"]
    subject: str
    type: Literal[
        "ExpirationWarning",
        "RenewalSuccess",
        "RenewalFailure",
        "DeploymentSuccess",
        "DeploymentFailure",
        "PolicyViolation",
        "Revocation",
    ]


class RenewalPolicy(TypedDict):
    """When a certificate is renewed, how often it is tried, and who is told. Lists are JSON."""

    agent_group_id: NotRequired[str]
    alert_thresholds_days: list[int]
    auto_renew: bool
    certificate_profile_id: NotRequired[str]
    created_at: str
    id: str
    maintenance_windows: NotRequired[list[Window]]
    max_retries: int
    name: str
    renewal_window_days: int
    requires_approval: bool
    retry_interval_seconds: int
    rollout: NotRequired[Rollout]
    updated_at: str


class WorkItem(TypedDict):
    """One thing that an agent is to do."""

    certificate_id: str
    common_name: NotRequired[str]
    expected_fingerprint: NotRequired[str]
    id: str
    key_algorithm: NotRequired[str]
    key_size: NotRequired[int]
    lease_until: NotRequired[str]
    sans: list[str]
    status: JobState
    target_config: NotRequired[dict[str, Any]]
    target_id: NotRequired[str]
    target_type: NotRequired[str]
    traceparent: NotRequired[str]
    type: JobType


class CertificateProfile(TypedDict):
    """Bounds on keys, names, use and lifetime. Lists are JSON."""

    allow_short_lived: bool
    allowed_ekus: list[Literal["clientAuth", "codeSigning", "emailProtection", "serverAuth", "timeStamping"]]
    allowed_key_algorithms: list[KeyRuleBody]
    created_at: str
    description: str
    enabled: bool
    id: str
    include_common_name: bool
    max_ttl_seconds: int
    name: str
    no_rev_avail: bool
    required_san_patterns: list[str]
    requires_approval: bool
    spiffe_uri_pattern: str
    updated_at: str


class CertificateVersion(TypedDict):
    """One certificate that a CA signed for us. The chain is PEM, leaf first."""

    agent_id: NotRequired[str]
    certificate_id: str
    created_at: str
    csr_pem: str
    fingerprint_sha256: str
    id: str
    key_algorithm: NotRequired[str]
    key_size: NotRequired[int]
    not_after: str
    not_before: str
    pem_chain: str
    revocation_reason: NotRequired[str]
    revoked_at: NotRequired[str]
    serial_number: str
    version: int


class Agent(TypedDict):
    """One daemon. ``capabilities`` is a JSON list, NULL for an agent that sends none."""

    api_key: NotRequired[str]
    architecture: str
    capabilities: NotRequired[list[str]]
    clock_offset_ms: NotRequired[int]
    hostname: str
    id: str
    ip_address: str
    last_heartbeat: NotRequired[str]
    last_heartbeat_at: NotRequired[str]
    name: str
    os: str
    registered_at: str
    retired_at: NotRequired[str]
    retired_reason: NotRequired[str]
    status: Literal["Online", "Offline", "Degraded"]
    version: str


class Deployment(DeploymentTarget):
    """One place, deployed to by its agent."""

    deployment_state: Literal["deployed", "failed", "mismatch", "none", "pending", "served"]
    last_deployed_at: NotRequired[str]
    last_job_id: NotRequired[str]
    last_status: NotRequired[JobState]
    rollout: NotRequired[RolloutShown]
    served_fingerprint: NotRequired[str]


class AgentGroupMember(Agent):
    """One daemon. ``capabilities`` is a JSON list, NULL for an agent that sends none."""

    membership_type: Literal["dynamic", "include"]


class Job(TypedDict):
    """One piece of work, done by one at a time."""

    agent_id: NotRequired[str]
    attempts: int
    certificate_id: str
    completed_at: NotRequired[str]
    created_at: str
    id: str
    last_error: NotRequired[str]
    lease_until: NotRequired[str]
    max_attempts: int
    next_retry_at: NotRequired[str]
    requested_by: str
    result: NotRequired[dict[str, Any]]
    scheduled_at: str
    started_at: NotRequired[str]
    status: Literal["Pending", "AwaitingCSR", "AwaitingApproval", "Running", "Completed", "Failed", "Cancelled"]
    target_id: NotRequired[str]
    type: Literal["Issuance", "Renewal", "Deployment", "Validation", "Revocation", "Scan", "Notification", "CrlBuild"]
    verification_error: NotRequired[str]
    verification_fingerprint: NotRequired[str]
    verification_status: Literal["failed", "pending", "skipped", "success"]
    verified_at: NotRequired[str]
    waits_for: NotRequired[str]


class DiscoveredCertificate(TypedDict):
    """A certificate at a place on an agent's machine. Every text in it is a stranger's."""

    agent_id: str
    common_name: str
    created_at: str
    discovery_scan_id: NotRequired[str]
    dismissed_at: NotRequired[str]
    fingerprint_sha256: str
    first_seen_at: str
    id: str
    is_ca: bool
    issuer_dn: str
    key_algorithm: Literal["RSA", "ECDSA", "Ed25519", "Ed448", "DSA", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"]
    key_size: int
    last_seen_at: str
    managed_certificate_id: NotRequired[str]
    not_after: NotRequired[str]
    not_before: NotRequired[str]
    pem_data: NotRequired[str]
    sans: list[str]
    serial_number: str
    source_format: str
    source_path: str
    status: Literal["Unmanaged", "Managed", "Dismissed"]
    subject_dn: str
    updated_at: str


class ManagedCertificate(TypedDict):
    """What is to be served under some names."""

    certificate_profile_id: NotRequired[str]
    common_name: str
    created_at: str
    deployment_state: Literal["deployed", "failed", "mismatch", "none", "pending", "served"]
    environment: str
    expires_at: str
    fingerprint: NotRequired[str]
    id: str
    issued_at: NotRequired[str]
    issuer_id: str
    job_id: NotRequired[str]
    key_algorithm: NotRequired[str]
    key_size: NotRequired[int]
    last_deployment_at: NotRequired[str]
    last_error: NotRequired[str]
    last_renewal_at: NotRequired[str]
    name: str
    not_before: NotRequired[str]
    owner_id: str
    renewal_policy_id: str
    revocation_reason: NotRequired[str]
    revocation_state: NotRequired[Literal["confirmed", "failed", "pending"]]
    revoked_at: NotRequired[str]
    sans: list[str]
    serial_number: NotRequired[str]
    status: Literal["Pending", "Active", "Expiring", "Expired", "RenewalInProgress", "Failed", "Revoked", "Archived"]
    tags: dict[str, str]
    target_ids: list[str]
    team_id: str
    updated_at: str
