"""Orders, an issuer over a store in memory, and what came of an order, parsed."""

from dataclasses import dataclass

import pytest
from certctl_core.issuer import IssuedCertificate, IssueRequest
from certctl_core.names import normalise_sans
from certctl_issuer_local import LocalConfig, LocalIssuer
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding


@pytest.fixture(scope="session")
def keys():
    return {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }


@pytest.fixture
def order(keys):
    """Return what orders a certificate for names, by a CSR that carries a key and nothing else."""

    def order(*names, key="p256", **wishes):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = builder.sign(keys[key], None if key == "ed25519" else hashes.SHA256())
        pem = csr.public_bytes(Encoding.PEM).decode()
        return IssueRequest(csr_pem=pem, sans=normalise_sans(names), **wishes)

    return order


@dataclass
class Outcome:
    issued: IssuedCertificate
    leaf: x509.Certificate
    ca: x509.Certificate

    def extension(self, kind):
        return self.leaf.extensions.get_extension_for_class(kind)


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def issue(host):
    """Return what issues an order, by a fresh issuer with the options given over the same store."""

    async def issue(request, run=None, **options):
        issued = await LocalIssuer(LocalConfig(**options), host).issue(request, run or FakeRun())
        leaf, ca, *_ = x509.load_pem_x509_certificates(f"{issued.cert_pem}{issued.chain_pem}".encode())
        return Outcome(issued, leaf, ca)

    return issue
