"""Which agents a group's criteria fit: both become keys that SQL compares as plain text.

An agent has one key per criterion, written when it says something else of itself. A group has what such a key must
equal, or the first and the last one that fit. So a statement finds the members of any number of groups.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from packaging.version import InvalidVersion, Version

from certctl_server.agents.tables import SCANNER

RELEASE_NUMBERS, DIGITS = 6, 9
PHASES = {"a": 1, "b": 2, "rc": 3}
FINAL = 4
LOWEST, HIGHEST = "0", ":"
"""Before and behind every version's key: keys are digits, and a colon follows 9."""
COMPARISON = re.compile(r"(>=|<=|==|!=|>|<|=)?\s*(\S+)\Z")

#: Whether agent ``a`` is a member of group ``g``; ``m`` is its row in agent_group_member, if it has one.
MEMBER = f"""(m.membership_type = 'include' OR (m.membership_type IS NULL AND g.enabled AND g.has_criteria
    AND a.retired_at IS NULL AND a.id <> '{SCANNER}'
    AND (g.os_key = '' OR a.os_key = g.os_key)
    AND (g.architecture_key = '' OR a.architecture_key = g.architecture_key)
    AND (g.ip_from = '' OR (a.ip_key >= g.ip_from AND a.ip_key <= g.ip_until))
    AND (g.version_from = '' OR (a.version_key >= g.version_from AND a.version_key < g.version_until
        AND a.version_key NOT IN ({{ids:g.version_not}})))))"""


KEYS = ("os_key", "architecture_key", "ip_key", "version_key")


def agent_keys(agent: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the keys of an agent; None where what it says cannot be read, so that no such criterion fits."""
    return {
        "os_key": agent["os"].casefold(),
        "architecture_key": agent["architecture"].casefold(),
        "ip_key": _ip_key(agent["ip_address"]),
        "version_key": _version_key(agent["version"]),
    }


def group_keys(group: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns that hold a group's criteria as keys, and a fault for each criterion that is none."""
    faults: dict[str, str] = {}
    given = {name: group[f"match_{name}"].strip() for name in ("os", "architecture", "ip_cidr", "version")}
    keys: dict[str, Any] = {
        "os_key": given["os"].casefold(),
        "architecture_key": given["architecture"].casefold(),
        "ip_from": "",
        "ip_until": "",
        "has_criteria": any(given.values()),
    }
    if cidr := given["ip_cidr"]:
        try:
            keys["ip_from"], keys["ip_until"] = _range(cidr)
        except ValueError:
            faults["match_ip_cidr"] = "is no network such as 10.0.0.0/8 or 2001:db8::/32"
    try:
        keys |= _versions(given["version"]).columns()
    except ValueError as exc:
        faults["match_version"] = str(exc)
    return keys, faults


def _range(cidr: str) -> tuple[str, str]:
    if "/" not in cidr:
        raise ValueError("a network has a length")
    network = ip_network(cidr, strict=False)
    return _ip_text(network.network_address), _ip_text(network.broadcast_address)


def _ip_key(text: str) -> str | None:
    try:
        return _ip_text(ip_address(text.strip()))
    except ValueError:
        return None


def _ip_text(address: IPv4Address | IPv6Address) -> str:
    plain = getattr(address, "ipv4_mapped", None) or address
    return f"{plain.version}{int(plain):0{plain.max_prefixlen // 4}x}"


def _version_key(text: str) -> str | None:
    """Return digits that sort as versions do (PEP 440), None for what is no version."""
    try:
        version = Version(text)
    except InvalidVersion:
        return None
    numbers = (version.epoch, *version.release, *(0,) * (RELEASE_NUMBERS - len(version.release)))
    phase, count = version.pre or ("", 0)
    # What is developed towards a release comes before all of its candidates.
    towards = not phase and version.is_devrelease and version.post is None
    rank = 0 if towards else PHASES.get(phase, FINAL)
    tail = (count, *_with(version.post, absent=0), *_with(version.dev, absent=1))
    if len(numbers) > RELEASE_NUMBERS + 1 or max(*numbers, *tail) >= 10**DIGITS:
        return None
    return "".join(f"{number:0{DIGITS}}" for number in (*numbers, rank, *tail))


def _with(number: int | None, *, absent: int) -> tuple[int, int]:
    return (absent, 0) if number is None else (1 - absent, number)


@dataclass(slots=True)
class _Versions:
    """The keys that fit: from one on, below another, but for some. Empty: any."""

    start: str = ""
    until: str = ""
    but: tuple[str, ...] = ()

    def narrow(self, sign: str, key: str) -> None:
        behind = key + "0"  # no key is longer than another, so this one is just behind
        if sign == "!=":
            self.but += (key,)
        if sign in {">=", "==", "="}:
            self.start = max(self.start, key)
        if sign == ">":
            self.start = max(self.start, behind)
        if sign == "<":
            self.until = min(self.until, key)
        if sign in {"<=", "==", "="}:
            self.until = min(self.until, behind)

    def columns(self) -> dict[str, str]:
        return {"version_from": self.start, "version_until": self.until, "version_not": json.dumps(self.but)}


def _versions(text: str) -> _Versions:
    """Read comparisons such as ``>=2.0.0, <3.0.0``; a version alone must be equalled.

    Raises:
        ValueError: in words for the client.
    """
    if not text:
        return _Versions()
    found, wrong = _Versions(LOWEST, HIGHEST), []
    for part in map(str.strip, text.split(",")):
        match = COMPARISON.match(part)
        key = _version_key(match[2]) if match else None
        if match is None or key is None:
            wrong.append(part)
        else:
            found.narrow(match[1] or "==", key)
    if wrong:
        told = ", ".join(f"{part[:64]!r}" for part in wrong)
        raise ValueError(f"holds {told}: each part is >=, <=, >, <, == or != and a version, such as >=2.0.0, <3.0.0")
    if found.start >= found.until:
        raise ValueError("fits no version at all")
    return found
