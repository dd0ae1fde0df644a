from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from certctl_core import der
from certctl_core.x509 import (
    IssuedError,
    KeyKind,
    San,
    SanKind,
    check_issued,
    check_path,
    fingerprint,
    normalise_fingerprint,
    normalise_sans,
    read_certificate,
    read_csr,
    serial_hex,
)
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

D = x509.DNSName
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def der_of(pem):
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def test_a_certificate_is_read_from_pem_and_der_alike(make_cert, now):
    pem = make_cert(D("a.example"), subject="a.example", by=("CA", "p384"))
    facts = read_certificate(pem)
    assert facts == read_certificate(der_of(pem)) == read_certificate(pem.encode()) == read_certificate(f"x\n{pem}")
    assert (facts.pem, facts.der) == (pem, der_of(pem))
    assert (facts.subject_dn, facts.issuer_dn, facts.common_name) == ("CN=a.example", "CN=CA", "a.example")
    assert (facts.not_before, facts.not_after) == (now, now + 90 * DAY)
    assert (facts.key, facts.is_ca, facts.ekus) == (KeyKind("ECDSA", 256), False, ())
    assert "BEGIN" not in repr(facts)


def test_names_purposes_and_ca_flag_are_read(make_cert):
    ekus = [ExtendedKeyUsageOID.SERVER_AUTH, x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")]
    names = [D("A.example"), x509.IPAddress(ip_address("10.0.0.1")), x509.RFC822Name("a@X.example")]
    pem = make_cert(
        *names,
        x509.UniformResourceIdentifier("https://X.example/"),
        subject="CA",
        ca=True,
        extensions=[x509.ExtendedKeyUsage(ekus)],
    )
    facts = read_certificate(pem)
    assert facts.sans == normalise_sans(["a.example", "10.0.0.1", "a@x.example", "https://x.example/"])
    assert (facts.is_ca, facts.ekus) == (True, ("serverAuth", "1.3.6.1.4.1.311.20.2.2"))


def test_a_kind_of_name_that_is_not_ours_is_left_out_and_mentioned(make_cert):
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a")
    facts = read_certificate(make_cert(D("a.example"), other, subject="x"))
    assert (facts.sans, facts.has_other_names) == ((San(SanKind.DNS, "a.example"),), True)


@pytest.mark.parametrize(
    ("value", "sans"),
    [
        pytest.param(b"\x30\x03\x85\x01\x00", (), id="an EDI party, which cryptography cannot read"),
        pytest.param(b"\x30\x05\x87\x03\x01\x02\x03", (), id="an address of three octets"),
        pytest.param(b"\x30\x04\x82\x02\xff.", (San(SanKind.DNS, "ÿ"),), id="a host name that is none"),
        pytest.param(b"\x30\x05\x81\x03a@@", (San(SanKind.EMAIL, "a@@"),), id="an e-mail address that is none"),
        pytest.param(b"\x04\x09garbage", (), id="garbage"),
        pytest.param(b"", (), id="nothing"),
    ],
)
def test_broken_names_hide_nothing_else(make_cert, value, sans):
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), value)
    pem = make_cert(subject="x", ca=True, extensions=[broken])
    facts = read_certificate(pem)
    assert (facts.sans, facts.is_ca, facts.common_name) == (sans, True, "x")


def test_a_key_that_is_not_known_is_named_as_well_as_can_be(make_cert):
    known = der_of(make_cert(subject="x"))
    unknown = known.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f"))
    curve = known.replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f"))
    assert read_certificate(unknown).key == KeyKind("1.2.840.10045.2.127", 0)
    assert read_certificate(curve).key == KeyKind("ECDSA", 0)
    spki = der.children(der.children(unknown)[0].whole)[6].whole
    assert read_certificate(unknown).public_key_sha256 == fingerprint(spki)


def test_a_key_for_another_age_is_called_by_its_name():
    mldsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    key, name = mldsa.MLDSA65PrivateKey.generate(), x509.Name([])
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    cert = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end).sign(key, None)
    assert read_certificate(cert.public_bytes(Encoding.DER)).key == KeyKind("ML-DSA-65", 0)


