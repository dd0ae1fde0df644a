"""Certificates, their versions, where they are served, and what was revoked."""

from piccolo.columns import BigInt, Boolean, ForeignKey, OnDelete, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.issuers.tables import Issuer
from certctl_server.people.tables import Owner, Team
from certctl_server.resource import Resource
from certctl_server.rules.tables import CertificateProfile, RenewalPolicy
from certctl_server.targets.tables import Target

KEEP = OnDelete.restrict


class Certificate(Resource):
    """What is to be served under some names.

    ``status`` and the moments beside it are written by ``status.settle`` alone. ``alerted`` is JSON: by life, the
    lowest threshold that people were told of.
    """

    common_name = Varchar(length=255, default="")
    sans = Text(default="[]")
    environment = Varchar(length=50, default="")
    owner_id = ForeignKey(Owner, null=False, on_delete=KEEP)
    team_id = ForeignKey(Team, null=False, on_delete=KEEP)
    issuer_id = ForeignKey(Issuer, null=False, on_delete=KEEP)
    renewal_policy_id = ForeignKey(RenewalPolicy, null=False, on_delete=KEEP)
    certificate_profile_id = ForeignKey(CertificateProfile, null=True, default=None, on_delete=KEEP)
    tags = Text(default="{}")
    status = Varchar(length=20)
    decided = Varchar(length=20)
    flip_at = Timestamptz(null=True, default=None)
    renew_due_at = Timestamptz(null=True, default=None)
    alert_due_at = Timestamptz(null=True, default=None)
    alerted = Text(default="{}")
    was_active = Boolean(default=False)
    version_id = Varchar(length=128, null=True, default=None)
    expires_at = Timestamptz(null=True, default=None)
    not_before = Timestamptz(null=True, default=None)
    issued_at = Timestamptz(null=True, default=None)
    serial_number = Varchar(length=128, default="")
    fingerprint = Varchar(length=64, default="")
    key_algorithm = Varchar(length=32, default="")
    key_size = BigInt(default=0)
    last_renewal_at = Timestamptz(null=True, default=None)
    last_deployment_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)
    revocation_reason = Varchar(length=32, default="")
    revocation_state = Varchar(length=16, default="")
    archived_at = Timestamptz(null=True, default=None)
    deployment_state = Varchar(length=16, default="none")
    last_error = Text(default="")


class CertificateVersion(Table):
    """One certificate that a CA signed for us. The chain is PEM, leaf first."""

    id = Varchar(length=128, primary_key=True)
    certificate_id = ForeignKey(Certificate, null=False, on_delete=KEEP)
    version = BigInt()
    issuer_id = ForeignKey(Issuer, null=False, on_delete=KEEP)
    agent_id = Varchar(length=128, default="")
    job_id = Varchar(length=128, default="")
    serial_number = Varchar(length=128, default="")
    not_before = Timestamptz()
    not_after = Timestamptz()
    fingerprint_sha256 = Varchar(length=64)
    public_key_sha256 = Varchar(length=64, default="")
    pem_chain = Text(default="")
    csr_pem = Text(default="")
    key_algorithm = Varchar(length=32, default="")
    key_size = BigInt(default=0)
    reference = Text(default="")
    created_at = Timestamptz()
    revoked_at = Timestamptz(null=True, default=None)
    revocation_reason = Varchar(length=32, default="")


class CertificateTarget(Table):
    """That a certificate belongs on a target, and what is there. The real key is (certificate_id, target_id)."""

    certificate_id = ForeignKey(Certificate, null=False, on_delete=KEEP, primary_key=True)
    target_id = ForeignKey(Target, null=False, on_delete=KEEP)
    position = BigInt(default=0)
    state = Varchar(length=16, default="none")
    version_id = Varchar(length=128, null=True, default=None)
    served_fingerprint = Varchar(length=64, default="")
    not_before = Timestamptz(null=True, default=None)
    not_after = Timestamptz(null=True, default=None)
    failures = BigInt(default=0)
    last_job_id = Varchar(length=128, default="")
    last_deployed_at = Timestamptz(null=True, default=None)


class Revocation(Table):
    """That a certificate must not be trusted any more, and whether its issuer knows."""

    id = Varchar(length=128, primary_key=True)
    issuer_id = ForeignKey(Issuer, null=False, on_delete=KEEP)
    serial_number = Varchar(length=128, default="")
    certificate_id = ForeignKey(Certificate, null=False, on_delete=KEEP)
    version_id = Varchar(length=128, default="")
    reason = Varchar(length=32, default="")
    revoked_at = Timestamptz()
    state = Varchar(length=16)
    confirmed_at = Timestamptz(null=True, default=None)


class BlockedKey(Table):
    """A public key that was compromised: no CSR with it is accepted."""

    public_key_sha256 = Varchar(length=64, primary_key=True)
    reason = Text(default="")
    created_at = Timestamptz()


class Rollout(Table):
    """How the newest versions of a certificate spread over its targets; its plan is the policy's at the start."""

    certificate_id = Varchar(length=128, primary_key=True)
    status = Varchar(length=16)
    waves = Text()
    soak_seconds = BigInt()
    max_failures = BigInt()
    wave = BigInt(default=0)
    passed_at = Timestamptz(null=True, default=None)
    due_at = Timestamptz(null=True, default=None)
    reason = Text(default="")
    started_at = Timestamptz()


class RolloutTarget(Table):
    """One target in a rollout, held back while ``wave`` is NULL. The real key is (certificate_id, target_id)."""

    certificate_id = Varchar(length=128, primary_key=True)
    target_id = Varchar(length=128)
    version_id = Varchar(length=128)
    previous_version_id = Varchar(length=128, null=True, default=None)
    wave = BigInt(null=True, default=None)


class FollowUp(Table):
    """How far certificates have followed a change of what they refer to. The real key is (reference, row_id).

    ``reference`` names the column of ``certificate``, ``row_id`` the row it leads to. Those up to ``reached`` are done
    since the last change, the ``round``th.
    """

    reference = Varchar(length=64, primary_key=True)
    row_id = Varchar(length=128)
    reached = Varchar(length=128)
    round = BigInt(default=0)
