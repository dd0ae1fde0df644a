"""Every table, for the program that binds them to a database."""

from piccolo.table import Table

from certctl_server.agents.tables import Agent, AgentGroup, AgentGroupMember, AgentGroupWait
from certctl_server.audit.tables import AuditArchive, AuditCheckpoint, AuditEvent
from certctl_server.auth.tables import ApiKey, EnrolmentToken, Login, Setting
from certctl_server.certificates.tables import (
    BlockedKey,
    Certificate,
    CertificateTarget,
    CertificateVersion,
    FollowUp,
    Revocation,
    Rollout,
    RolloutTarget,
)
from certctl_server.connectors.tables import ConnectorMemory
from certctl_server.discovery.tables import DiscoveredCertificate, DiscoveryScan
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs.tables import Budget, Intent, Job, Lane, Lease, LoopBeat
from certctl_server.network_scans.tables import NetworkScanTarget
from certctl_server.notices.tables import Notification, Notifier
from certctl_server.people.tables import Owner, Team
from certctl_server.policies.tables import PolicyRule, PolicyViolation
from certctl_server.rules.tables import CertificateProfile, RenewalPolicy
from certctl_server.stats.tables import Tally
from certctl_server.targets.tables import Target

TABLES: tuple[type[Table], ...] = (
    Team,
    Owner,
    CertificateProfile,
    RenewalPolicy,
    Issuer,
    Notifier,
    ConnectorMemory,
    Agent,
    AgentGroup,
    AgentGroupMember,
    AgentGroupWait,
    Target,
    ApiKey,
    Login,
    EnrolmentToken,
    Setting,
    Certificate,
    CertificateVersion,
    CertificateTarget,
    Rollout,
    RolloutTarget,
    Revocation,
    BlockedKey,
    FollowUp,
    Lane,
    Budget,
    Job,
    Intent,
    Lease,
    LoopBeat,
    Notification,
    DiscoveryScan,
    DiscoveredCertificate,
    PolicyRule,
    PolicyViolation,
    NetworkScanTarget,
    AuditEvent,
    AuditCheckpoint,
    Tally,
    AuditArchive,
)