def test_one_key_has_one_digest_in_csr_and_certificates(make_cert, make_csr):
    first, second = read_certificate(make_cert(subject="x")), read_certificate(make_cert(subject="y"))
    assert first.public_key_sha256 == second.public_key_sha256 == read_csr(make_csr(D("a.example"))).public_key_sha256
    assert first.fingerprint_sha256 != second.fingerprint_sha256


@pytest.mark.parametrize(
    "data",
    ["", "x", b"", b"\x30\x03\x02\x01\x01", b"0garbage", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"],
)
def test_what_is_no_certificate_is_refused(data):
    with pytest.raises(ValueError, match="no certificate can be read"):
        read_certificate(data)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "00"), (1, "01"), (0x7F, "7f"), (0x80, "0080"), (0x1234, "1234"), (-1, "ff"), (-129, "ff7f")],
)
def test_a_serial_number_has_two_digits_for_each_octet_of_its_encoding(number, text):
    assert serial_hex(number) == text


def test_a_serial_number_reads_as_the_certificate_has_it(make_cert):
    for _ in range(20):
        der_bytes = der_of(make_cert(subject="x"))
        serial = der.children(der.children(der_bytes)[0].whole)[1].content
        assert read_certificate(der_bytes).serial_number == serial.hex()


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_serial_number_that_breaks_the_rules_is_read_as_it_is(make_cert):
    der_bytes = der_of(make_cert(subject="x"))
    serial = der.children(der.children(der_bytes)[0].whole)[1].content
    negative = der_bytes.replace(serial, b"\xff" + b"\x01" * (len(serial) - 1))
    assert read_certificate(negative).serial_number == "ff" + "01" * (len(serial) - 1)


@pytest.mark.parametrize(
    "style",
    [
        str.upper,
        lambda t: f"sha256:{t}",
        lambda t: ":".join(t[i : i + 2] for i in range(0, 64, 2)),
        lambda t: f" SHA256:{t.upper()}\n",
    ],
    ids=["upper", "prefix", "colons", "all"],
)
def test_a_fingerprint_is_understood_however_it_is_written(style):
    plain = fingerprint(b"x")
    assert normalise_fingerprint(style(plain)) == plain


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "sha1:" + "0" * 64])
def test_other_text_is_no_fingerprint(text):
    with pytest.raises(ValueError, match="64 hex digits"):
        normalise_fingerprint(text)


@pytest.fixture
def chain(make_cert, now):
    """Return root, intermediate and leaf."""
    long = {"start": now - 100 * DAY, "life": 900 * DAY, "ca": True}
    root = make_cert(subject="Root", key="p384", **long)
    middle = make_cert(subject="Middle", key="rsa", by=("Root", "p384"), **long)
    leaf = make_cert(D("a.example"), subject="a.example", by=("Middle", "rsa"))
    return root, middle, leaf


@pytest.fixture
def check(make_csr, now):
    """Return what checks certificates against an order for names."""

    def check(cert, rest="", names=("a.example",), common_names=("a.example",), at=now):
        csr = read_csr(make_csr(*map(D, names), common_names=common_names))
        return check_issued(cert, rest, csr, sans=normalise_sans(names), now=at)

    return check


@pytest.mark.parametrize(
    ("cert", "rest"),
    [
        pytest.param("L", "MR", id="as it should be"),
        pytest.param("L", "RM", id="chain upside down"),
        pytest.param("LMR", "", id="all in one"),
        pytest.param("L", "LMRLM", id="repeated"),
        pytest.param("L", "SMR", id="with a stranger"),
        pytest.param("RML", "", id="backwards"),
    ],
)
def test_the_chain_is_put_in_order_and_strangers_are_dropped(chain, check, make_cert, cert, rest):
    root, middle, leaf = chain
    parts = {"R": root, "M": middle, "L": leaf, "S": make_cert(subject="Stranger", key="p521", ca=True)}
    issued = check("text\n".join(parts[p] for p in cert), "\r\n".join(parts[p] for p in rest))
    assert (issued.leaf.pem, issued.chain_pem) == (leaf, middle + root)
    assert issued.full_pem == leaf + middle + root


def test_a_chain_may_end_below_the_root_or_be_missing(chain, check):
    _, middle, leaf = chain
    assert check(leaf, middle).chain_pem == middle
    assert check(leaf).chain_pem == ""


