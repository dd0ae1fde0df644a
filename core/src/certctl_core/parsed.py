"""What a certificate says of itself, read with patience: the world's certificates break most rules there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from certctl_core import der as asn1
from certctl_core.keys import KeyKind, kind_of_key
from certctl_core.names import San, SanKind, parse_email, parse_uri

EKU_OIDS = {
    "serverAuth": "1.3.6.1.5.5.7.3.1",
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "codeSigning": "1.3.6.1.5.5.7.3.3",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "timeStamping": "1.3.6.1.5.5.7.3.8",
}
"""The extended key usages (RFC 5280 section 4.2.1.12) that may be ordered, as the API spells them."""

_EKU_NAMES = {oid: name for name, oid in EKU_OIDS.items()}
_KEY_NAMES = {
    "1.2.840.10040.4.1": "DSA",
    "1.2.840.113549.1.1.1": "RSA",
    "1.2.840.113549.1.1.10": "RSA",
    "1.2.840.10045.2.1": "ECDSA",
    "2.16.840.1.101.3.4.3.17": "ML-DSA-44",
    "2.16.840.1.101.3.4.3.18": "ML-DSA-65",
    "2.16.840.1.101.3.4.3.19": "ML-DSA-87",
}
_SEPARATORS = re.compile(r"[:\s]")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# Context-specific tags of RFC 5280 sections 4.1 and 4.2.1.6.
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_SAN_KINDS = {0x81: SanKind.EMAIL, 0x82: SanKind.DNS, 0x86: SanKind.URI, 0x87: SanKind.IP}
_ADDRESS_OCTETS = (4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a certificate says. Its texts are whatever somebody wrote there: hostile until shown to be harmless."""

    pem: str = field(repr=False)
    """Written anew from ``der``."""
    der: bytes = field(repr=False)
    """As signed."""
    serial_number: str
    """As ``serial_hex`` has it."""
    fingerprint_sha256: str
    """Lower hex SHA-256 of ``der``."""
    public_key_sha256: str
    """Lower hex SHA-256 of the key's SubjectPublicKeyInfo, DER; equal for every certificate of one key."""
    not_before: datetime
    """First second of validity, aware UTC."""
    not_after: datetime
    """Last second of validity, aware UTC: the life is ``not_after - not_before`` and one second (RFC 5280 4.1.2.5)."""
    key: KeyKind
    """``size`` is 0 for a key that is not known here."""
    common_name: str
    """The last one of the subject, which is its most specific; empty if there is none."""
    sans: tuple[San, ...]
    """In the order of the certificate; kinds other than the four are left out."""
    has_other_names: bool
    """Whether a subject alternative name was left out of ``sans``: a directory name, a Windows user ..."""
    subject_dn: str
    """RFC 4514 text; may be empty."""
    issuer_dn: str
    """RFC 4514 text."""
    is_ca: bool
    """Whether it may sign certificates (basicConstraints)."""
    ekus: tuple[str, ...]
    """As the API spells them, dotted OIDs where it has no name; empty when the certificate names no purpose."""


def read_certificate(data: str | bytes) -> CertificateFacts:
    """Return what the first certificate in ``data`` says, PEM or DER.

    Odd ones are read as far as they make sense: unknown keys and kinds of names do no harm.

    Raises:
        ValueError: there is no certificate, or it cannot be taken apart at all.
    """
    raw = data.encode() if isinstance(data, str) else data
    # A DER certificate starts with SEQUENCE (0x30, the digit 0), which begins no line of PEM.
    load = x509.load_der_x509_certificate if raw[:1] == b"\x30" else x509.load_pem_x509_certificate
    try:
        return facts_of(load(raw))
    except (ValueError, x509.InvalidVersion) as exc:
        raise ValueError(f"no certificate can be read: {exc}") from exc


def facts_of(cert: x509.Certificate) -> CertificateFacts:
    """Return what ``cert`` says; errors as ``read_certificate``."""
    der = cert.public_bytes(Encoding.DER)
    key, public_key_sha256 = _key(cert)
    extensions = _extensions(cert)
    sans, others = _sans(extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string))
    return CertificateFacts(
        pem=cert.public_bytes(Encoding.PEM).decode(),
        der=der,
        serial_number=serial_hex(cert.serial_number),
        fingerprint_sha256=fingerprint(der),
        public_key_sha256=public_key_sha256,
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
        key=key,
        common_name=_common_name(cert.subject),
        sans=sans,
        has_other_names=others,
        subject_dn=cert.subject.rfc4514_string(),
        issuer_dn=cert.issuer.rfc4514_string(),
        is_ca=_is_ca(extensions.get(ExtensionOID.BASIC_CONSTRAINTS.dotted_string)),
        ekus=_ekus(extensions.get(ExtensionOID.EXTENDED_KEY_USAGE.dotted_string)),
    )


