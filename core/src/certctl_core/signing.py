"""How a CA key signs: one algorithm for each key, and the same signature whenever the same bytes are signed.

Certificates, CRLs and OCSP answers alike are a SEQUENCE of the bytes signed, the algorithm and the
signature (RFC 5280 section 4.1.1, RFC 6960 section 4.2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from certctl_core import der

CaPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
"""A key that may sign certificates."""
CaPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
"""Its public half."""


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """What the signatures of one key are made with."""

    identifier_der: bytes
    """The AlgorithmIdentifier, which stands both inside the bytes signed and beside the signature."""
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512
    """For RSA with PKCS #1 v1.5 padding, for elliptic curves as long as the key is strong (RFC 5758 section 3.2)."""


_RSA = SignatureAlgorithm(bytes.fromhex("300d06092a864886f70d01010b0500"), hashes.SHA256())
_ECDSA = {
    "secp256r1": SignatureAlgorithm(bytes.fromhex("300a06082a8648ce3d040302"), hashes.SHA256()),
    "secp384r1": SignatureAlgorithm(bytes.fromhex("300a06082a8648ce3d040303"), hashes.SHA384()),
    "secp521r1": SignatureAlgorithm(bytes.fromhex("300a06082a8648ce3d040304"), hashes.SHA512()),
}


def algorithm_of(key: object) -> SignatureAlgorithm:
    """Return what a CA with this key, public or private, signs with.

    Raises:
        ValueError: it is not the key of a CA that works here: RSA, or ECDSA on P-256, P-384 or P-521.
    """
    match key:
        case rsa.RSAPrivateKey() | rsa.RSAPublicKey():
            return _RSA
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey() if key.curve.name in _ECDSA:
            return _ECDSA[key.curve.name]
        case _:
            raise ValueError("a CA's key is RSA, or ECDSA on P-256, P-384 or P-521")


def signature(key: CaPrivateKey, tbs_der: bytes) -> bytes:
    """Return the signature over ``tbs_der``, the same bytes every time (ECDSA by RFC 6979).

    Raises:
        ValueError: as ``algorithm_of``.
    """
    digest = algorithm_of(key).digest
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(tbs_der, padding.PKCS1v15(), digest)
    return key.sign(tbs_der, ec.ECDSA(digest, deterministic_signing=True))


def verify(key: CaPublicKey, tbs_der: bytes, signature: bytes) -> None:
    """Return if ``signature`` is one over ``tbs_der`` by this key; raise InvalidSignature if not."""
    digest = algorithm_of(key).digest
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, tbs_der, padding.PKCS1v15(), digest)
    else:
        key.verify(signature, tbs_der, ec.ECDSA(digest))


def assemble(tbs_der: bytes, algorithm: SignatureAlgorithm, signature: bytes) -> bytes:
    """Return the signed structure, DER."""
    return der.encode(der.SEQUENCE, tbs_der, algorithm.identifier_der, der.encode(der.BIT_STRING, b"\x00", signature))
