"""Which addresses a client may have scanned, and which of them are never dialled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from certctl_sdk.egress import Reach, reach

HOST_BITS = 12
"""Of one network: /20 and /116."""
PROBES = 65_536
"""Of one run: each address at each port."""


def network(text: str) -> IPv4Network | IPv6Network:
    """Return the network or the single address that ``text`` is; bits of the host do not count.

    Raises:
        ValueError: it is neither, or wider than one entry may be.
    """
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is neither an address nor a network such as 192.0.2.0/24") from None
    if "%" in text:
        raise ValueError("names an interface of this machine")
    if found.max_prefixlen - found.prefixlen > HOST_BITS:
        raise ValueError(f"is wider than /{found.max_prefixlen - HOST_BITS}: give several networks")
    return found


def fault(text: str) -> str | None:
    """Return what is wrong with an entry, None if nothing is."""
    try:
        network(text)
    except ValueError as exc:
        return str(exc)
    return None


def check_values(values: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, str]:
    """Bring networks and ports to their normal form, each once; return what is wrong with them together."""
    if "cidrs" in values:
        values["cidrs"] = list(dict.fromkeys(_spelling(network(text)) for text in values["cidrs"]))
    if "ports" in values:
        values["ports"] = list(dict.fromkeys(values["ports"]))
    merged = {**(before or {}), **values}
    addresses = sum(network(text).num_addresses for text in merged["cidrs"])
    probes = addresses * len(merged["ports"])
    if probes > PROBES:
        given = "cidrs" if "cidrs" in values else "ports"
        return {given: f"{addresses} addresses at {len(merged['ports'])} ports are {probes} probes, over {PROBES}"}
    return {}


def _spelling(found: IPv4Network | IPv6Network) -> str:
    single = found.prefixlen == found.max_prefixlen
    return str(found.network_address if single else found)


def is_dialled(address: IPv4Address | IPv6Address) -> bool:
    """Whether a scan tries an address: neither this machine nor what no call ever goes to, metadata services above all.

    An IPv4 address in the clothes of an IPv6 one is judged as itself.
    """
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return not (address.is_loopback or (inner and inner.is_loopback) or reach(address) is Reach.NEVER)


def has_any(cidrs: Iterable[str]) -> bool:
    """Whether there is an address among these that a scan tries."""
    return any(is_dialled(address) for text in cidrs for address in network(text))
