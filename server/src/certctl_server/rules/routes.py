"""Certificate profiles and renewal policies over HTTP."""

from typing import Annotated, Literal

import msgspec

from certctl_server.body import FAULT, ID, Name
from certctl_server.certificates.follow import follow
from certctl_server.context import Context
from certctl_server.crud import Crud, crud_routes
from certctl_server.filters import flag
from certctl_server.rules.service import LISTS, check_policy_values, check_profile_values
from certctl_server.rules.tables import CertificateProfile, RenewalPolicy
from certctl_server.rules.windows import zone_fault

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Algorithm = Literal["RSA", "ECDSA", "Ed25519"]
Eku = Literal["serverAuth", "clientAuth", "codeSigning", "emailProtection", "timeStamping"]
Bits = Annotated[int, msgspec.Meta(ge=0, le=16384)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=100 * 366 * 86400)]
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
KEPT = "Kept and shown; what it names is not deleted. No other effect: a certificate has its own profile and targets"
Percent = Annotated[int, msgspec.Meta(ge=1, le=100)]


class KeyRuleBody(msgspec.Struct):
    """A key algorithm that is allowed, from a size on."""

    algorithm: Algorithm
    min_size: Bits = 0


class ProfileBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    description: Text = ""
    allowed_key_algorithms: Annotated[list[Algorithm | KeyRuleBody], msgspec.Meta(max_length=16)] = msgspec.field(
        default_factory=lambda: ["ECDSA", "RSA"]
    )
    max_ttl_seconds: Seconds = 0
    max_ttl_hours: Annotated[int, msgspec.Meta(ge=0, le=100 * 366 * 24)] | None = None
    allowed_ekus: Annotated[list[Eku], msgspec.Meta(max_length=16)] = msgspec.field(
        default_factory=lambda: ["serverAuth"]
    )
    required_san_patterns: Annotated[list[Pattern], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)
    spiffe_uri_pattern: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    allow_short_lived: bool = False
    no_rev_avail: bool | None = None
    include_common_name: bool = True
    requires_approval: bool = False
    enabled: bool = True


class Window(msgspec.Struct):
    """A stretch of the week; an end that is not after the start lies on the next day."""

    days: Annotated[
        list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], msgspec.Meta(min_length=1, max_length=7)
    ]
    start: TimeOfDay
    end: TimeOfDay
    timezone: Annotated[str, msgspec.Meta(max_length=64, extra={FAULT: zone_fault})]


class Rollout(msgspec.Struct):
    """How a new version spreads over the targets."""

    waves: Annotated[list[Percent], msgspec.Meta(min_length=1, max_length=100)]
    soak_seconds: Annotated[int, msgspec.Meta(ge=0, le=30 * 86400)] = 0
    max_failures: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class PolicyBody(msgspec.Struct):
    """What clients may set."""

    name: Name
    renewal_window_days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 30
    auto_renew: bool = True
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3
    retry_interval_seconds: Annotated[int, msgspec.Meta(ge=60, le=86400)] = 3600
    alert_thresholds_days: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=365)]], msgspec.Meta(max_length=32)] = (
        msgspec.field(default_factory=lambda: [30, 14, 7, 0])
    )
    certificate_profile_id: Annotated[ID, msgspec.Meta(description=KEPT)] | None = None
    requires_approval: bool = False
    maintenance_windows: Annotated[list[Window], msgspec.Meta(max_length=32)] = msgspec.field(default_factory=list)
    rollout: Rollout | None = None
    agent_group_id: Annotated[ID, msgspec.Meta(description=KEPT)] | None = None


async def _changed(_: Context, id: str) -> None:
    """Let certificates and their waiting jobs follow a renewal policy."""
    await follow("renewal_policy_id", id)


PROFILES = Crud(
    "/api/v1/profiles",
    CertificateProfile,
    ProfileBody,
    "prof",
    "Profile",
    audit_name="profile",
    actions=("create_profile", "update_profile", "delete_profile"),
    filters={"enabled": flag("item.enabled")},
    json=LISTS,
    types={"allowed_key_algorithms": list[KeyRuleBody], "no_rev_avail": bool},
    check=check_profile_values,
)
POLICIES = Crud(
    "/api/v1/renewal-policies",
    RenewalPolicy,
    PolicyBody,
    "rp",
    "Renewal policy",
    json=frozenset({"alert_thresholds_days", "maintenance_windows", "rollout"}),
    optional=frozenset({"agent_group_id", "certificate_profile_id", "maintenance_windows", "rollout"}),
    reserved=frozenset({"rp-default"}),
    check=check_policy_values,
    changed=_changed,
)
routes = [crud_routes(PROFILES), crud_routes(POLICIES)]
