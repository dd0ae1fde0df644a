"""Keys, CSRs and certificates of any kind, made on the spot."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def now():
    return NOW


@pytest.fixture(scope="session")
def keys():
    return {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "k256": ec.generate_private_key(ec.SECP256K1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "ed448": ed448.Ed448PrivateKey.generate(),
        "rsa": rsa.generate_private_key(65537, 2048),
        "rsa1024": rsa.generate_private_key(65537, 1024),
        "rsa3": rsa.generate_private_key(3, 2048),
    }


def _subject(common_names):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common_names])


def _digest(key):
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()


@pytest.fixture
def make_csr(keys):
    """Return what makes a CSR: PEM for a key, common names, general names and other extensions."""

    def make_csr(*sans, key="p256", common_names=(), extensions=()):
        builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(common_names))
        for extension in ([x509.SubjectAlternativeName(sans)] if sans else []) + list(extensions):
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(keys[key], _digest(keys[key])).public_bytes(Encoding.PEM).decode()

    return make_csr


@pytest.fixture
def make_cert(keys):
    """Return what makes a certificate: for a key and names, by an issuer (name and key) or by itself."""

    def make_cert(*sans, key="p256", subject="", by=None, ca=None, start=NOW, life=timedelta(days=90), extensions=()):
        issuer_name, issuer_key = by or (subject, key)
        builder = (
            x509.CertificateBuilder(_subject([issuer_name]), _subject([subject] if subject else []))
            .public_key(keys[key].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + life)
        )
        basic = [] if ca is None else [x509.BasicConstraints(ca=ca, path_length=None)]
        for extension in basic + ([x509.SubjectAlternativeName(sans)] if sans else []) + list(extensions):
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(keys[issuer_key], _digest(keys[issuer_key])).public_bytes(Encoding.PEM).decode()

    return make_cert
