"""Names a certificate may carry, in one normal form, so that equal names compare equal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address

import idna

MAX_DNS = 253
MAX_EMAIL = 254
MAX_URI = 2048

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(//(?P<authority>[^/?#]*))?(?P<rest>.*)")
_AUTHORITY = re.compile(r"(?P<user>[^@]*@)?(?P<host>\[[^\]]*\]|[^:@\[\]]*)(?P<port>:[0-9]*)?")
_REST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*")
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*")
_OPAQUE_SCHEMES = ("urn:", "spiffe:", "tag:", "sip:", "sips:", "did:")
_IPV4_LABELS = 4


class SanKind(StrEnum):
    """What a subject alternative name is (RFC 5280 section 4.2.1.6)."""

    DNS = "dns"
    """A host name or a wildcard."""
    IP = "ip"
    """An IPv4 or IPv6 address, never a network."""
    EMAIL = "email"
    """A mailbox with an ASCII local part (rfc822Name)."""
    URI = "uri"
    """An absolute URI, a SPIFFE ID among them."""


@dataclass(frozen=True, slots=True, order=True)
class San:
    """A subject alternative name in its normal form: equal names compare equal."""

    kind: SanKind
    """What ``value`` is."""
    value: str
    """DNS: lower-case A-labels. IP: compressed. E-mail: domain in lower case. URI: scheme and host in lower case."""

    def __str__(self) -> str:
        return self.value


def parse_san(text: str) -> San:
    """Return the name that ``text`` is, told by its value: address, URI, mailbox, else host name.

    U-labels become A-labels (UTS #46, RFC 5891); a trailing dot is dropped; ``*`` may only be the
    whole leftmost label of a host name.

    Raises:
        ValueError: no such name can be certified; the message says why, in words for whoever typed it.
    """
    text = text.strip()
    if not text:
        raise ValueError("a name is empty")
    if len(text) > MAX_URI:
        raise ValueError(f"a name has {len(text)} characters; the limit is {MAX_URI}")
    if not text.isprintable():
        raise ValueError(f"{text!a} contains characters that cannot be printed")
    if (address := parse_ip(text)) is not None:
        return address
    if "://" in text or text.lower().startswith(_OPAQUE_SCHEMES):
        return parse_uri(text)
    if "@" in text:
        return parse_email(text)
    return parse_dns(text)


def normalise_sans(texts: Iterable[str]) -> tuple[San, ...]:
    """Return the names in their normal form, in the order given, each once.

    Raises:
        ValueError: as ``parse_san`` does, for the first text that is no name.
    """
    return tuple(dict.fromkeys(parse_san(text) for text in texts))


def parse_ip(text: str) -> San | None:
    """Return the address that ``text`` spells, None if it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r} names a network interface, which a certificate cannot")
    return San(SanKind.IP, address.compressed)


def parse_dns(text: str) -> San:
    """Return ``text`` as a host name, which may be a wildcard.

    Raises:
        ValueError: it is none.
    """
    try:
        # Mapped as a whole first: UTS #46 turns other scripts' full stops into dots.
        name = text.lower() if text.isascii() else idna.uts46_remap(text, std3_rules=False, transitional=False)
        labels = [_label(label, text) for label in name.removesuffix(".").split(".")]
    except idna.IDNAError as exc:
        raise ValueError(f"{text!r} is not a host name: {exc}") from exc
    name = ".".join(labels)
    if len(name) > MAX_DNS:
        raise ValueError(f"{text!r} has {len(name)} characters as a host name; the limit is {MAX_DNS}")
    if "*" in labels[1:] or labels == ["*"]:
        raise ValueError(f"{text!r}: a wildcard may only be the leftmost of several labels")
    if len(labels) == _IPV4_LABELS and all(label.isdigit() for label in labels):
        raise ValueError(f"{text!r} is neither an IPv4 address nor a host name")
    return San(SanKind.DNS, name)


def _label(label: str, whole: str) -> str:
    if not label:
        raise ValueError(f"{whole!r} is not a host name: it has an empty label")
    if label == "*":
        return label
    if not label.isascii() or label.startswith("xn--"):
        # Also for what says it is an A-label: one that decodes to nothing is refused (RFC 5891 section 5.4).
        label = idna.alabel(label).decode("ascii")
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"{whole!r} is not a host name: a label has 1 to 63 of the letters a-z, digits, '-' and '_',"
            " does not begin or end with '-', and '*' stands alone"
        )
    return label


def parse_email(text: str) -> San:
    """Return ``text`` as a mailbox: its domain in lower case, its local part as it is (RFC 5280 section 7.5).

    Raises:
        ValueError: it is none, or its local part is not ASCII (that would need RFC 9598).
    """
    local, _, domain = text.rpartition("@")
    if not _LOCAL_PART.fullmatch(local):
        raise ValueError(f"{text!r} is not an e-mail address: before the @ stand plain ASCII characters")
    host = parse_dns(domain).value
    if "*" in host:
        raise ValueError(f"{text!r} is not an e-mail address: its domain is a wildcard")
    if len(value := f"{local}@{host}") > MAX_EMAIL:
        raise ValueError(f"{text!r} has {len(value)} characters; an e-mail address has at most {MAX_EMAIL}")
    return San(SanKind.EMAIL, value)


def parse_uri(text: str) -> San:
    """Return ``text`` as an absolute URI, scheme and host in lower case, the rest as it is (RFC 3986 section 6.2.2.1).

    Raises:
        ValueError: it is none, has an authority without a host, or calls itself a SPIFFE ID and is none.
    """
    parts = _URI.fullmatch(text)
    if parts is None or not (parts["authority"] or parts["rest"]):
        raise ValueError(f"{text!r} is not an absolute URI")
    if not _REST.fullmatch(parts["rest"]):
        raise ValueError(f"{text!r} is not a URI: characters outside its ASCII set are written as %XX")
    scheme, authority = parts["scheme"].lower(), parts["authority"]
    value = f"{scheme}:{parts['rest']}"
    if authority is not None:
        value = f"{scheme}://{_authority(authority, text)}{parts['rest']}"
    if scheme == "spiffe" and not _SPIFFE.fullmatch(value):
        raise ValueError(f"{text!r} is not a SPIFFE ID: spiffe://trust-domain/path, without port, user or query")
    return San(SanKind.URI, value)


def _authority(authority: str, whole: str) -> str:
    """Return user, host and port with the host normalised; a URI without a host has none to certify."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or not parts["host"] or not _REST.fullmatch(parts["user"] or ""):
        raise ValueError(f"{whole!r} is not a URI that names a host")
    host = parts["host"]
    if host.startswith("["):
        if (address := parse_ip(host[1:-1])) is None:
            raise ValueError(f"{whole!r}: {host} is not an address")
        host = f"[{address.value}]"
    else:
        host = (parse_ip(host) or parse_dns(host)).value
    if "*" in host:
        raise ValueError(f"{whole!r}: a URI names one host, not a wildcard")
    return f"{parts['user'] or ''}{host}{parts['port'] or ''}"
