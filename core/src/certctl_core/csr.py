"""Certificate signing requests: read with suspicion, compared with the order they are meant for."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from certctl_core.keys import KeyKind, kind_of_key, weakness
from certctl_core.names import San, SanKind, parse_dns, parse_email, parse_ip, parse_san, parse_uri

MAX_CSR_BYTES = 64 * 1024
_HEADER = "-----BEGIN CERTIFICATE REQUEST-----"


class CsrError(ValueError):
    """The CSR cannot be accepted; the message says why, in words for whoever sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCsr:
    """A CSR whose sender holds the key; whether its names are the right ones, ``match_names`` tells."""

    pem: str = field(repr=False)
    """One block, written anew: nothing that stood around it is left."""
    sha256: str
    """Lower hex digest of the DER."""
    public_key_sha256: str
    """Lower hex digest of the key's SubjectPublicKeyInfo, DER."""
    key: KeyKind
    """What kind of key asks to be certified."""
    common_name: str
    """As sent; empty if the subject has none."""
    sans: tuple[San, ...]
    """In the order sent. A DNS name may be an address in disguise: some clients send those so."""

    @property
    def names(self) -> tuple[San, ...]:
        """``sans``, an address in disguise in its true form, and the common name where it is a name of its own."""
        names = [_undisguised(san) for san in self.sans]
        if self.common_name and (name := name_in(self.common_name)) is not None:
            names.append(name)
        return tuple(dict.fromkeys(names))


def read_csr(pem: str) -> CheckedCsr:
    """Return what the CSR asks for (PKCS #10, RFC 2986), once its signature proves that the sender holds the key.

    Raises:
        CsrError: it is over 64 KiB, not exactly one PEM block ``CERTIFICATE REQUEST``, cannot be
            parsed, is not signed by its own key, has a weak or unknown key, asks to become a CA, or
            carries names that are none.
    """
    csr = _load(pem)
    key = _sound_key(csr)
    common_name, sans = _subject_name(csr), _requested_sans(csr)
    der = csr.public_bytes(Encoding.DER)
    return CheckedCsr(
        pem=csr.public_bytes(Encoding.PEM).decode(),
        sha256=sha256(der).hexdigest(),
        public_key_sha256=sha256(
            csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest(),
        key=key,
        common_name=common_name,
        sans=sans,
    )


def match_names(csr: CheckedCsr, common_name: str, sans: tuple[San, ...]) -> None:
    """Return if the CSR asks for exactly the names of the order: ``sans`` and ``common_name``, as a set.

    A name counts wherever the CSR has it, as SAN or as common name, and an address sent as DNS name
    counts as the address: certificates get it in the right form.

    Raises:
        CsrError: naming what is missing and what is too much.
    """
    ordered = set(sans)
    if common_name and (name := name_in(common_name)) is not None:
        ordered.add(name)
    asked = set(csr.names)
    faults = []
    if missing := ordered - asked:
        faults.append(f"lacks {', '.join(map(str, sorted(missing)))}")
    if surplus := asked - ordered:
        faults.append(f"also asks for {', '.join(map(str, sorted(surplus)))}")
    if csr.common_name and csr.common_name != common_name and name_in(csr.common_name) is None:
        faults.append(f"has the common name {csr.common_name!r}, which is not the order's")
    if faults:
        raise CsrError(f"the CSR {' and '.join(faults)}")


def name_in(common_name: str) -> San | None:
    """Return the name that a common name is, None if it is some other text."""
    try:
        return parse_san(common_name)
    except ValueError:
        return None


def _undisguised(san: San) -> San:
    return (parse_ip(san.value) if san.kind is SanKind.DNS else None) or san


def _load(pem: str) -> x509.CertificateSigningRequest:
    if len(pem) > MAX_CSR_BYTES or len(pem.encode(errors="replace")) > MAX_CSR_BYTES:
        raise CsrError(f"the CSR is larger than {MAX_CSR_BYTES // 1024} KiB")
    if pem.count("-----BEGIN ") != 1 or _HEADER not in pem:
        raise CsrError("a CSR is exactly one PEM block with the header CERTIFICATE REQUEST")
    try:
        return x509.load_pem_x509_csr(pem.encode())
    except (ValueError, x509.InvalidVersion) as exc:
        raise CsrError(f"the CSR cannot be parsed: {exc}") from exc


def _sound_key(csr: x509.CertificateSigningRequest) -> KeyKind:
    try:
        key = csr.public_key()
        # Before the signature: verifying with an absurd key is what an attacker wants us to spend time on.
        fault = weakness(key)
        signed = not fault and csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CsrError(f"the key or the signature of the CSR cannot be read: {exc}") from exc
    if fault:
        raise CsrError(f"the key of the CSR is not accepted: {fault}")
    if not signed:
        raise CsrError("the CSR is not signed by its own key")
    return kind_of_key(key)


def _subject_name(csr: x509.CertificateSigningRequest) -> str:
    try:
        found = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as exc:
        raise CsrError(f"the subject of the CSR cannot be read: {exc}") from exc
    if len(found) > 1:
        raise CsrError(f"the subject of the CSR has {len(found)} common names")
    return str(found[0].value) if found else ""


def _requested_sans(csr: x509.CertificateSigningRequest) -> tuple[San, ...]:
    try:
        extensions = csr.extensions
    except (ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension) as exc:
        raise CsrError(f"the extensions that the CSR asks for cannot be read: {exc}") from exc
    sans: list[San] = []
    for extension in extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                raise CsrError("the CSR asks for the certificate of a CA")
            case x509.SubjectAlternativeName() as names:
                sans += [_requested(name) for name in names]
    return tuple(dict.fromkeys(sans))


def _requested(name: x509.GeneralName) -> San:
    try:
        match name:
            case x509.DNSName(value=text):
                return San(SanKind.DNS, text) if parse_ip(text) else parse_dns(text)
            case x509.IPAddress(value=address) if (san := parse_ip(str(address))) is not None:
                return san
            case x509.RFC822Name(value=text):
                return parse_email(text)
            case x509.UniformResourceIdentifier(value=text):
                return parse_uri(text)
    except ValueError as exc:
        raise CsrError(f"the CSR asks for a name that is none: {exc}") from exc
    raise CsrError(f"the CSR asks for a name of a kind that is not issued: {type(name).__name__}")
