import pytest
from certctl_core import der, signing
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding


@pytest.mark.parametrize("key", ["rsa", "p256", "p384", "p521"])
def test_a_signature_is_the_same_every_time_and_holds_for_these_bytes_only(keys, key):
    signature = signing.signature(keys[key], b"what is signed")
    assert signing.signature(keys[key], b"what is signed") == signature
    signing.verify(keys[key].public_key(), b"what is signed", signature)
    with pytest.raises(InvalidSignature):
        signing.verify(keys[key].public_key(), b"something else", signature)


@pytest.mark.parametrize("key", ["rsa", "p256"])
def test_the_parts_of_a_certificate_make_it_again(keys, make_cert, key):
    cert = x509.load_pem_x509_certificate(make_cert(subject="x", key=key).encode())
    algorithm = signing.algorithm_of(cert.public_key())
    whole = cert.public_bytes(Encoding.DER)
    assert signing.assemble(cert.tbs_certificate_bytes, algorithm, cert.signature) == whole
    anew = signing.assemble(
        cert.tbs_certificate_bytes, algorithm, signing.signature(keys[key], cert.tbs_certificate_bytes)
    )
    again = x509.load_der_x509_certificate(anew)
    again.verify_directly_issued_by(again)


@pytest.mark.parametrize("key", ["ed25519", "k256"])
def test_other_keys_are_not_those_of_a_ca(keys, key):
    with pytest.raises(ValueError, match="a CA's key is RSA, or ECDSA"):
        signing.algorithm_of(keys[key])


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_what_is_encoded_can_be_taken_apart(length):
    whole = der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, b"x" * length), der.encode(der.INTEGER, b"\x05"))
    first, second = der.children(whole)
    assert (first.tag, first.content, second.content) == (der.OCTET_STRING, b"x" * length, b"\x05")
    assert first.whole + second.whole == next(der.elements(whole)).content


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x30",
        b"\x30\x05\x01",
        b"\x30\x80\x00\x00",
        b"\x30\x85\x01\x01\x01\x01\x01",
        b"\x1f\x01\x00",
        b"\x30\x82\x01",
    ],
    ids=["nothing", "no length", "cut", "indefinite", "absurd", "long tag", "cut length"],
)
def test_broken_encodings_are_refused(broken):
    with pytest.raises(ValueError, match="not DER"):
        der.children(broken)
