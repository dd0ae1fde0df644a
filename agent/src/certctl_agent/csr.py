"""What an agent asks to be certified: the names of an order, in a PKCS #10 request (RFC 2986)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeAlias

from certctl_core.csr import name_in
from certctl_core.errors import RejectedError
from certctl_core.x509 import San, SanKind, parse_san
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Names: TypeAlias = tuple[x509.Name, x509.SubjectAlternativeName]
COMMON_NAME_CHARACTERS = 64
"""RFC 5280 appendix A.1, ub-common-name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The key and the names that a job asks for."""

    job_id: str
    certificate_id: str
    common_name: str = ""
    sans: tuple[str, ...] = ()
    key_algorithm: str = "ECDSA"
    key_size: int = 0
    """Bits; 0 leaves them to us."""


def names_of(order: Order) -> Names:
    """Return subject and alternative names for ``order``.

    A common name that is no name, like "Office printer", is the server's label only.

    Raises:
        RejectedError: no request can carry the names.
    """
    try:
        sans = [parse_san(text) for text in order.sans]
        own = name_in(order.common_name)
        alternatives = [_general_name(san) for san in dict.fromkeys([own, *sans] if own else sans)]
    except ValueError as exc:
        raise RejectedError(f"no CSR can carry these names: {exc}") from exc
    if not alternatives:
        raise RejectedError(f"no CSR can carry {order.common_name!r} as its only name")
    is_subject = own and own.kind is SanKind.DNS and len(own.value) <= COMMON_NAME_CHARACTERS
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, own.value)] if own and is_subject else []
    return x509.Name(subject), x509.SubjectAlternativeName(alternatives)


def sign(names: Names, key: Key) -> str:
    """Return the PEM of a request for ``names`` that proves possession of ``key``."""
    subject, alternatives = names
    # RFC 5280 section 4.2.1.6: with an empty subject the alternative names are critical.
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(alternatives, critical=not subject.rdns)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()


def asks_for(csr_pem: str, names: Names) -> bool:
    """Whether the request carries exactly ``names``."""
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    return (csr.subject, csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == names


def _general_name(san: San) -> x509.GeneralName:
    match san.kind:
        case SanKind.DNS:
            return x509.DNSName(san.value)
        case SanKind.IP:
            return x509.IPAddress(ip_address(san.value))
        case SanKind.EMAIL:
            return x509.RFC822Name(san.value)
        case SanKind.URI:
            return x509.UniformResourceIdentifier(san.value)