def serial_hex(number: int) -> str:
    """Return a serial number as lower hex, two digits for each content octet of its DER.

    A leading ``00`` is kept where the next bit is set: it is part of what the certificate says (X.690 section 8.3).
    """
    magnitude = number if number >= 0 else ~number
    return number.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True).hex()


def fingerprint(der: bytes) -> str:
    """Return the lower hex SHA-256 of a certificate's DER."""
    return sha256(der).hexdigest()


def normalise_fingerprint(text: str) -> str:
    """Return a SHA-256 fingerprint as 64 lower hex digits, however it was written: ``sha256:``, colons, upper case.

    Raises:
        ValueError: it is none.
    """
    digits = _SEPARATORS.sub("", text.strip().lower().removeprefix("sha256:"))
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError("a fingerprint is the 64 hex digits of a SHA-256")
    return digits


def _key(cert: x509.Certificate) -> tuple[KeyKind, str]:
    """Return the kind of the key and the digest of its SubjectPublicKeyInfo."""
    oid = cert.public_key_algorithm_oid.dotted_string
    try:
        key = cert.public_key()
        kind, spki = kind_of_key(key), key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (UnsupportedAlgorithm, ValueError):
        kind, spki = KeyKind(oid, 0), _spki(cert)
    if not kind.size:
        kind = KeyKind(_KEY_NAMES.get(oid, kind.algorithm), 0)
    return kind, sha256(spki).hexdigest()


def _spki(cert: x509.Certificate) -> bytes:
    return _fields(cert)[6].whole


def _fields(cert: x509.Certificate) -> list[asn1.Element]:
    """Return version, serial, signature, issuer, validity, subject, key and what follows (RFC 5280 section 4.1)."""
    fields = asn1.children(cert.tbs_certificate_bytes)
    # A version 1 certificate leaves the version out.
    return [asn1.Element(_VERSION, b"", b""), *fields] if fields[0].tag == asn1.INTEGER else fields


def _extensions(cert: x509.Certificate) -> dict[str, bytes]:
    """Return the values of the extensions by dotted OID, the first one where there are two.

    By hand: cryptography reads all of them or, when one is broken, none.
    """
    found: dict[str, bytes] = {}
    for extensions in (each for each in _fields(cert)[7:] if each.tag == _EXTENSIONS):
        for extension in asn1.children(extensions.content):
            oid, *_, value = asn1.elements(extension.content)
            found.setdefault(_dotted(oid.content), value.content)
    return found


def _dotted(octets: bytes) -> str:
    """Return the content octets of an OID in dotted form (X.690 section 8.19)."""
    arcs, arc = [], 0
    for octet in octets:
        arc = arc << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2) if arcs else 0
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]])) if arcs else ""


def _is_ca(value: bytes | None) -> bool:
    return value is not None and any(e.tag == 0x01 and e.content != b"\x00" for e in _tolerant(value))


def _ekus(value: bytes | None) -> tuple[str, ...]:
    oids = [_dotted(e.content) for e in _tolerant(value or b"") if e.tag == asn1.OID]
    return tuple(_EKU_NAMES.get(oid, oid) for oid in oids)


def _tolerant(value: bytes) -> Iterator[asn1.Element]:
    """Yield what is inside the sequence ``value``, nothing if it is broken."""
    try:
        yield from asn1.children(value)
    except ValueError:
        return


def _sans(value: bytes | None) -> tuple[tuple[San, ...], bool]:
    sans: list[San] = []
    others = False
    for each in _tolerant(value or b""):
        san = _san(each)
        others |= san is None
        if san is not None:
            sans.append(san)
    return tuple(dict.fromkeys(sans)), others


def _san(name: asn1.Element) -> San | None:
    """Return the name in its normal form where it has one, as it is where it has none, None for other kinds."""
    kind, text = _SAN_KINDS.get(name.tag), name.content.decode("latin-1")
    match kind:
        case None:
            return None
        case SanKind.IP:
            return San(kind, ip_address(name.content).compressed) if len(name.content) in _ADDRESS_OCTETS else None
        case SanKind.DNS:
            return San(kind, text.lower().removesuffix("."))
    try:
        return parse_email(text) if kind is SanKind.EMAIL else parse_uri(text)
    except ValueError:
        return San(kind, text)


def _common_name(subject: x509.Name) -> str:
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = found[-1].value if found else ""
    return value if isinstance(value, str) else ""
