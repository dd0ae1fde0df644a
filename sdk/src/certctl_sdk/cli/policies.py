"""Rules that certificates have to keep to, and which of them do not."""

from __future__ import annotations

from certctl_sdk.cli.build import part_command
from certctl_sdk.cli.resources import Resource, group

RULES = Resource(
    path="policies",
    words="Rules that certificates have to keep to.",
    one="rule",
    columns=("id", "name", "type", "severity", "enabled", "config"),
    filters={"type": "type", "severity": "severity", "enabled": "enabled"},
    options={"type": "type", "severity": "severity"},
    required=("type",),
    has_config=True,
)
VIOLATION_COLUMNS = ("id", "certificate_id", "severity", "message", "created_at", "resolved_at")

policies = group(RULES)
policies.add_command(
    part_command(RULES.path, "violations", VIOLATION_COLUMNS, "List the certificates that break a rule, or did.")
)
