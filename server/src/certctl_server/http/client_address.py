"""Where a request comes from, also through proxies that we were told to trust."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from litestar.types import Scope


def client_address(scope: Scope, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return the caller's address: the last in X-Forwarded-For that no trusted proxy has, if one of those calls."""
    client = scope.get("client")
    address = client[0] if client else ""
    if not trusted or not _is_in(address, trusted):
        return address
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
    for each in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
        # What is no address did not come from a proxy of ours.
        if not _is_address(each):
            break
        address = each
        if not _is_in(each, trusted):
            break
    return address


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(text: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    if not _is_address(text):
        return False
    address = ip_address(text)
    return any(address in network for network in networks if network.version == address.version)
