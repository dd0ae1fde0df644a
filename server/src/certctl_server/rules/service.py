"""What profiles and renewal policies may say, beyond what the types of their bodies do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec
from certctl_core.profile import check_profile

from certctl_server.rules.profiles import of_row

LEAST = {"RSA": 2048, "ECDSA": 256, "Ed25519": 256}
ALGORITHMS = {name.casefold(): name for name in LEAST}
HOUR = 3600
LISTS = frozenset({"allowed_key_algorithms", "allowed_ekus", "required_san_patterns"})
"""Columns of a profile that hold JSON."""


def check_profile_values(values: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, str]:
    """Complete what a client says of a profile and return what is wrong with it."""
    hours = values.pop("max_ttl_hours", None)
    if hours is not None and not values.get("max_ttl_seconds"):
        values["max_ttl_seconds"] = hours * HOUR
    if values.get("no_rev_avail", False) is None:
        values["no_rev_avail"] = values.get("allow_short_lived", (before or {}).get("allow_short_lived", False))
    if "allowed_key_algorithms" in values:
        values["allowed_key_algorithms"] = [_key_rule(each) for each in values["allowed_key_algorithms"]]
    merged = {**(before or {}), **values}
    return check_profile(of_row(merged | {name: json.dumps(merged[name]) for name in LISTS}))


def _key_rule(given: Any) -> dict[str, Any]:
    """An algorithm's name alone means its least size."""
    rule = {"algorithm": given} if isinstance(given, str) else msgspec.structs.asdict(given)
    algorithm = ALGORITHMS.get(rule["algorithm"].casefold(), rule["algorithm"])
    return {"algorithm": algorithm, "min_size": rule.get("min_size") or LEAST.get(algorithm, 0)}


def check_policy_values(values: dict[str, Any], _: Mapping[str, Any] | None) -> dict[str, str]:
    """Complete what a client says of a renewal policy and return what is wrong with it."""
    faults: dict[str, str] = {}
    if "alert_thresholds_days" in values:
        values["alert_thresholds_days"] = sorted(set(values["alert_thresholds_days"]), reverse=True)
    if rollout := values.get("rollout"):
        if any(later <= earlier for earlier, later in pairwise(rollout.waves)):
            faults["rollout.waves"] = "do not ascend"
        elif rollout.waves[-1] != 100:  # noqa: PLR2004  # percent
            faults["rollout.waves"] = "do not end with 100"
    return faults
