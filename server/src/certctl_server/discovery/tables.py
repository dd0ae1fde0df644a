"""What agents found on disks."""

from piccolo.columns import BigInt, Boolean, ForeignKey, OnDelete, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.agents.tables import Agent


class DiscoveryScan(Table):
    """One report of one agent."""

    id = Varchar(length=128, primary_key=True)
    agent_id = ForeignKey(Agent, null=False, on_delete=OnDelete.restrict)
    directories = Text(default="[]")
    certificates_found = BigInt(default=0)
    certificates_new = BigInt(default=0)
    errors_count = BigInt(default=0)
    scan_duration_ms = BigInt(default=0)
    started_at = Timestamptz()
    completed_at = Timestamptz(null=True, default=None)


class DiscoveredCertificate(Table):
    """A certificate at a place on an agent's machine. Every text in it is a stranger's."""

    id = Varchar(length=128, primary_key=True)
    fingerprint_sha256 = Varchar(length=64)
    common_name = Varchar(length=255, default="")
    sans = Text(default="[]")
    serial_number = Varchar(length=128, default="")
    issuer_dn = Text(default="")
    subject_dn = Text(default="")
    not_before = Timestamptz(null=True, default=None)
    not_after = Timestamptz(null=True, default=None)
    key_algorithm = Varchar(length=32, default="")
    key_size = BigInt(default=0)
    is_ca = Boolean(default=False)
    pem_data = Text(default="")
    source_path = Varchar(length=1024)
    source_format = Varchar(length=16, default="")
    agent_id = ForeignKey(Agent, null=False, on_delete=OnDelete.restrict)
    discovery_scan_id = Varchar(length=128, null=True, default=None)
    managed_certificate_id = Varchar(length=128, null=True, default=None)
    status = Varchar(length=16)
    first_seen_at = Timestamptz()
    last_seen_at = Timestamptz()
    dismissed_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
    updated_at = Timestamptz()
