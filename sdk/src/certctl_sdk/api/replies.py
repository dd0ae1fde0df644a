"""What calls return beside objects. Written by tools/client_types.py from the server's OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from certctl_sdk.api.objects import WorkItem

Role: TypeAlias = Literal["admin", "agent", "anonymous", "enrolment", "operator", "viewer"]
"""What a principal is."""


Status: TypeAlias = Literal[
    "Active", "Archived", "Expired", "Expiring", "Failed", "Pending", "RenewalInProgress", "Revoked"
]
"""As the API spells it."""


class Approved(TypedDict):
    """It goes on."""

    status: Literal["job_approved"]


class Cancelled(TypedDict):
    """It is called off."""

    status: Literal["job_cancelled"]


class CertificatePem(TypedDict):
    """A chain, leaf first."""

    certificate_pem: str


class CsrTaken(TypedDict):
    """What became of a CSR."""

    status: Literal["csr_accepted", "csr_signed"]


class MarkedAsRead(TypedDict):
    """It counts as read."""

    status: Literal["marked_as_read"]


class Rejected(TypedDict):
    """It does not go on."""

    status: Literal["job_rejected"]


class Sent(TypedDict):
    """The notifier took the message."""

    status: Literal["sent"]


class Updated(TypedDict):
    """The report is taken."""

    status: Literal["updated"]


class Alive(TypedDict):
    """What those ask who watch the process; a broker is named while it does not answer."""

    broker: NotRequired[str]
    status: str


class Connected(TypedDict):
    """The CA answered."""

    checks: list[Check]
    status: Literal["connection_successful"]


class Counters(TypedDict):
    """What the API calls counters."""

    job_completed_total: int
    job_failed_total: int


class Dismissed(TypedDict):
    """It is of no interest."""

    message: str
    status: Literal["dismissed"]


class Enqueued(TypedDict):
    """A job that renews a certificate."""

    certificate_id: str
    job_id: str


class Expiring(TypedDict):
    """How many certificates end in some days."""

    count: int
    date: str


class Fault(TypedDict):
    """One field at fault."""

    field: str
    message: str


class HeartbeatRecorded(TypedDict):
    """The agent lives; the server's time tells it whether its clock is right."""

    server_time: str
    status: Literal["heartbeat_recorded"]


class InStatus(TypedDict):
    """How many certificates there are in one status."""

    count: int
    status: Status


class Info(TypedDict):
    """Whether a key is needed."""

    auth_type: str
    required: bool


class Installed(TypedDict):
    """What is installed."""

    failed: list[FailedPackage]
    loaded: list[Loaded]


class Issued(TypedDict):
    """How many certificates were issued in some days."""

    date: str
    issued_count: int


class NothingToScan(TypedDict):
    """The networks have no address that would be scanned."""

    message: str
    status: Literal["completed"]


class Retried(TypedDict):
    """It is tried again; ``job_id`` is there if another job does it."""

    job_id: NotRequired[str]
    status: Literal["job_retried"]


class Revoked(TypedDict):
    """It is revoked here, and perhaps at its issuer already."""

    revocation_state: str
    status: Literal["revoked"]


class Unacted(TypedDict):
    """A certificate with which nothing could be done, and why."""

    certificate_id: str
    error: str


class Unretried(TypedDict):
    """A job that cannot be tried again."""

    error: str
    job_id: str


class Work(TypedDict):
    """What an agent is to do, oldest first."""

    count: int
    jobs: list[WorkItem]


class Beat(TypedDict):
    """When a background loop last came to its end, and whether well."""

    finished_at: str | None
    name: str
    ok: bool


class Checked(TypedDict):
    """The key is good."""

    actor: str
    role: Role
    status: Literal["authenticated"]


class Claimed(TypedDict):
    """What a certificate that was found is managed as."""

    certificate_id: NotRequired[str]
    message: str
    status: Literal["claimed"]


class DeploymentTriggered(TypedDict):
    """The deployments that were begun."""

    job_id: NotRequired[str]
    job_ids: list[str]
    status: Literal["deployment_triggered"]


class DiscoverySummary(TypedDict):
    """How many were found, by status."""

    Dismissed: int
    Managed: int
    Unmanaged: int


