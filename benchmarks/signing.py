"""How fast our own CA signs, against what ``cryptography`` alone needs to build and sign the same certificate."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median

from certctl_core.issuer import IssueRequest
from certctl_core.names import normalise_sans
from certctl_issuer_local import LocalConfig, LocalIssuer
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROUNDS = 7
NAME = "host.example.com"
USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


class Bare:
    """The same certificate from the same CA, with nothing but the library."""

    def __init__(self, cert_pem: str, key_pem: str) -> None:
        self._ca = x509.load_pem_x509_certificate(cert_pem.encode())
        key = load_pem_private_key(key_pem.encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the local CA signs with another kind of key than it used to")
        self._key = key

    def sign(self, csr: str) -> str:
        """Read a CSR, build and sign; return PEM."""
        key = x509.load_pem_x509_csr(csr.encode()).public_key()
        now = datetime.now(UTC)
        authority = self._ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]))
            .issuer_name(self._ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _rate(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - began)


def measure(count: int) -> tuple[float, float, float]:
    """Return our rate, the library's, and the median of their ratio over rounds that take turns, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    loop = asyncio.new_event_loop()
    try:
        host = FakeHost()
        issuer = LocalIssuer(LocalConfig(), host)
        request = IssueRequest(csr_pem=csr_pem(NAME), sans=normalise_sans([NAME]), common_name=NAME)

        async def ours(times: int) -> float:
            began = time.perf_counter()
            for _ in range(times):
                await issuer.issue(request, FakeRun())
            return times / (time.perf_counter() - began)

        loop.run_until_complete(ours(10))
        kept = json.loads(loop.run_until_complete(host.store.get("ca")) or "")
        bare = Bare(kept["cert_pem"], kept["key_pem"])
        rounds = [
            (loop.run_until_complete(ours(count // ROUNDS)), _rate(lambda: bare.sign(request.csr_pem), count // ROUNDS))
            for _ in range(ROUNDS)
        ]
    finally:
        loop.close()
        os.sched_setaffinity(0, cores)
    return median(a for a, _ in rounds), median(b for _, b in rounds), median(a / b for a, b in rounds)
