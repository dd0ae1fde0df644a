"""What a CA returned, checked against what was ordered: nothing of it is kept unless it fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification

from certctl_core.csr import CheckedCsr, name_in
from certctl_core.names import San
from certctl_core.parsed import CertificateFacts, facts_of

MAX_ISSUED_BYTES = 256 * 1024
MAX_CERTIFICATES = 10
CLOCK_SKEW = timedelta(minutes=5)
"""By how much a CA's clock may run ahead of ours."""


class IssuedError(ValueError):
    """What the CA returned is not what was ordered; the message says how they differ."""


class NotYetValid(IssuedError):
    """What the CA returned is what was ordered, but for later: one of two clocks is wrong, or was."""


class _Read(NamedTuple):
    cert: x509.Certificate
    facts: CertificateFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that fits its order, with the chain that leads up from it."""

    leaf: CertificateFacts
    """The certificate ordered."""
    chain_pem: str = field(repr=False)
    """Those above it, each signer of the one before, the root last if the CA sent it; empty if it sent none."""
    full_pem: str = field(repr=False)
    """The leaf, then the chain: what a server sends in a handshake."""


def check_issued(cert_pem: str, chain_pem: str, csr: CheckedCsr, *, sans: tuple[San, ...], now: datetime) -> Issued:
    """Return the certificate for ``csr`` among what a CA sent, and the part of the rest that leads up from it.

    All PEM is written anew, in order; certificates that lead nowhere are dropped.

    Args:
        cert_pem: What the CA called the certificate; its chain may stand there too.
        chain_pem: What the CA called the chain, in any order.
        csr: The CSR that was sent to the CA.
        sans: The names ordered. The certificate carries these as a set; the CSR's common name may come on top.
        now: The moment at which everything must be valid, aware; a start up to five minutes ahead is let pass.

    Raises:
        IssuedError: it is too much, cannot be read, is for another key or other names, is a CA's, is
            not valid now, or comes with certificates none of which signed it.
    """
    certs = _load(f"{cert_pem}\n{chain_pem}")
    leaf = next((c for c in certs if c.facts.public_key_sha256 == csr.public_key_sha256), None)
    if leaf is None:
        raise IssuedError("the CA returned no certificate for the key of the CSR")
    _check_leaf(leaf.facts, csr, sans, now)
    others = [c for c in certs if c.cert != leaf.cert]
    chain = _chain(leaf, others)
    if others and not chain:
        raise IssuedError("none of the certificates that the CA returned as chain signed the certificate")
    for each in chain:
        _check_validity(f"the CA certificate {each.facts.subject_dn!r}", each.facts, now)
    above = "".join(each.facts.pem for each in chain)
    return Issued(leaf=leaf.facts, chain_pem=above, full_pem=leaf.facts.pem + above)


def check_path(leaf_pem: str, chain_pem: str, root_pem: str, now: datetime) -> None:
    """Return if a path leads from the leaf over the chain to one of the roots (RFC 5280 section 6.1), valid at ``now``.

    Signatures, dates, CA flags, path lengths and name constraints count; revocation and purpose do not.

    Raises:
        IssuedError: there is none, with the reason that was found last.
    """
    leaf, *chain = [each.cert for each in _load(f"{leaf_pem}\n{chain_pem}")]
    roots = [each.cert for each in _load(root_pem)]
    # The default policy is that of public web servers; private CAs follow other rules.
    leaf_policy = verification.ExtensionPolicy.permit_all()
    ca_policy = leaf_policy.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(roots))
        .time(now)
        .extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, chain)
    except verification.VerificationError as exc:
        reason = str(exc).partition(" (encountered")[0]  # what follows quotes the certificate
        raise IssuedError(f"no path leads from the certificate to the root: {reason}") from exc


def _load(pem: str) -> list[_Read]:
    if len(pem.encode(errors="replace")) > MAX_ISSUED_BYTES:
        raise IssuedError(f"the CA returned more than {MAX_ISSUED_BYTES // 1024} KiB")
    try:
        certs = x509.load_pem_x509_certificates(pem.encode())
        if len(certs) <= MAX_CERTIFICATES:
            return [_Read(cert, facts_of(cert)) for cert in certs]
    except (ValueError, x509.InvalidVersion) as exc:
        raise IssuedError(f"what the CA returned cannot be read as certificates: {exc}") from exc
    raise IssuedError(f"the CA returned {len(certs)} certificates; the limit is {MAX_CERTIFICATES}")


def _check_leaf(leaf: CertificateFacts, csr: CheckedCsr, sans: tuple[San, ...], now: datetime) -> None:
    if leaf.is_ca:
        raise IssuedError("the CA returned the certificate of a CA, which nobody ordered")
    carried, ordered = set(leaf.sans), set(sans)
    surplus = carried - ordered - {name_in(csr.common_name)}
    faults = _listed("it lacks", ordered - carried) + _listed("it also carries", surplus)
    if leaf.has_other_names:
        faults.append("it also carries a name of a kind that cannot be ordered")
    if faults:
        raise IssuedError(f"the names of the certificate are not those of the order: {' and '.join(faults)}")
    _check_validity("the certificate", leaf, now)


def _listed(what: str, names: Iterable[San]) -> list[str]:
    return [f"{what} {', '.join(map(str, sorted(names)))}"] if names else []


def _check_validity(what: str, facts: CertificateFacts, now: datetime) -> None:
    if facts.not_before > now + CLOCK_SKEW:
        raise NotYetValid(f"{what} is not valid before {facts.not_before:%Y-%m-%d %H:%M:%S} UTC")
    if facts.not_after <= now:
        raise IssuedError(f"{what} is not valid after {facts.not_after:%Y-%m-%d %H:%M:%S} UTC")


def _chain(leaf: _Read, pool: list[_Read]) -> list[_Read]:
    """Return the certificates of ``pool`` above ``leaf``, in order, as far up as they lead."""
    chain = [leaf]
    # A leaf may bear the name of its issuer and is still not its own.
    while (top := chain[-1].cert).subject != top.issuer or len(chain) == 1:
        above = next((c for c in pool if c not in chain and c.facts.is_ca and _signed(c.cert, top)), None)
        if above is None:
            break
        chain.append(above)
    return chain[1:]


def _signed(above: x509.Certificate, below: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