class Health(TypedDict):
    """The process lives; the loops are missing while the database does not answer."""

    loops: NotRequired[list[Beat]]
    status: Literal["healthy"]
    timestamp: str


class LoggedIn(TypedDict):
    """Who logged in, and what proves with later calls that a page of this server makes them."""

    actor: str
    csrf_token: str
    role: Role


class MemberSaid(TypedDict):
    """What a person said of an agent and a group."""

    agent_id: str
    group_id: str
    membership_type: Literal["exclude", "include"]


class Metrics(TypedDict):
    """A few figures; the rest is for Prometheus."""

    counter: Counters
    gauge: Gauges
    uptime: Uptime


class RenewalTriggered(TypedDict):
    """The renewals that were begun."""

    job_id: NotRequired[str]
    job_ids: list[str]
    status: Literal["renewal_triggered"]


class Tested(TypedDict):
    """Whether a target could be deployed to."""

    checks: list[Check]
    message: str
    status: Literal["failed", "success"]


class Uptime(TypedDict):
    """Since when the server runs."""

    measured_at: str
    server_started: str
    uptime_seconds: float


class Verified(TypedDict):
    """What the server makes of what the agent saw."""

    job_id: str
    verified: bool
    verified_at: str


class Check(TypedDict):
    """One thing that was looked at."""

    message: str
    ms: int
    name: str
    ok: bool | None


class Ended(TypedDict):
    """How jobs ended in some days."""

    completed_count: int
    date: str
    failed_count: int
    success_rate: float


class FailedPackage(TypedDict):
    """One package that was left out."""

    distribution: str
    entry_point: str
    error: str
    version: str


class Error(TypedDict):
    """Every answer of 400 and above."""

    checks: NotRequired[list[Check]]
    details: NotRequired[list[Fault]]
    error: str
    message: str
    request_id: str


class Retries(TypedDict):
    """How many were tried again; every match is one of the three."""

    errors: list[Unretried]
    total_failed: int
    total_matched: int
    total_retried: int
    total_skipped: int


class Build(TypedDict):
    """Which build answers; what is not known of it is empty."""

    build_time: str
    commit: str
    go_version: str
    modified: bool
    python_version: str
    version: str


class Loaded(TypedDict):
    """One kind that can be used."""

    abilities: list[str]
    distribution: str
    kind: str
    kind_of: str
    schema: dict[str, Any]
    version: str


class Me(TypedDict):
    """Whose key it is; what is not known is left out."""

    actor: str
    csrf_token: NotRequired[str]
    expires_at: NotRequired[str]
    key_id: NotRequired[str]
    name: NotRequired[str]
    role: Role


class Reassignments(TypedDict):
    """How many have another owner or team now."""

    errors: list[Unacted]
    reasons: dict[str, int]
    total_failed: int
    total_matched: int
    total_reassigned: int
    total_skipped: int


class Revocations(TypedDict):
    """How many were revoked."""

    errors: list[Unacted]
    reasons: dict[str, int]
    total_failed: int
    total_matched: int
    total_revoked: int
    total_skipped: int


class Renewals(TypedDict):
    """What was ordered."""

    enqueued_jobs: list[Enqueued]
    errors: list[Unacted]
    reasons: dict[str, int]
    total_enqueued: int
    total_failed: int
    total_matched: int
    total_skipped: int


class Gauges(TypedDict):
    """What may grow and shrink."""

    agent_online: int
    agent_total: int
    certificate_active: int
    certificate_expired: int
    certificate_expiring_soon: int
    certificate_revoked: int
    certificate_total: int
    job_pending: int


class VerificationResult(TypedDict):
    """What was seen served."""

    actual_fingerprint: str
    error: NotRequired[str]
    expected_fingerprint: str
    job_id: str
    target_id: str
    verification_status: str
    verified: bool
    verified_at: NotRequired[str]


class Figures(TypedDict):
    """How many there are; ``completed_at`` is when it was seen."""

    active_agents: int
    complete_jobs: int
    completed_at: str
    expired_certificates: int
    expiring_certificates: int
    failed_jobs: int
    offline_agents: int
    pending_jobs: int
    revoked_certificates: int
    total_agents: int
    total_certificates: int


class Summary(Figures):
    """The figures, and the same again where the original's command line looks for them."""

    data: Figures
