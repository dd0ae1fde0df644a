"""What can be declared, in the order in which it is made: nothing refers to what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from certctl_core.names import normalise_sans, parse_san

LEAST_KEY_SIZES = {"RSA": 2048, "ECDSA": 256, "Ed25519": 256}
"""What a key algorithm's name alone means."""
TYPES = {"local": "genericca", "local_ca": "genericca", "step-ca": "stepca"}
"""Other names of types, in lower case."""
Normal = Callable[[Any], Any]


def _key_rules(rules: Iterable[Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"algorithm": each, "min_size": 0} if isinstance(each, str) else each for each in rules
    ]
    return [each | {"min_size": each["min_size"] or LEAST_KEY_SIZES.get(each["algorithm"], 0)} for each in found]


def _networks(texts: Iterable[str]) -> list[str]:
    found = [ip_network(text, strict=False) for text in texts]
    single = (each.prefixlen == each.max_prefixlen for each in found)
    return _once(str(each.network_address if one else each) for each, one in zip(found, single, strict=True))


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _type(text: str) -> str:
    return TYPES.get(text.casefold(), text.casefold())


@dataclass(frozen=True, slots=True)
class Kind:
    """What is particular about one."""

    path: str
    """As the API and files call it."""
    one: str
    """A single one, in files that name the kind with each object."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Fields that hold ids, with the path of what they refer to."""
    required: tuple[str, ...] = ()
    """Fields that a new one needs beside what the API's schema says."""
    needs_name: bool = True
    """It is called by its id where no name is given; otherwise the server finds one."""
    own_names: bool = True
    """Whether no two of them have the same name."""
    has_options: bool = False
    """``config`` is for a connector, and may hold secrets that the API never shows."""
    normal: Mapping[str, Normal] = field(default_factory=dict)
    """What makes values equal that the server takes for the same; a ValueError says why one is none."""


KINDS = (
    Kind("teams", "team"),
    Kind("owners", "owner", {"team_id": "teams"}),
    Kind("profiles", "profile", normal={"allowed_key_algorithms": _key_rules}),
    Kind("agent-groups", "agent-group"),
    Kind(
        "renewal-policies",
        "renewal-policy",
        {"certificate_profile_id": "profiles", "agent_group_id": "agent-groups"},
        normal={"alert_thresholds_days": lambda days: sorted(set(days), reverse=True)},
    ),
    Kind("policies", "policy"),
    Kind("issuers", "issuer", has_options=True, normal={"type": _type}),
    Kind("targets", "target", {"agent_id": "agents"}, own_names=False, has_options=True, normal={"type": _type}),
    Kind("notifiers", "notifier", has_options=True, normal={"type": _type}),
    Kind(
        "certificates",
        "certificate",
        {
            "owner_id": "owners",
            "team_id": "teams",
            "issuer_id": "issuers",
            "renewal_policy_id": "renewal-policies",
            "certificate_profile_id": "profiles",
            "target_ids": "targets",
        },
        required=("owner_id", "team_id", "issuer_id"),
        needs_name=False,
        normal={
            "common_name": lambda text: str(parse_san(text)) if text else "",
            "sans": lambda texts: [str(each) for each in normalise_sans(texts)],
            "target_ids": _once,
        },
    ),
    Kind(
        "network-scan-targets",
        "network-scan-target",
        normal={"cidrs": _networks, "ports": _once},
    ),
)
NAMED = {name: kind for kind in KINDS for name in (kind.path, kind.one)}


def kind_named(text: str) -> Kind | None:
    """Return the kind that a file means by ``text``, in any case of letters and with ``_`` or ``-``."""
    return NAMED.get(text.lower().replace("_", "-"))
