from __future__ import annotations

import dataclasses
import os
import stat
import time
from datetime import timedelta
from ipaddress import ip_address

import pytest
from certctl_agent.csr import Order
from certctl_agent.keys import KeyRing
from certctl_core.errors import DeploymentError, MisconfiguredError, RejectedError
from certctl_core.x509 import match_names, parse_san, read_csr
from certctl_sdk.testing.fake_ca import FakeCA
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ORDER = Order(job_id="job-1", certificate_id="mc-1", common_name="a.example", sans=("a.example",))


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def common_name(csr_pem):
    return [each.value for each in x509.load_pem_x509_csr(csr_pem.encode()).subject]


def test_the_same_job_sends_the_same_csr_even_after_a_restart(ring, tmp_path):
    assert KeyRing(tmp_path / "keys").csr(ORDER) == ring.csr(ORDER)


def test_a_crash_between_key_and_order_keeps_the_key(ring, tmp_path):
    first = read_csr(ring.csr(ORDER))
    (tmp_path / "keys/pending/job-1.order").unlink()
    assert read_csr(ring.csr(ORDER)).public_key_sha256 == first.public_key_sha256


def test_a_key_is_readable_by_us_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        KeyRing(tmp_path / "keys").csr(ORDER)
    finally:
        os.umask(old)
    assert mode(tmp_path / "keys") == mode(tmp_path / "keys/pending") == 0o700
    assert mode(tmp_path / "keys/pending/job-1.key") == mode(tmp_path / "keys/pending/job-1.order") == 0o600


