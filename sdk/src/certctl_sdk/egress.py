"""Decide which address an outgoing call may dial: resolve once, judge what came out, hand out one pinned address.

``Guard`` is what servers and agents give their connectors as ``host.egress``. Whoever dials uses the address it
returns and never the name again: a name that resolves differently a moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from certctl_core.errors import MisconfiguredError, TransientError

Address: TypeAlias = IPv4Address | IPv6Address
Allowance: TypeAlias = IPv4Network | IPv6Network | str
"""A network, or the name of a host in lower case."""
Resolve: TypeAlias = Callable[[str, int], Awaitable[Iterable[str]]]
"""Returns the addresses of a host for a port, best first; raises OSError if it cannot tell now."""

RESOLVE_SECONDS = 10.0
NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Reach(IntEnum):
    """How far an address reaches, the more dangerous the higher."""

    PUBLIC = 0
    """Routed over the Internet."""
    PRIVATE = 1
    """This machine, a private network, or a block set aside for neither; dialled where the rules say so."""
    NEVER = 2
    """Link-local, cloud metadata, multicast, unspecified, reserved; never dialled."""


def _networks(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(text) for text in texts)


# The clouds' metadata services answer on link-local addresses, and on these beside them (AWS, GCP, Alibaba,
# Oracle, Azure): they hand the machine's credentials to whoever can reach them.
_METADATA = _networks("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
_NEVER = _METADATA + _networks(
    "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/128", "fe80::/10", "fec0::/10", "ff00::/8"
)
# What the IANA special-purpose registries (RFC 6890) do not call globally reachable.
_PRIVATE = _networks(
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "::1/128", "64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:10::/28", "2001:db8::/32", "3fff::/20",
    "5f00::/16", "fc00::/7",
)  # fmt: skip
# IPv6 blocks whose last 32 bits are an IPv4 address that the packet may reach in the end: mapped (RFC 4291),
# translated (RFC 7915), NAT64 (RFC 6052, RFC 8215) and the deprecated compatible form.
_LOW_BITS = _networks("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def reach(address: Address) -> Reach:
    """How far ``address`` reaches; an IPv6 address that carries an IPv4 one reaches as far as the worse of both."""
    own = _own_reach(address)
    if isinstance(address, IPv4Address) or address == IPv6Address("::1"):
        return own
    return max(own, *map(_own_reach, _embedded(address)), Reach.PUBLIC)


def _own_reach(address: Address) -> Reach:
    if any(address in network for network in _NEVER):
        return Reach.NEVER
    return Reach.PRIVATE if any(address in network for network in _PRIVATE) else Reach.PUBLIC


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    if any(address in network for network in _LOW_BITS) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo


def parse_allow(text: str) -> tuple[Allowance, ...]:
    """Read ``CERTCTL_EGRESS_ALLOW``: addresses, networks and host names, separated by commas or blanks.

    Raises:
        ValueError: an entry is neither; the message names it.
    """
    return tuple(_allowance(entry) for entry in re.split(r"[\s,]+", text) if entry)


def _allowance(entry: str) -> Allowance:
    try:
        return ip_network(entry)
    except ValueError:
        name = entry.rstrip(".").lower()
        if "/" in entry or not NAME.fullmatch(name) or _ends_in_number(name):
            raise ValueError(f"{entry} is neither a network, with its host bits zero, nor a host name") from None
        return name


class Guard:
    """The rules for the outgoing calls of one kind of connector; the ``Egress`` that servers and agents hand out.

    ``private_allowed`` is for hosts that an operator typed into an issuer or a target: they may be private or
    loopback. Without it, and for every host that a peer named, only public addresses pass, and those that ``allow``
    names by network or by host. Link-local and metadata addresses never pass, whoever names them.

    ``resolve`` replaces the system's resolver, for tests.
    """

    def __init__(
        self, *, private_allowed: bool, allow: Iterable[Allowance] = (), resolve: Resolve | None = None
    ) -> None:
        allowances = tuple(allow)
        self._private_allowed = private_allowed
        self._networks = tuple(a for a in allowances if not isinstance(a, str))
        self._names = frozenset(a.rstrip(".").lower() for a in allowances if isinstance(a, str))
        self._resolve = resolve or system_resolve

    async def admit(self, host: str, port: int, *, from_peer: bool = False) -> Address:
        """Resolve ``host`` and return the first of its addresses that may be dialled.

        ``host`` is a name or an address, IPv6 with or without brackets. Addresses in the spellings that only
        some resolvers understand (``127.1``, ``0x7f000001``, ``2130706433``) are refused.

        Raises:
            MisconfiguredError: none of its addresses may be dialled, or it is not a host at all.
            TransientError: it cannot be resolved now.
        """
        name = _normal(host)
        addresses = [_plain(text) for text in await self._addresses(name, port)]
        private = (self._private_allowed and not from_peer) or name in self._names
        for address in addresses:
            if self._passes(address, private=private):
                return address
        if not addresses:
            raise TransientError(f"{name} has no address now")
        found = ", ".join(f"{address} ({reach(address).name.lower()})" for address in addresses[:3])
        hint = "CERTCTL_EGRESS_ALLOW can name it" if reach(addresses[0]) is Reach.PRIVATE else "no setting allows it"
        raise MisconfiguredError(f"{name} leads to {found}, which may not be called; {hint}")

    def _passes(self, address: Address, *, private: bool) -> bool:
        match reach(address):
            case Reach.PUBLIC:
                return True
            case Reach.PRIVATE:
                return private or any(address in network for network in self._networks)
            case _:
                return False

    async def _addresses(self, name: str, port: int) -> Iterable[str]:
        if _address(name):
            return [name]
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                return await self._resolve(name, port)
        except TimeoutError as exc:
            raise TransientError(f"{name} could not be resolved within {RESOLVE_SECONDS:g} s") from exc
        except OSError as exc:
            raise TransientError(f"{name} could not be resolved: {exc.strerror or exc}") from exc


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses that this machine's resolver has for ``host``, in its order (RFC 6724)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _normal(host: str) -> str:
    """``host`` in lower-case ASCII, without brackets and closing dot; MisconfiguredError if it cannot be one."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _address(bare):
        return bare
    try:
        name = (bare if bare.isascii() else bare.encode("idna").decode("ascii")).removesuffix(".").lower()
    except UnicodeError as exc:
        raise MisconfiguredError(f"{bare[:253]!a} is not a host name") from exc
    if _address(name):
        return name
    if not NAME.fullmatch(name):
        raise MisconfiguredError(f"{bare[:253]!a} is not a host name")
    if _ends_in_number(name):
        raise MisconfiguredError(f"{name} is neither a name nor an address: write IPv4 addresses as 192.0.2.1")
    return name


def _ends_in_number(name: str) -> bool:
    """Whether resolvers may take ``name`` for an IPv4 address in decimal, octal or hexadecimal numbers."""
    return NUMBER.fullmatch(name.rpartition(".")[2]) is not None


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _plain(text: str) -> Address:
    """The address without its zone, a mapped one as the IPv4 address that it is."""
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))
