"""A CA that operators bring along in files."""

import re
import traceback
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from certctl_core.errors import MisconfiguredError, RejectedError
from certctl_core.issuer import StatusSignRequest
from certctl_core.signing import verify
from certctl_core.x509 import check_path
from certctl_issuer_local import LocalConfig, LocalIssuer
from certctl_sdk.testing.fake_host import FakeRun
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

PLAIN = NoEncryption()
NOW = datetime.now(UTC).replace(microsecond=0)


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def ca_cert(subject, key, issuer=None, *extensions, ca=True, days=30):
    """Return a certificate for ``key``, by ``issuer`` (name and key) or by itself."""
    issuer_name, issuer_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder(name(issuer_name), name(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=40))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


@pytest.fixture
def files(tmp_path):
    """Return what writes a CA to files and returns the options that name them."""

    def files(key, *certs, encoding=PrivateFormat.PKCS8, encryption=PLAIN):
        (tmp_path / "ca.pem").write_bytes(b"".join(cert.public_bytes(Encoding.PEM) for cert in certs))
        (tmp_path / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, encoding, encryption))
        return {"ca_cert_path": tmp_path / "ca.pem", "ca_key_path": tmp_path / "ca.key"}

    return files


@pytest.mark.parametrize("encoding", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=["pkcs8", "old"])
@pytest.mark.parametrize("kind", ["rsa", "p256", "p384", "p521"])
async def test_every_usual_key_signs_and_signs_alike_again(issue, order, files, keys, host, kind, encoding):
    key = ec.generate_private_key(ec.SECP521R1()) if kind == "p521" else keys[kind]
    options, run = files(key, ca_cert("Root", key), encoding=encoding), FakeRun()
    first, again = await issue(order("a.example"), run, **options), await issue(order("a.example"), run, **options)
    assert first.issued.cert_pem == again.issued.cert_pem
    check_path(first.issued.cert_pem, "", first.issued.chain_pem, NOW)
    status = StatusSignRequest(tbs_der=b"status")
    verify(key.public_key(), b"status", await LocalIssuer(LocalConfig(**options), host).sign_status(status, FakeRun()))


async def test_a_subordinate_ca_sends_what_stands_between_it_and_the_root(issue, order, files, keys, host):
    root_key = ec.generate_private_key(ec.SECP384R1())
    root = ca_cert("Root", root_key)
    below = ca_cert("Below", keys["rsa"], ("Root", root_key))
    last = ca_cert("Last", keys["p256"], ("Below", keys["rsa"]))
    options = files(keys["p256"], last, below, root)
    issued = (await issue(order("a.example"), **options)).issued
    assert x509.load_pem_x509_certificates(issued.chain_pem.encode()) == [last, below]
    trusted = await LocalIssuer(LocalConfig(**options), host).trust_chain(FakeRun())
    assert x509.load_pem_x509_certificates(trusted.encode()) == [last, below, root]
    check_path(issued.cert_pem, issued.chain_pem, root.public_bytes(Encoding.PEM).decode(), NOW)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        pytest.param(["a.in.example", "in.example", "*.x.in.example"], "", id="inside"),
        pytest.param(["*.in.example"], "*.in.example", id="good for one that is excluded"),
        pytest.param(["a.other.example"], "a.other.example", id="outside"),
        pytest.param(["x.not.in.example"], "x.not.in.example", id="excluded"),
        pytest.param(["192.0.2.7"], "", id="address inside"),
        pytest.param(["198.51.100.7"], "198.51.100.7", id="address outside"),
        pytest.param(["2001:db8::1"], "2001:db8::1", id="another family"),
        pytest.param(["a@mail.example", "spiffe://td/x"], "", id="unconstrained kinds"),
    ],
)
async def test_the_name_constraints_of_the_ca_are_kept(issue, order, files, keys, names, refused):
    bounds = x509.NameConstraints(
        [x509.DNSName("in.example"), x509.IPAddress(ip_network("192.0.2.0/24"))], [x509.DNSName("not.in.example")]
    )
    options = files(keys["p256"], ca_cert("Root", keys["p256"], None, bounds))
    if refused:
        with pytest.raises(RejectedError, match=re.escape(f"does not permit {refused}")):
            await issue(order(*names), **options)
    else:
        issued = (await issue(order(*names), **options)).issued
        check_path(issued.cert_pem, "", issued.chain_pem, NOW)


def usage(**on):
    off = dict.fromkeys(
        [
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    return x509.KeyUsage(**{**off, **on})


BROKEN = {
    "not a CA": (lambda k: [k["p256"], ca_cert("x", k["p256"], ca=False)], "not that of a CA"),
    "may not sign CRLs": (
        lambda k: [k["p256"], ca_cert("x", k["p256"], None, usage(key_cert_sign=True))],
        "not that of a CA",
    ),
    "another key": (lambda k: [k["p384"], ca_cert("x", k["p256"])], "does not fit"),
    "strangers above": (lambda k: [k["p256"], ca_cert("x", k["p256"]), ca_cert("y", k["rsa"])], "do not lead up"),
    "ed25519": (lambda k: [k["ed25519"], ca_cert("x", k["ed25519"])], "neither RSA nor ECDSA"),
    "weak": (
        lambda k: [(w := rsa.generate_private_key(65537, 1024)), ca_cert("x", w)],
        "an RSA key has 2048 to 8192 bits",
    ),
    "curve": (
        lambda k: [(w := ec.generate_private_key(ec.SECP256K1())), ca_cert("x", w)],
        "secp256k1 is not",
    ),
    "over": (lambda k: [k["p256"], ca_cert("x", k["p256"], days=-1)], "not valid now"),
    "dsa": (lambda k: [dsa.generate_private_key(2048), ca_cert("x", k["p256"])], "neither RSA nor ECDSA"),
}


@pytest.mark.parametrize(("parts", "told"), BROKEN.values(), ids=BROKEN)
async def test_files_that_are_no_ca_are_refused_with_the_reason(issue, order, files, keys, parts, told):
    key, *certs = parts(keys)
    with pytest.raises(MisconfiguredError, match=told):
        await issue(order("a.example"), **files(key, *certs))


async def test_an_encrypted_key_is_refused(issue, order, files, keys):
    options = files(keys["p256"], ca_cert("x", keys["p256"]), encryption=BestAvailableEncryption(b"secret"))
    with pytest.raises(MisconfiguredError, match="the key is encrypted"):
        await issue(order("a.example"), **options)


async def test_of_a_file_that_is_missing_the_option_is_told_and_the_path_is_logged(issue, order, tmp_path, caplog):
    with pytest.raises(MisconfiguredError, match="the file that ca_cert_path names cannot be read") as refused:
        await issue(order("a.example"), ca_cert_path=tmp_path / "ca.pem", ca_key_path=tmp_path / "ca.key")
    assert str(tmp_path) not in "".join(traceback.format_exception(refused.value))
    [record] = caplog.records
    assert (record.path, record.error) == (str(tmp_path / "ca.pem"), "No such file or directory")
