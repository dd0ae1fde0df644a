"""What certificates may be, and when they are renewed."""

from piccolo.columns import BigInt, Boolean, ForeignKey, OnDelete, Text

from certctl_server.agents.tables import AgentGroup
from certctl_server.resource import Resource


class CertificateProfile(Resource):
    """Bounds on keys, names, use and lifetime. Lists are JSON."""

    description = Text(default="")
    allowed_key_algorithms = Text(default="[]")
    max_ttl_seconds = BigInt(default=0)
    allowed_ekus = Text(default="[]")
    required_san_patterns = Text(default="[]")
    spiffe_uri_pattern = Text(default="")
    allow_short_lived = Boolean(default=False)
    no_rev_avail = Boolean(default=False)
    include_common_name = Boolean(default=True)
    requires_approval = Boolean(default=False)
    enabled = Boolean(default=True)


class RenewalPolicy(Resource):
    """When a certificate is renewed, how often it is tried, and who is told. Lists are JSON."""

    renewal_window_days = BigInt(default=30)
    auto_renew = Boolean(default=True)
    max_retries = BigInt(default=3)
    retry_interval_seconds = BigInt(default=3600)
    alert_thresholds_days = Text(default="[30,14,7,0]")
    certificate_profile_id = ForeignKey(CertificateProfile, null=True, default=None, on_delete=OnDelete.restrict)
    requires_approval = Boolean(default=False)
    maintenance_windows = Text(default="[]")
    rollout = Text(null=True, default=None)
    agent_group_id = ForeignKey(AgentGroup, null=True, default=None, on_delete=OnDelete.restrict)
