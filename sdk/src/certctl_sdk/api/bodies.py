"""What calls send. Written by tools/client_types.py from the server's OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from certctl_sdk.api.objects import KeyRuleBody, Limits, Rollout, RuleType, Severity, Window


class ScanBody(TypedDict):
    """Nothing is asked beside the target."""


class SendBody(TypedDict):
    """Nothing is asked."""


class DeployBody(TypedDict):
    """Where to deploy; empty: everywhere."""

    target_id: NotRequired[str | None]


class Dismissal(TypedDict):
    """Why, for the audit trail."""

    reason: NotRequired[str | None]


class MemberBody(TypedDict):
    """Whether the agent belongs, whatever the criteria say."""

    membership_type: Literal["exclude", "include"]


class NewLogin(TypedDict):
    """The key that a browser exchanges for a cookie."""

    key: str


class ReasonBody(TypedDict):
    """Why."""

    reason: NotRequired[str | None]


class RevokeBody(TypedDict):
    """Why it is revoked."""

    reason: NotRequired[
        Literal[
            "affiliationChanged",
            "caCompromise",
            "certificateHold",
            "cessationOfOperation",
            "keyCompromise",
            "privilegeWithdrawn",
            "superseded",
            "unspecified",
        ]
        | None
    ]


class CsrBody(TypedDict):
    """A CSR and the certificate it is for."""

    csr_pem: str
    certificate_id: NotRequired[str | None]


class RenewBody(TypedDict):
    """How to renew."""

    force: NotRequired[bool | None]
    csr_pem: NotRequired[str | None]


class BulkRetryBody(TypedDict):
    """Which jobs; selectors narrow each other down."""

    job_ids: NotRequired[list[str] | None]
    filter: NotRequired[dict[str, Any] | None]
    dry_run: NotRequired[bool | None]


class NewKey(TypedDict):
    """A key for a person or a program; agents get theirs when they register."""

    name: str
    role: Literal["admin", "operator", "viewer"]
    expires_at: NotRequired[str | None]


class OwnerChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    team_id: NotRequired[str]
    email: NotRequired[str | None]


class StatusBody(TypedDict):
    """How far a job is."""

    status: Literal["Completed", "Failed", "Running"]
    error: NotRequired[str | None]
    error_kind: NotRequired[Literal["", "deployment", "misconfigured", "rejected", "transient"] | None]


class TeamChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    description: NotRequired[str | None]
    email: NotRequired[str | None]


class TokenBody(TypedDict):
    """What an enrolment token is good for."""

    name: NotRequired[str | None]
    max_uses: NotRequired[int | None]
    expires_at: NotRequired[str | None]


class NewOwner(TypedDict):
    """What may be said."""

    name: str
    team_id: str
    email: NotRequired[str | None]
    id: NotRequired[str | None]


class NewTeam(TypedDict):
    """What may be said."""

    name: str
    description: NotRequired[str | None]
    email: NotRequired[str | None]
    id: NotRequired[str | None]


class BulkReassignBody(TypedDict):
    """Which to give away, and to whom; without a team each stays with its own."""

    certificate_ids: NotRequired[list[str] | None]
    filter: NotRequired[dict[str, Any] | None]
    dry_run: NotRequired[bool | None]
    owner_id: str
    team_id: NotRequired[str | None]


class Claim(TypedDict):
    """An existing certificate, or what a new one needs."""

    managed_certificate_id: NotRequired[str | None]
    create: NotRequired[bool | None]
    owner_id: NotRequired[str | None]
    team_id: NotRequired[str | None]
    issuer_id: NotRequired[str | None]


class IssuerChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    type: NotRequired[str]
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]
    limits: NotRequired[Limits | None]


class NotifierChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    type: NotRequired[str]
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]
    events: NotRequired[
        list[
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
        | None
    ]


class PolicyRuleChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    type: NotRequired[RuleType]
    config: NotRequired[dict[str, Any] | None]
    severity: NotRequired[Severity | None]
    enabled: NotRequired[bool | None]


class Report(TypedDict):
    """What one scan found. Certificates are read one by one: one that makes no sense hides no other."""

    agent_id: NotRequired[str | None]
    directories: NotRequired[list[str] | None]
    certificates: NotRequired[list[Any] | None]
    errors: NotRequired[list[Any] | None]
    scan_duration_ms: NotRequired[int | None]


class TargetChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    type: NotRequired[str]
    agent_id: NotRequired[str]
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]


class VerifyBody(TypedDict):
    """What a handshake showed."""

    target_id: str
    expected_fingerprint: str
    verified: bool
    actual_fingerprint: NotRequired[str | None]
    error: NotRequired[str | None]


class NetworkScanTargetChange(TypedDict):
    """What may be said."""

    name: NotRequired[str]
    cidrs: NotRequired[list[str] | None]
    ports: NotRequired[list[int] | None]
    enabled: NotRequired[bool | None]
    scan_interval_hours: NotRequired[int | None]
    timeout_ms: NotRequired[int | None]


class NewIssuer(TypedDict):
    """What may be said."""

    name: str
    type: str
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]
    limits: NotRequired[Limits | None]
    id: NotRequired[str | None]


class NewNotifier(TypedDict):
    """What may be said."""

    name: str
    type: str
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]
    events: NotRequired[
        list[
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
        | None
    ]
    id: NotRequired[str | None]


class NewPolicyRule(TypedDict):
    """What may be said."""

    name: str
    type: RuleType
    config: NotRequired[dict[str, Any] | None]
    severity: NotRequired[Severity | None]
    enabled: NotRequired[bool | None]
    id: NotRequired[str | None]


class NewTarget(TypedDict):
    """What may be said."""

    name: str
    type: str
    agent_id: str
    config: NotRequired[dict[str, Any] | None]
    enabled: NotRequired[bool | None]
    id: NotRequired[str | None]


class AgentGroupFields(TypedDict):
    """What may be left out."""

    description: NotRequired[str | None]
    match_os: NotRequired[str | None]
    match_architecture: NotRequired[str | None]
    match_ip_cidr: NotRequired[str | None]
    match_version: NotRequired[str | None]
    enabled: NotRequired[bool | None]
    max_concurrent_deployments: NotRequired[int | None]


class CertificateFields(TypedDict):
    """What may be left out."""

    common_name: NotRequired[str | None]
    sans: NotRequired[list[str] | None]
    environment: NotRequired[str | None]
    renewal_policy_id: NotRequired[str | None]
    certificate_profile_id: NotRequired[str | None]
    target_ids: NotRequired[list[str] | None]
    tags: NotRequired[dict[str, str] | None]


class NewAgent(TypedDict):
    """What an agent says of itself when it registers."""

    name: str
    hostname: str
    id: NotRequired[str | None]
    os: NotRequired[str | None]
    architecture: NotRequired[str | None]
    ip_address: NotRequired[str | None]
    version: NotRequired[str | None]


class NewNetworkScanTarget(TypedDict):
    """What may be said."""

    name: str
    cidrs: list[str]
    ports: NotRequired[list[int] | None]
    enabled: NotRequired[bool | None]
    scan_interval_hours: NotRequired[int | None]
    timeout_ms: NotRequired[int | None]
    id: NotRequired[str | None]


class AgentGroupChange(AgentGroupFields):
    """What may be said."""

    name: NotRequired[str]


class BulkRenewBody(TypedDict):
    """Which to renew."""

    certificate_ids: NotRequired[list[str] | None]
    filter: NotRequired[dict[str, Any] | None]
    dry_run: NotRequired[bool | None]
    profile_id: NotRequired[str | None]
    owner_id: NotRequired[str | None]
    agent_id: NotRequired[str | None]
    issuer_id: NotRequired[str | None]
    team_id: NotRequired[str | None]


class HeartbeatBody(TypedDict):
    """What an agent says while it lives; empty texts keep what is known."""

    version: NotRequired[str | None]
    hostname: NotRequired[str | None]
    os: NotRequired[str | None]
    architecture: NotRequired[str | None]
    ip_address: NotRequired[str | None]
    capabilities: NotRequired[list[str] | None]
    local_time: NotRequired[str | None]
    boot_id: NotRequired[str | None]


class BulkRevokeBody(BulkRenewBody):
    """Which to revoke, and why."""

    reason: Literal[
        "affiliationChanged",
        "caCompromise",
        "certificateHold",
        "cessationOfOperation",
        "keyCompromise",
        "privilegeWithdrawn",
        "superseded",
        "unspecified",
    ]


class NewAgentGroup(AgentGroupFields):
    """What may be said."""

    name: str
    id: NotRequired[str | None]


class RenewalPolicyFields(TypedDict):
    """What may be left out."""

    renewal_window_days: NotRequired[int | None]
    auto_renew: NotRequired[bool | None]
    max_retries: NotRequired[int | None]
    retry_interval_seconds: NotRequired[int | None]
    alert_thresholds_days: NotRequired[list[int] | None]
    certificate_profile_id: NotRequired[str | None]
    requires_approval: NotRequired[bool | None]
    maintenance_windows: NotRequired[list[Window] | None]
    rollout: NotRequired[Rollout | None]
    agent_group_id: NotRequired[str | None]


class CertificateChange(CertificateFields):
    """What clients may change."""

    name: NotRequired[str]
    owner_id: NotRequired[str]
    team_id: NotRequired[str]
    issuer_id: NotRequired[str]


class RenewalPolicyChange(RenewalPolicyFields):
    """What may be said."""

    name: NotRequired[str]


class CertificateProfileFields(TypedDict):
    """What may be left out."""

    description: NotRequired[str | None]
    allowed_key_algorithms: NotRequired[list[Literal["ECDSA", "Ed25519", "RSA"] | KeyRuleBody] | None]
    max_ttl_seconds: NotRequired[int | None]
    max_ttl_hours: NotRequired[int | None]
    allowed_ekus: NotRequired[
        list[Literal["clientAuth", "codeSigning", "emailProtection", "serverAuth", "timeStamping"]] | None
    ]
    required_san_patterns: NotRequired[list[str] | None]
    spiffe_uri_pattern: NotRequired[str | None]
    allow_short_lived: NotRequired[bool | None]
    no_rev_avail: NotRequired[bool | None]
    include_common_name: NotRequired[bool | None]
    requires_approval: NotRequired[bool | None]
    enabled: NotRequired[bool | None]


class NewRenewalPolicy(RenewalPolicyFields):
    """What may be said."""

    name: str
    id: NotRequired[str | None]


class CertificateProfileChange(CertificateProfileFields):
    """What may be said."""

    name: NotRequired[str]


class NewCertificateProfile(CertificateProfileFields):
    """What may be said."""

    name: str
    id: NotRequired[str | None]


class NewCertificate(CertificateFields):
    """What clients may say of a new certificate. Owner, team and issuer are asked for once the names are read."""

    id: NotRequired[str | None]
    name: NotRequired[str | None]
    owner_id: NotRequired[str | None]
    team_id: NotRequired[str | None]
    issuer_id: NotRequired[str | None]
    status: NotRequired[Literal["Active", "Pending"] | None]
    expires_at: NotRequired[str | None]
    serial_number: NotRequired[str | None]
