"""What is signed: the certificate of an order, written octet by octet (RFC 5280 section 4.1).

By hand, because these bytes have to be saved before anything is signed, and cryptography's builder
shows them only together with a signature.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING

from certctl_core import der
from certctl_core.errors import RejectedError
from certctl_core.names import San, SanKind
from certctl_core.parsed import EKU_OIDS
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from certctl_issuer_local.authority import Authority

BACKDATING = timedelta(hours=1)
"""The most by which a certificate starts in the past, for relying parties whose clocks are late."""
ONE_SECOND = timedelta(seconds=1)

_V3 = bytes.fromhex("a003020102")
_EMPTY = bytes.fromhex("3000")
_CRITICAL = bytes.fromhex("0101ff")
_NULL = bytes.fromhex("0500")
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_KEY_USAGE = bytes.fromhex("0603551d0f")
_EXT_KEY_USAGE = bytes.fromhex("0603551d25")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_SUBJECT_KEY_ID = bytes.fromhex("0603551d0e")
_AUTHORITY_KEY_ID = bytes.fromhex("0603551d23")
_CRL_POINTS = bytes.fromhex("0603551d1f")
_NO_REV_AVAIL = bytes.fromhex("0603551d38")
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_FIRST_GENERALIZED_YEAR = 2050
_SAN_TAGS = {SanKind.EMAIL: 0x81, SanKind.DNS: 0x82, SanKind.URI: 0x86, SanKind.IP: 0x87}
_EXTENSIONS, _KEY_ID = 0xA3, 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate as it was decided on."""

    serial: int
    not_before: datetime
    not_after: datetime
    common_name: str
    sans: tuple[San, ...]
    key: CertificatePublicKeyTypes
    ekus: tuple[str, ...]
    crl_urls: tuple[str, ...]
    no_rev_avail: bool


def lifetime(
    now: datetime, life: timedelta | None, end: datetime | None, ca: x509.Certificate
) -> tuple[datetime, datetime]:
    """Return the first and the last second of a certificate that lives ``life``, or until ``end``, within its CA's."""
    now = now.astimezone(UTC).replace(microsecond=0)
    ends = [ca.not_valid_after_utc] + ([end.astimezone(UTC).replace(microsecond=0)] if end else [])
    ahead = min(ends) - now + ONE_SECOND if life is None else life
    not_before = max(now - timedelta(seconds=min(BACKDATING, ahead / 10) // ONE_SECOND), ca.not_valid_before_utc)
    if life is not None:
        ends.append(not_before + timedelta(seconds=life // ONE_SECOND) - ONE_SECOND)
    not_after = min(ends)
    if not_after < now:
        raise RejectedError("the order asks for a certificate that would be over before it is issued")
    return not_before, not_after


def to_be_signed(authority: Authority, leaf: Leaf) -> bytes:
    """Return the TBSCertificate of ``leaf``, DER."""
    return der.encode(
        der.SEQUENCE,
        _V3,
        der.encode(der.INTEGER, leaf.serial.to_bytes(leaf.serial.bit_length() // 8 + 1, "big")),
        authority.algorithm.identifier_der,
        authority.subject_der,
        der.encode(der.SEQUENCE, _time(leaf.not_before), _time(leaf.not_after)),
        _subject(leaf.common_name),
        spki_der(leaf.key),
        der.encode(_EXTENSIONS, der.encode(der.SEQUENCE, *_extensions(authority, leaf))),
    )


def new_serial() -> int:
    """Return a serial number nobody can guess: 159 random bits, all that 20 octets hold beside the sign."""
    return secrets.randbits(159)


def spki_der(key: CertificatePublicKeyTypes) -> bytes:
    """Return the key as it stands in a certificate."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_identifier(key: CertificatePublicKeyTypes) -> bytes:
    """Return the leftmost 160 bits of the SHA-256 of the key's bit string (RFC 7093 section 2 method 1)."""
    _, bits = der.children(spki_der(key))
    return sha256(bits.content[1:]).digest()[:20]


def _time(moment: datetime) -> bytes:
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return der.encode(_UTC_TIME, f"{moment:%y%m%d%H%M%SZ}".encode())
    return der.encode(_GENERALIZED_TIME, f"{moment:%Y%m%d%H%M%SZ}".encode())


def _subject(common_name: str) -> bytes:
    if not common_name:
        return _EMPTY
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]).public_bytes()
    except ValueError as exc:
        raise RejectedError(f"the common name cannot stand in a certificate: {exc}") from exc


def _extensions(authority: Authority, leaf: Leaf) -> Iterable[bytes]:
    yield _extension(_BASIC_CONSTRAINTS, _EMPTY, critical=True)
    yield _extension(_KEY_USAGE, _key_usage(leaf.key, leaf.ekus), critical=True)
    # A time stamping certificate has this purpose alone, and says so critically (RFC 3161 section 2.3).
    yield _extension(_EXT_KEY_USAGE, _purposes(leaf.ekus), critical=leaf.ekus == ("timeStamping",))
    yield _extension(
        _SUBJECT_ALT_NAME, der.encode(der.SEQUENCE, *map(_general_name, leaf.sans)), critical=not leaf.common_name
    )
    yield _extension(_SUBJECT_KEY_ID, der.encode(der.OCTET_STRING, key_identifier(leaf.key)))
    yield _extension(_AUTHORITY_KEY_ID, der.encode(der.SEQUENCE, der.encode(_KEY_ID, authority.key_identifier)))
    if leaf.crl_urls:
        yield _extension(_CRL_POINTS, _crl_points(leaf.crl_urls))
    if leaf.no_rev_avail:
        yield _extension(_NO_REV_AVAIL, _NULL)


def _extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return der.encode(der.SEQUENCE, oid, _CRITICAL if critical else b"", der.encode(der.OCTET_STRING, value))


def _key_usage(key: CertificatePublicKeyTypes, ekus: tuple[str, ...]) -> bytes:
    """Return the usages that key and purposes go with: RSA encrypts, elliptic curves agree (RFC 8813 section 3)."""
    encrypting = "emailProtection" in ekus
    return _usages(
        rsa_encrypts=isinstance(key, rsa.RSAPublicKey) and (encrypting or "serverAuth" in ekus),
        curve_agrees=isinstance(key, ec.EllipticCurvePublicKey) and encrypting,
    )


@lru_cache
def _usages(*, rsa_encrypts: bool, curve_agrees: bool) -> bytes:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=rsa_encrypts,
        data_encipherment=False,
        key_agreement=curve_agrees,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    ).public_bytes()


@lru_cache
def _purposes(ekus: tuple[str, ...]) -> bytes:
    return x509.ExtendedKeyUsage([x509.ObjectIdentifier(EKU_OIDS[eku]) for eku in ekus]).public_bytes()


@lru_cache
def _crl_points(urls: tuple[str, ...]) -> bytes:
    points = [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None) for url in urls]
    return x509.CRLDistributionPoints(points).public_bytes()


def _general_name(san: San) -> bytes:
    return der.encode(
        _SAN_TAGS[san.kind], ip_address(san.value).packed if san.kind is SanKind.IP else san.value.encode("ascii")
    )