def test_a_leaf_that_bears_the_name_of_its_issuer_has_a_chain_all_the_same(check, make_cert):
    root = make_cert(subject="a.example", key="p384", ca=True)
    leaf = make_cert(D("a.example"), subject="a.example", by=("a.example", "p384"))
    assert check(leaf, root).chain_pem == root


def test_a_chain_that_does_not_lead_up_is_refused(chain, check):
    with pytest.raises(IssuedError, match=r"none of the certificates .* signed the certificate"):
        check(chain[2], chain[0])


def test_a_certificate_that_is_no_ca_is_nobodys_issuer(chain, check, make_cert):
    impostor = make_cert(subject="Middle", key="rsa", by=("Root", "p384"), ca=False)
    with pytest.raises(IssuedError, match="none of the certificates"):
        check(chain[2], impostor)


@pytest.mark.parametrize(
    ("sans", "names", "told"),
    [
        pytest.param(["a.example"], ["a.example", "b.example"], "it lacks b.example$", id="missing"),
        pytest.param(["a.example", "x.example"], ["a.example"], "also carries x.example$", id="too much"),
        pytest.param(["10.0.0.1"], ["10.0.0.1"], "it lacks 10.0.0.1 and it also carries 10.0.0.1", id="wrong kind"),
    ],
)
def test_names_are_those_of_the_order(check, make_cert, sans, names, told):
    with pytest.raises(IssuedError, match=told):
        check(make_cert(*map(D, sans), by=("CA", "p384")), names=names)


def test_the_common_name_of_the_csr_may_come_on_top(check, make_cert):
    cert = make_cert(D("a.example"), D("cn.example"), by=("CA", "p384"))
    assert len(check(cert, common_names=["cn.example"]).leaf.sans) == 2


@pytest.mark.parametrize(
    ("made", "told"),
    [
        pytest.param({"key": "p521"}, "no certificate for the key of the CSR", id="another key"),
        pytest.param({"ca": True}, "the certificate of a CA", id="a CA's"),
        pytest.param({"extensions": ["other"]}, "a name of a kind that cannot be ordered", id="hidden name"),
        pytest.param(
            {"start": datetime(2026, 11, 23, 12, 6, tzinfo=UTC)}, "not valid before 2026-11-23 12:06", id="early"
        ),
        pytest.param({"life": timedelta(0)}, "not valid after 2026-11-23 12:00:00", id="late"),
    ],
)
def test_what_was_not_ordered_is_refused(check, make_cert, made, told):
    if made.get("extensions") == ["other"]:
        upn = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x05admin")
        cert = make_cert(D("a.example"), upn, by=("CA", "p384"))
    else:
        cert = make_cert(D("a.example"), by=("CA", "p384"), **made)
    with pytest.raises(IssuedError, match=told):
        check(cert)


def test_a_clock_that_runs_a_little_ahead_is_forgiven(check, make_cert, now):
    assert check(make_cert(D("a.example"), by=("CA", "p384"), start=now + 5 * MINUTE)).leaf.not_before > now


def test_a_chain_that_has_expired_is_refused(chain, check, make_cert, now):
    old = make_cert(subject="Middle", key="rsa", by=("Root", "p384"), ca=True, start=now - 9 * DAY, life=8 * DAY)
    with pytest.raises(IssuedError, match="the CA certificate 'CN=Middle' is not valid after 2026-11-22"):
        check(chain[2], old)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("nothing", "cannot be read as certificates", id="nothing"),
        pytest.param("x" * 300_000, "more than 256 KiB", id="large"),
    ],
)
def test_what_cannot_be_read_is_refused(check, text, told):
    with pytest.raises(IssuedError, match=told):
        check(text)


def test_too_many_certificates_are_refused(chain, check):
    with pytest.raises(IssuedError, match="11 certificates; the limit is 10"):
        check(chain[2], chain[1] * 10)


def test_a_path_is_followed_from_leaf_to_root(chain, make_cert, now):
    root, middle, leaf = chain
    check_path(leaf, middle, root, now)
    with pytest.raises(IssuedError, match="no path leads"):
        check_path(leaf, "", root, now)
    with pytest.raises(IssuedError, match="no path leads"):
        check_path(leaf, middle, make_cert(subject="Root", key="p521", ca=True), now)
    with pytest.raises(IssuedError, match="not valid at"):
        check_path(leaf, middle, root, now + 91 * DAY)