def test_a_directory_that_others_may_write_to_keeps_no_keys(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(MisconfiguredError, match="written by others"):
        KeyRing(tmp_path / "keys")


def test_what_a_killed_writer_left_is_swept(ring, tmp_path):
    left = tmp_path / "keys/pending/.job-9.key.0123456789abcdef"
    left.write_text("half a key")
    KeyRing(tmp_path / "keys")
    assert not left.exists()


KINDS = {
    "default": ("ECDSA", 0, "ECDSA 256"),
    "P-384": ("ECDSA", 384, "ECDSA 384"),
    "at least that": ("ECDSA", 300, "ECDSA 384"),
    "RSA": ("RSA", 3072, "RSA 3072"),
    "never weak": ("RSA", 1024, "RSA 2048"),
    "lower case": ("rsa", 0, "RSA 2048"),
    "Ed25519": ("Ed25519", 0, "Ed25519"),
    "Ed25519 with a size": ("Ed25519", 256, "Ed25519"),
}


@pytest.mark.parametrize(("algorithm", "size", "made"), KINDS.values(), ids=KINDS)
def test_a_key_is_of_the_kind_ordered(ring, algorithm, size, made):
    order = dataclasses.replace(ORDER, key_algorithm=algorithm, key_size=size)
    csr = read_csr(ring.csr(order))
    assert str(csr.key) == made
    assert read_csr(ring.csr(order)).sha256 == csr.sha256


@pytest.mark.parametrize(("algorithm", "size"), [("ECDSA", 1024), ("DSA", 2048), ("RSA", 100_000)])
def test_other_kinds_are_refused(ring, algorithm, size):
    with pytest.raises(RejectedError, match="makes no"):
        ring.csr(dataclasses.replace(ORDER, key_algorithm=algorithm, key_size=size))


def test_an_order_that_changed_meanwhile_gets_a_csr_that_fits_it(ring):
    first = read_csr(ring.csr(ORDER))
    named = read_csr(ring.csr(dataclasses.replace(ORDER, sans=("b.example",))))
    assert named.public_key_sha256 == first.public_key_sha256
    match_names(named, "a.example", (parse_san("b.example"),))
    assert str(read_csr(ring.csr(dataclasses.replace(ORDER, key_size=384))).key) == "ECDSA 384"


def test_names_are_sent_as_what_they_are(ring):
    order = dataclasses.replace(
        ORDER, sans=("a.example", "10.0.0.7", "me@b.example", "spiffe://c.example/x", "*.d.example")
    )
    csr = x509.load_pem_x509_csr(ring.csr(order).encode())
    sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(sans) == [
        x509.DNSName("a.example"),
        x509.IPAddress(ip_address("10.0.0.7")),
        x509.RFC822Name("me@b.example"),
        x509.UniformResourceIdentifier("spiffe://c.example/x"),
        x509.DNSName("*.d.example"),
    ]
    match_names(read_csr(ring.csr(order)), order.common_name, tuple(map(parse_san, order.sans)))


COMMON_NAMES = {
    "host": ("a.example", ["a.example"]),
    "address": ("10.0.0.7", []),
    "no name at all": ("Office printer", []),
    "too long": ("a" * 60 + ".example", []),
}


@pytest.mark.parametrize(("given", "sent"), COMMON_NAMES.values(), ids=COMMON_NAMES)
def test_a_common_name_is_sent_only_where_it_may_be_one(ring, given, sent):
    order = dataclasses.replace(ORDER, common_name=given, sans=("b.example",))
    csr_pem = ring.csr(order)
    assert common_name(csr_pem) == sent
    match_names(read_csr(csr_pem), given, (parse_san("b.example"),))


@pytest.mark.parametrize("bad", [{"common_name": "Office printer", "sans": ()}, {"sans": ("a b",)}])
def test_names_that_no_csr_can_carry_are_refused(ring, bad):
    with pytest.raises(RejectedError, match="no CSR can carry"):
        ring.csr(dataclasses.replace(ORDER, **bad))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a..b", "x\0", "a" * 129])
def test_ids_that_are_no_file_names_make_no_files(ring, tmp_path, name):
    with pytest.raises(RejectedError, match="file name"):
        ring.csr(dataclasses.replace(ORDER, job_id=name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["keys", "pending"]


def test_the_key_that_fits_is_found_whichever_job_made_it(ring):
    ca = FakeCA()
    leaf = ca.sign(ring.csr(ORDER))
    ring.csr(dataclasses.replace(ORDER, job_id="job-2"))
    bundle = ring.bundle("mc-1", leaf + ca.cert_pem)
    assert (bundle.cert_pem, bundle.chain_pem) == (leaf, ca.cert_pem)


def test_the_key_file_of_the_original_agent_is_used_on(ring, tmp_path):
    ca, key = FakeCA(), ec.generate_private_key(ec.SECP256R1())
    sec1 = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    (tmp_path / "keys/mc-1.key").write_text(sec1)
    (tmp_path / "keys/pending/broken.key").write_text("no key")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    leaf = ca.sign(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode())
    assert ring.bundle("mc-1", leaf).cert_pem == leaf


def test_a_certificate_without_a_key_here_says_what_to_do(ring):
    stranger = FakeCA().bundle("a.example")
    with pytest.raises(MisconfiguredError, match="no private key on this machine fits certificate mc-1"):
        ring.bundle("mc-1", stranger.cert_pem)


@pytest.mark.parametrize("pem", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(ring, pem):
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        ring.bundle("mc-1", pem)


def test_a_chain_of_another_ca_is_refused(ring):
    leaf = FakeCA().sign(ring.csr(ORDER))
    with pytest.raises(DeploymentError, match="join up"):
        ring.bundle("mc-1", leaf + FakeCA("other").cert_pem)


def test_a_key_served_leaves_the_pending_ones_whose_orders_may_be_tried_again(ring, tmp_path):
    pending = tmp_path / "keys/pending"
    days = {"abandoned": 31, "failed": 29, "served": 2, "newer": 1, "other": 31}
    for name, age in days.items():
        certificate_id = "mc-2" if name == "other" else "mc-1"
        leaf = FakeCA().sign(ring.csr(dataclasses.replace(ORDER, job_id=name, certificate_id=certificate_id)))
        made = time.time() - timedelta(days=age).total_seconds()
        os.utime(pending / f"{name}.key", (made, made))
        if name == "served":
            bundle = ring.bundle("mc-1", leaf)
        if name == "failed":
            failed = leaf
    ring.promote("mc-1", bundle)
    assert sorted(path.name for path in pending.glob("*.key")) == ["failed.key", "newer.key", "other.key"]
    assert ring.bundle("mc-1", failed).cert_pem == failed
    assert (tmp_path / "keys/mc-1.key").read_text() == bundle.key_pem
    ring.promote("mc-1", bundle)
    assert not (tmp_path / "keys/mc-1.key.previous").exists()


def test_nothing_that_holds_a_key_shows_it(ring):
    bundle = ring.bundle("mc-1", FakeCA().sign(ring.csr(ORDER)))
    assert "PRIVATE" not in repr(bundle) + repr(ring) + str(vars(ring))
