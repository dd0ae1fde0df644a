"""Profiles as the rules of core read them."""

from __future__ import annotations

import json
from datetime import timedelta

from certctl_core.profile import KeyRule, Profile

from certctl_server import db


def of_row(row: db.Row) -> Profile:
    """Return the rules that a row of ``certificate_profile`` holds."""
    rules = json.loads(row["allowed_key_algorithms"])
    return Profile(
        name=row["name"],
        allowed_key_algorithms=tuple(KeyRule(rule["algorithm"], rule["min_size"]) for rule in rules),
        max_ttl=timedelta(seconds=row["max_ttl_seconds"]) if row["max_ttl_seconds"] else None,
        allowed_ekus=tuple(json.loads(row["allowed_ekus"])),
        required_san_patterns=tuple(json.loads(row["required_san_patterns"])),
        spiffe_uri_pattern=row["spiffe_uri_pattern"],
        allow_short_lived=row["allow_short_lived"],
        no_rev_avail=row["no_rev_avail"],
        include_common_name=row["include_common_name"],
        requires_approval=row["requires_approval"],
    )
