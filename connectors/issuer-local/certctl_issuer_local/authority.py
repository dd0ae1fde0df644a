"""The CA itself: its key, its certificate and what stands above it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from certctl_core import der, signing
from certctl_core.constraints import NameConstraints
from certctl_core.errors import MisconfiguredError
from certctl_core.keys import weakness
from certctl_core.names import San
from certctl_core.run import Store
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from certctl_issuer_local.leaf import BACKDATING, ONE_SECOND, key_identifier, new_serial

log = logging.getLogger(__name__)
STORED = "ca"
ROOT_LIFE = timedelta(days=3650)
_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """A CA that can sign. Never printed: it holds the key.

    Raises:
        MisconfiguredError: key and certificates are not those of a CA, or do not belong together.
    """

    key: signing.CaPrivateKey
    cert: x509.Certificate
    above: tuple[x509.Certificate, ...]
    subject_der: bytes = field(init=False)
    key_identifier: bytes = field(init=False)
    algorithm: signing.SignatureAlgorithm = field(init=False)
    chain_pem: str = field(init=False)
    trust_pem: str = field(init=False)
    constraints: NameConstraints = field(init=False)

    def __post_init__(self) -> None:
        _check_belongings(self.key, self.cert, self.above)
        put = object.__setattr__
        # As it stands in the certificate, octet for octet: paths are built by comparing names (RFC 5280 section 7.1).
        put(self, "subject_der", der.children(self.cert.tbs_certificate_bytes)[5].whole)
        put(self, "key_identifier", _key_identifier(self.cert))
        put(self, "algorithm", signing.algorithm_of(self.key))
        sent = [self.cert, *(c for c in self.above if c.subject != c.issuer)]
        put(self, "chain_pem", _pem(sent))
        put(self, "trust_pem", _pem([self.cert, *self.above]))
        put(self, "constraints", NameConstraints.of(self.cert, *self.above))

    def check_alive(self, now: datetime) -> None:
        """Raise MisconfiguredError unless the CA certificate is valid at ``now``."""
        if not self.cert.not_valid_before_utc <= now <= self.cert.not_valid_after_utc:
            end = self.cert.not_valid_after_utc
            raise MisconfiguredError(f"the CA certificate is not valid now; it ends on {end:%Y-%m-%d %H:%M:%S} UTC")

    def refused(self, sans: tuple[San, ...]) -> list[San]:
        """Return the names that the name constraints of the CA certificates do not permit."""
        return [san for san in sans if not self.constraints.permit(san)]

    def sign(self, tbs_der: bytes) -> bytes:
        """Return the certificate, DER; the same one every time."""
        return signing.assemble(tbs_der, self.algorithm, signing.signature(self.key, tbs_der))


def loaded(cert_path: Path, key_path: Path) -> Authority:
    """Return the CA that an operator keeps in two files.

    Raises:
        MisconfiguredError: it cannot be used. Which option is at fault is said, never what lies where on the server.
    """
    certs, key = _bytes_of(cert_path, "ca_cert_path"), _bytes_of(key_path, "ca_key_path")
    return _read(certs, key, "ca_cert_path and ca_key_path")


def _bytes_of(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        log.error("CA file not read", extra={"path": str(path), "error": exc.strerror or ""})
        raise MisconfiguredError(f"the file that {option} names cannot be read; the log says why") from None


async def created(store: Store, common_name: str, now: datetime) -> Authority:
    """Return the CA kept in ``store``, made now if there is none yet; whoever asks at the same time gets the same."""
    kept = await store.get(STORED)
    if kept is None:
        new = _new_root(common_name, now)
        if await store.swap(STORED, old=None, new=new):
            kept = new
        else:
            kept = await store.get(STORED)
    try:
        parts = json.loads(kept or "")
        cert_pem, key_pem = parts["cert_pem"].encode(), parts["key_pem"].encode()
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise MisconfiguredError("what is stored as CA of this issuer cannot be read") from exc
    return _read(cert_pem, key_pem, "the store")


def _read(cert_pem: bytes, key_pem: bytes, place: str) -> Authority:
    try:
        cert, *above = x509.load_pem_x509_certificates(cert_pem)
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise MisconfiguredError(f"reading the CA from {place} failed: not PEM, or the key is encrypted") from exc
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise MisconfiguredError("the CA's key is neither RSA nor ECDSA")
    return Authority(key, cert, tuple(above))


def _check_belongings(key: signing.CaPrivateKey, cert: x509.Certificate, above: tuple[x509.Certificate, ...]) -> None:
    if fault := weakness(key.public_key()):
        raise MisconfiguredError(f"the CA's key is not accepted: {fault}")
    if key.public_key() != cert.public_key():
        raise MisconfiguredError("the CA's key does not fit the CA certificate")
    try:
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        may_sign = constraints.ca and _may_sign(cert)
    except (ValueError, x509.ExtensionNotFound):
        may_sign = False
    if not may_sign:
        raise MisconfiguredError("the CA certificate is not that of a CA: it may not sign certificates and CRLs")
    try:
        for below, next_above in zip((cert, *above), above, strict=False):
            below.verify_directly_issued_by(next_above)
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise MisconfiguredError("the certificates above the CA's do not lead up from it, one after the other") from exc


def _may_sign(cert: x509.Certificate) -> bool:
    try:
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.key_cert_sign and usage.crl_sign


def _key_identifier(cert: x509.Certificate) -> bytes:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return key_identifier(cert.public_key())


def _new_root(common_name: str, now: datetime) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    start = now.replace(microsecond=0) - BACKDATING
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(new_serial())
        .not_valid_before(start)
        .not_valid_after(start + ROOT_LIFE - ONE_SECOND)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(key.public_key())), critical=False)
        .sign(key, signing.algorithm_of(key).digest)
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return json.dumps({"cert_pem": _pem([cert]), "key_pem": key_pem})


def _pem(certs: list[x509.Certificate]) -> str:
    return "".join(cert.public_bytes(Encoding.PEM).decode() for cert in certs)
