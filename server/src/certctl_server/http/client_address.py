"""Where a request comes from and whether over TLS, also through proxies that we were told to trust."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from litestar.types import Scope

from certctl_server.settings import Settings, is_loopback


def client_address(scope: Scope, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return the caller's address: the last in X-Forwarded-For that no trusted proxy has, if one of those calls."""
    client = scope.get("client")
    address = client[0] if client else ""
    if not trusted or not _is_in(address, trusted):
        return address
    for each in reversed(_forwarded(scope, b"x-forwarded-for")):
        # What is no address did not come from a proxy of ours.
        if not _is_address(each):
            break
        address = each
        if not _is_in(each, trusted):
            break
    return address


def is_encrypted(scope: Scope, settings: Settings) -> bool:
    """Whether the caller speaks TLS, with us or with a proxy in front of us."""
    # In the clear we serve loopback alone; a listener elsewhere has TLS, or a proxy that does.
    if scope["scheme"] == "https" or not is_loopback(settings.server.host):
        return True
    client = scope.get("client")
    return _is_in(client[0] if client else "", settings.trusted_proxies) and _forwarded(
        scope, b"x-forwarded-proto"
    ) == ["https"]


def _forwarded(scope: Scope, header: bytes) -> list[str]:
    said = b",".join(value for name, value in scope["headers"] if name == header).decode("latin-1")
    return [part.strip() for part in said.split(",") if part.strip()]


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
