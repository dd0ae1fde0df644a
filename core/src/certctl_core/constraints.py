"""The names a CA may certify, as its own certificate and those above it bound them (RFC 5280 section 4.2.1.10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from cryptography import x509

from certctl_core.names import San, SanKind

_HOST = re.compile(r"[^:]+://(?:[^@/?#]*@)?(?P<host>[^:/?#\[\]]+)")
_KINDS: dict[SanKind, type[x509.GeneralName]] = {
    SanKind.DNS: x509.DNSName,
    SanKind.IP: x509.IPAddress,
    SanKind.EMAIL: x509.RFC822Name,
    SanKind.URI: x509.UniformResourceIdentifier,
}


@dataclass(frozen=True, slots=True)
class NameConstraints:
    """What all CA certificates of a path together permit."""

    each: tuple[x509.NameConstraints, ...]
    """The extensions found, one for each certificate that has it."""

    @classmethod
    def of(cls, *certs: x509.Certificate) -> NameConstraints:
        """Return the constraints that ``certs`` carry; certificates without any permit everything."""
        found = [ext.value for cert in certs for ext in cert.extensions if isinstance(ext.value, x509.NameConstraints)]
        return cls(tuple(found))

    def permit(self, san: San) -> bool:
        """Return whether a certificate for ``san`` would be valid under every one of them."""
        return all(_permits(constraints, san) for constraints in self.each)


def _permits(constraints: x509.NameConstraints, san: San) -> bool:
    kind = _KINDS[san.kind]
    permitted = [name for name in constraints.permitted_subtrees or () if isinstance(name, kind)]
    excluded = [name for name in constraints.excluded_subtrees or () if isinstance(name, kind)]
    if permitted and not any(_is_in(san, name.value) for name in permitted):
        return False
    return not any(_is_in(san, name.value) or _covers(san, name.value) for name in excluded)


def _is_in(san: San, base: object) -> bool:
    if isinstance(base, IPv4Network | IPv6Network):
        return ip_address(san.value) in base
    subtree = str(base).lower()
    match san.kind:
        case SanKind.DNS:
            return san.value == subtree or _below(san.value, subtree)
        case SanKind.EMAIL:
            return san.value.lower() == subtree if "@" in subtree else _at(san.value.rpartition("@")[2], subtree)
        case _:
            host = _HOST.match(san.value)
            return host is not None and _at(host["host"], subtree)


def _covers(san: San, base: object) -> bool:
    """Return whether a wildcard is good for a host in the excluded subtree ``base``, though not itself in it."""
    return san.kind is SanKind.DNS and san.value.startswith("*.") and str(base).lower().endswith(san.value[1:])


def _at(host: str, base: str) -> bool:
    """Constraints on mail and URIs mean one host, or with a leading dot all hosts below it."""
    return _below(host, base) if base.startswith(".") else host == base


def _below(name: str, base: str) -> bool:
    return not base or name.endswith(f".{base.removeprefix('.')}")
