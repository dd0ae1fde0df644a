"""The resources of the API: what each can do beyond being listed, read, made, changed and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certctl_sdk.api.calls import Call, Page, Place, Readable, Resource, Rows, sent

if TYPE_CHECKING:  # types cost an agent memory and a command time
    from certctl_sdk.api import bodies, objects, queries, replies


class Certificates(
    Resource["objects.ManagedCertificate", "queries.Certificates", "bodies.NewCertificate", "bodies.CertificateChange"]
):
    """Certificates, from the order to the end."""

    def versions(
        self, id: str, query: queries.CertificatesVersions | None = None
    ) -> Call[Page[objects.CertificateVersion]]:
        """Return what was issued for one, newest first."""
        return Call("GET", self.at(id, "versions"), sent(query), rows=True)

    def deployments(
        self, id: str, query: queries.CertificatesDeployments | None = None
    ) -> Call[Page[objects.Deployment]]:
        """Return its targets, and what is there."""
        return Call("GET", self.at(id, "deployments"), sent(query), rows=True)

    def renew(self, id: str, body: bodies.RenewBody | None = None) -> Call[replies.RenewalTriggered]:
        """Renew now."""
        return Call("POST", self.at(id, "renew"), body=sent(body), status=202)

    def deploy(self, id: str, body: bodies.DeployBody | None = None) -> Call[replies.DeploymentTriggered]:
        """Put the newest version in place again."""
        return Call("POST", self.at(id, "deploy"), body=sent(body), status=202)

    def revoke(self, id: str, body: bodies.RevokeBody | None = None) -> Call[replies.Revoked]:
        """Revoke every version that is not expired."""
        return Call("POST", self.at(id, "revoke"), body=sent(body))

    def bulk_renew(self, body: bodies.BulkRenewBody) -> Call[replies.Renewals]:
        """Renew all that are named or match."""
        return Call("POST", self.at("bulk-renew"), body=sent(body))

    def bulk_revoke(self, body: bodies.BulkRevokeBody) -> Call[replies.Revocations]:
        """Revoke all that are named or match."""
        return Call("POST", self.at("bulk-revoke"), body=sent(body))

    def bulk_reassign(self, body: bodies.BulkReassignBody) -> Call[replies.Reassignments]:
        """Give all that are named or match to another owner."""
        return Call("POST", self.at("bulk-reassign"), body=sent(body))


class Jobs(Readable["objects.Job", "queries.Jobs"]):
    """What is being done."""

    def cancel(self, id: str) -> Call[replies.Cancelled]:
        """Call off what has not ended."""
        return Call("POST", self.at(id, "cancel"), body={})

    def approve(self, id: str, body: bodies.ReasonBody | None = None) -> Call[replies.Approved]:
        """Let go on what waits for approval."""
        return Call("POST", self.at(id, "approve"), body=sent(body))

    def reject(self, id: str, body: bodies.ReasonBody | None = None) -> Call[replies.Rejected]:
        """Refuse what waits for approval."""
        return Call("POST", self.at(id, "reject"), body=sent(body))

    def retry(self, id: str) -> Call[replies.Retried]:
        """Try again what failed; order anew what was cancelled."""
        return Call("POST", self.at(id, "retry"), body={})

    def bulk_retry(self, body: bodies.BulkRetryBody) -> Call[replies.Retries]:
        """Try again all that are named or match."""
        return Call("POST", self.at("bulk-retry"), body=sent(body))

    def verify(self, id: str, body: bodies.VerifyBody) -> Call[replies.Verified]:
        """Say what is served after a deployment."""
        return Call("POST", self.at(id, "verify"), body=sent(body))

    def verification(self, id: str) -> Call[replies.VerificationResult]:
        """Return what was seen served."""
        return Call("GET", self.at(id, "verification"))


class Agents(Readable["objects.Agent", "queries.Agents"]):
    """The daemons on the machines, and what each says and asks."""

    def register(self, body: bodies.NewAgent) -> Call[objects.Agent]:
        """Make one known; its key is in this answer only."""
        return Call("POST", self.at(), body=sent(body), status=201)

    def rotate_key(self, id: str) -> Call[objects.Agent]:
        """Make its next key; the old one lasts until it is used, and a day at most."""
        return Call("POST", self.at(id, "rotate-key"), body={})

    def heartbeat(self, id: str, body: bodies.HeartbeatBody) -> Call[replies.HeartbeatRecorded]:
        """Say that it lives."""
        return Call("POST", self.at(id, "heartbeat"), body=sent(body))

    def work(self, id: str, query: queries.AgentsWork | None = None) -> Call[replies.Work]:
        """Return what it is to do."""
        return Call("GET", self.at(id, "work"), sent(query))

    def csr(self, id: str, body: bodies.CsrBody) -> Call[replies.CsrTaken]:
        """Hand in a CSR for a waiting order."""
        return Call("POST", self.at(id, "csr"), body=sent(body), status=202)

    def certificate(self, id: str, certificate_id: str) -> Call[replies.CertificatePem]:
        """Return the chain that it is to deploy."""
        return Call("GET", self.at(id, "certificates", certificate_id))

    def report(self, id: str, job_id: str, body: bodies.StatusBody) -> Call[replies.Updated]:
        """Say how far it is with a job."""
        return Call("POST", self.at(id, "jobs", job_id, "status"), body=sent(body))

    def discovered(self, id: str, body: bodies.Report) -> Call[objects.DiscoveryScan]:
        """Say what a scan found."""
        return Call("POST", self.at(id, "discoveries"), body=sent(body), status=202)


class Tokens(Rows["objects.EnrolmentToken", "queries.AgentsTokens"]):
    """What lets machines enrol."""

    def create(self, body: bodies.TokenBody | None = None) -> Call[objects.EnrolmentToken]:
        """Make one; its text is in this answer only."""
        return Call("POST", self.at(), body=sent(body), status=201)

    def delete(self, id: str) -> Call[None]:
        """End one at once."""
        return Call("DELETE", self.at(id), status=204)


class Keys(Rows["objects.ApiKey", "queries.AuthKeys"]):
    """Keys of people and programs."""

    def create(self, body: bodies.NewKey) -> Call[objects.ApiKey]:
        """Make one; its text is in this answer only."""
        return Call("POST", self.at(), body=sent(body), status=201)

    def rotate(self, id: str) -> Call[objects.ApiKey]:
        """Make its successor; the old one lasts until that is used, and a day at most."""
        return Call("POST", self.at(id, "rotate"), body={})

    def delete(self, id: str) -> Call[None]:
        """End one at once."""
        return Call("DELETE", self.at(id), status=204)


class Auth(Place):
    """Who one is."""

    def check(self) -> Call[replies.Checked]:
        """Return who the key says one is."""
        return Call("GET", self.at("check"))

    def info(self) -> Call[replies.Info]:
        """Return whether a key is needed."""
        return Call("GET", self.at("info"))

    def me(self) -> Call[replies.Me]:
        """Return all that is known of the key."""
        return Call("GET", self.at("me"))


class AgentGroups(
    Resource["objects.AgentGroup", "queries.AgentGroups", "bodies.NewAgentGroup", "bodies.AgentGroupChange"]
):
    """Machines taken together."""

    def members(self, id: str, query: queries.AgentGroupsMembers | None = None) -> Call[Page[objects.AgentGroupMember]]:
        """Return who belongs now."""
        return Call("GET", self.at(id, "members"), sent(query), rows=True)

    def put_member(self, id: str, agent_id: str, body: bodies.MemberBody) -> Call[replies.MemberSaid]:
        """Put an agent in, or keep it out."""
        return Call("PUT", self.at(id, "members", agent_id), body=sent(body))

    def forget_member(self, id: str, agent_id: str) -> Call[None]:
        """Leave it to the criteria again."""
        return Call("DELETE", self.at(id, "members", agent_id), status=204)


class Issuers(Resource["objects.Issuer", "queries.Issuers", "bodies.NewIssuer", "bodies.IssuerChange"]):
    """CAs that sign."""

    def test(self, id: str) -> Call[replies.Connected]:
        """Ask the CA, changing nothing there."""
        return Call("POST", self.at(id, "test"), body={})


class Targets(Resource["objects.DeploymentTarget", "queries.Targets", "bodies.NewTarget", "bodies.TargetChange"]):
    """Where certificates are deployed to."""

    def test(self, id: str) -> Call[replies.Tested]:
        """Return whether it could be deployed to now."""
        return Call("POST", self.at(id, "test"), body={})


class Notifiers(Resource["objects.Notifier", "queries.Notifiers", "bodies.NewNotifier", "bodies.NotifierChange"]):
    """Channels to people."""

    def test(self, id: str) -> Call[replies.Sent]:
        """Send a message that says it is a test."""
        return Call("POST", self.at(id, "test"), body={})


class Notifications(Readable["objects.NotificationEvent", "queries.Notifications"]):
    """What was sent to people."""

    def read(self, id: str) -> Call[replies.MarkedAsRead]:
        """Mark one as read."""
        return Call("POST", self.at(id, "read"), body={})


class Discovered(Readable["objects.DiscoveredCertificate", "queries.DiscoveredCertificates"]):
    """Certificates that were found."""

    def claim(self, id: str, body: bodies.Claim) -> Call[replies.Claimed]:
        """Say which managed certificate it is, or make one of it."""
        return Call("POST", self.at(id, "claim"), body=sent(body))

    def dismiss(self, id: str, body: bodies.Dismissal | None = None) -> Call[replies.Dismissed]:
        """Say that it is of no interest."""
        return Call("POST", self.at(id, "dismiss"), body=sent(body))


class Policies(Resource["objects.PolicyRule", "queries.Policies", "bodies.NewPolicyRule", "bodies.PolicyRuleChange"]):
    """Rules for certificates."""

    def violations(
        self, id: str, query: queries.PoliciesViolations | None = None
    ) -> Call[Page[objects.PolicyViolation]]:
        """Return what breaks one, and what did."""
        return Call("GET", self.at(id, "violations"), sent(query), rows=True)


class NetworkScanTargets(
    Resource[
        "objects.NetworkScanTarget",
        "queries.NetworkScanTargets",
        "bodies.NewNetworkScanTarget",
        "bodies.NetworkScanTargetChange",
    ]
):
    """Networks that are searched for certificates."""

    def scan(self, id: str) -> Call[objects.DiscoveryScan | replies.NothingToScan]:
        """Search one now."""
        return Call("POST", self.at(id, "scan"), body={}, status=202)


class Figures(Place):
    """A few figures."""

    def get(self) -> Call[replies.Metrics]:
        """Return how many there are of what."""
        return Call("GET", self.at())


class Stats(Place):
    """Figures for dashboards."""

    def summary(self) -> Call[replies.Summary]:
        """Return how many certificates, agents and jobs there are."""
        return Call("GET", self.at("summary"))

    def certificates_by_status(self) -> Call[list[replies.InStatus]]:
        """Return how many certificates there are in each status."""
        return Call("GET", self.at("certificates-by-status"), series=True)

    def expiration_timeline(self, query: queries.StatsExpirationTimeline | None = None) -> Call[list[replies.Expiring]]:
        """Return how many certificates end on each day from today on."""
        return Call("GET", self.at("expiration-timeline"), sent(query), series=True)

    def job_trends(self, query: queries.StatsJobTrends | None = None) -> Call[list[replies.Ended]]:
        """Return how jobs ended on each day up to today."""
        return Call("GET", self.at("job-trends"), sent(query), series=True)

    def issuance_rate(self, query: queries.StatsIssuanceRate | None = None) -> Call[list[replies.Issued]]:
        """Return how many certificates were issued on each day up to today."""
        return Call("GET", self.at("issuance-rate"), sent(query), series=True)


def health() -> Call[replies.Health]:
    """Return that the server lives, and its background loops."""
    return Call("GET", Place("health").at())


def version() -> Call[replies.Build]:
    """Return which build answers."""
    return Call("GET", Place("version").at())


def send_digest() -> Call[replies.Sent]:
    """Send the digest now."""
    return Call("POST", Place("digest").at("send"), body={})


def connectors() -> Call[replies.Installed]:
    """Return what is installed, and what was left out."""
    return Call("GET", Place("connectors").at())


def discovery_summary() -> Call[replies.DiscoverySummary]:
    """Return how many certificates were found, by status."""
    return Call("GET", Place("discovery-summary").at())


agent_groups = AgentGroups("agent-groups")
"""Machines taken together."""
agents = Agents("agents")
"""The daemons on the machines."""
audit: Readable[objects.AuditEvent, queries.Audit] = Readable("audit")
"""Who did what, and when."""
auth = Auth("auth")
"""Who one is."""
certificates = Certificates("certificates")
"""Certificates, from the order to the end."""
discovered_certificates = Discovered("discovered-certificates")
"""Certificates that were found."""
discovery_scans: Rows[objects.DiscoveryScan, queries.DiscoveryScans] = Rows("discovery-scans")
"""Reports of what was found."""
issuers = Issuers("issuers")
"""CAs that sign."""
jobs = Jobs("jobs")
"""What is being done."""
keys = Keys("auth/keys")
"""Keys of people and programs."""
metrics = Figures("metrics")
"""A few figures."""
network_scan_targets = NetworkScanTargets("network-scan-targets")
"""Networks that are searched for certificates."""
notifications = Notifications("notifications")
"""What was sent to people."""
notifiers = Notifiers("notifiers")
"""Channels to people."""
owners: Resource[objects.Owner, queries.Owners, bodies.NewOwner, bodies.OwnerChange] = Resource("owners")
"""Who is told about a certificate."""
policies = Policies("policies")
"""Rules for certificates."""
profiles: Resource[
    objects.CertificateProfile, queries.Profiles, bodies.NewCertificateProfile, bodies.CertificateProfileChange
] = Resource("profiles")
"""What certificates may be."""
renewal_policies: Resource[
    objects.RenewalPolicy, queries.RenewalPolicies, bodies.NewRenewalPolicy, bodies.RenewalPolicyChange
] = Resource("renewal-policies")
"""When certificates are renewed."""
stats = Stats("stats")
"""Figures for dashboards."""
targets = Targets("targets")
"""Where certificates are deployed to."""
teams: Resource[objects.Team, queries.Teams, bodies.NewTeam, bodies.TeamChange] = Resource("teams")
"""Who certificates belong to."""
tokens = Tokens("agents/tokens")
"""What lets machines enrol."""
