from hashlib import sha256
from ipaddress import ip_address

import pytest
from certctl_core.x509 import CsrError, KeyKind, match_names, normalise_sans, read_csr
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

D = x509.DNSName


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("p256", KeyKind("ECDSA", 256)),
        ("p384", KeyKind("ECDSA", 384)),
        ("p521", KeyKind("ECDSA", 521)),
        ("rsa", KeyKind("RSA", 2048)),
        ("ed25519", KeyKind("Ed25519", 256)),
    ],
)
def test_a_csr_tells_its_key_and_its_names(make_csr, keys, key, kind):
    csr = read_csr(make_csr(D("A.example"), D("b.example."), key=key, common_names=["A.example"]))
    spki = keys[key].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (csr.key, csr.public_key_sha256) == (kind, sha256(spki).hexdigest())
    assert csr.sans == normalise_sans(["a.example", "b.example"])
    assert csr.common_name == "A.example"


def test_a_csr_is_written_anew_and_known_by_its_octets(make_csr):
    pem = make_csr(D("a.example"))
    csr = read_csr(f"written by hand\n{pem}\nand more")
    assert csr.pem == pem
    assert csr.sha256 == sha256(x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)).hexdigest()
    assert "BEGIN" not in repr(csr)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(lambda pem: "", "exactly one PEM block", id="nothing"),
        pytest.param(lambda pem: pem + pem, "exactly one PEM block", id="two"),
        pytest.param(lambda pem: pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "exactly one", id="header"),
        pytest.param(lambda pem: pem.replace("CERTIFICATE", "NEW CERTIFICATE"), "exactly one", id="old header"),
        pytest.param(lambda pem: " " * 70000 + pem, "larger than 64 KiB", id="large"),
        pytest.param(lambda pem: "ä" * 40000 + pem, "larger than 64 KiB", id="large in octets"),
        pytest.param(lambda pem: pem[:100] + pem[140:], "cannot be parsed", id="cut"),
    ],
)
def test_text_that_is_no_csr_is_refused(make_csr, spoil, told):
    with pytest.raises(CsrError, match=told):
        read_csr(spoil(make_csr(D("a.example"))))


def test_a_csr_must_prove_that_its_sender_holds_the_key(make_csr):
    der = bytearray(x509.load_pem_x509_csr(make_csr(D("a.example")).encode()).public_bytes(Encoding.DER))
    der[der.index(b"a.example")] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(CsrError, match="not signed by its own key"):
        read_csr(forged)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("rsa1024", "2048 to 8192 bits, this one 1024"),
        ("rsa3", "exponent is not an odd number from 65537"),
        ("k256", "secp256k1 is not P-256, P-384 or P-521"),
        ("ed448", "Ed448 keys are not accepted"),
    ],
)
def test_a_weak_or_unknown_key_is_refused(make_csr, key, told):
    with pytest.raises(CsrError, match=told):
        read_csr(make_csr(D("a.example"), key=key))


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        pytest.param(
            {"extensions": [x509.BasicConstraints(ca=True, path_length=None)]}, "certificate of a CA", id="ca"
        ),
        pytest.param({"common_names": ["a.example", "b.example"]}, "2 common names", id="two names"),
        pytest.param({"sans": [D("a_b..example")]}, "a name that is none", id="no name"),
        pytest.param({"sans": [x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))]}, "RegisteredID", id="odd kind"),
    ],
)
def test_what_is_never_certified_is_refused(make_csr, wish, told):
    sans = wish.pop("sans", [D("a.example")])
    with pytest.raises(CsrError, match=told):
        read_csr(make_csr(*sans, **wish))


def test_names_of_every_kind_are_read(make_csr):
    pem = make_csr(
        D("a.example"),
        x509.IPAddress(ip_address("2001:db8::1")),
        x509.RFC822Name("a@Example.com"),
        x509.UniformResourceIdentifier("spiffe://TD/x"),
    )
    assert read_csr(pem).sans == normalise_sans(["a.example", "2001:db8::1", "a@example.com", "spiffe://td/x"])


@pytest.mark.parametrize(
    ("sans", "common_names", "ordered_name", "ordered"),
    [
        pytest.param(["a.example", "b.example"], [], "", ["b.example", "a.example"], id="in any order"),
        pytest.param(["b.example"], ["a.example"], "a.example", ["b.example"], id="one of them as common name"),
        pytest.param(["a.example"], ["a.example"], "", ["a.example"], id="the first repeated as common name"),
        pytest.param([], ["a.example"], "a.example", [], id="common name alone"),
        pytest.param([], ["a.example"], "", ["a.example"], id="common name for a SAN"),
        pytest.param(["10.0.0.1", "2001:db8::1"], [], "", ["10.0.0.1", "2001:DB8::1"], id="addresses sent as DNS"),
        pytest.param(["a.example"], ["10.0.0.1"], "10.0.0.1", ["a.example"], id="address as common name"),
        pytest.param(["a.example"], ["Our Server"], "Our Server", ["a.example"], id="common name that is no name"),
    ],
)
def test_the_same_names_match_however_they_are_sent(make_csr, sans, common_names, ordered_name, ordered):
    csr = read_csr(make_csr(*map(D, sans), common_names=common_names))
    match_names(csr, ordered_name, normalise_sans(ordered))


@pytest.mark.parametrize(
    ("sans", "common_names", "ordered", "told"),
    [
        pytest.param(["a.example"], [], ["a.example", "b.example"], "the CSR lacks b.example$", id="missing"),
        pytest.param(["a.example", "x.example"], [], ["a.example"], "also asks for x.example$", id="too much"),
        pytest.param(["x.example"], [], ["a.example"], "lacks a.example and also asks for x.example", id="both"),
        pytest.param(["a.example"], ["x.example"], ["a.example"], "also asks for x.example", id="common name"),
        pytest.param(["a.example"], ["Our Server"], ["a.example"], "has the common name 'Our Server'", id="free text"),
        pytest.param(["10.0.0.1"], [], ["a.example"], "also asks for 10.0.0.1", id="address nobody ordered"),
        pytest.param([], [], ["a.example"], "lacks a.example", id="none at all"),
    ],
)
def test_other_names_than_ordered_are_refused_and_told(make_csr, sans, common_names, ordered, told):
    csr = read_csr(make_csr(*map(D, sans), common_names=common_names))
    with pytest.raises(CsrError, match=told):
        match_names(csr, "", normalise_sans(ordered))
