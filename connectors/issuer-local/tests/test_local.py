import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from certctl_core.connector import Checker
from certctl_core.errors import MisconfiguredError, RejectedError
from certctl_core.issuer import Finder, Poller, Revoker, RevokeRequest, StatusSigner, StatusSignRequest, TrustChain
from certctl_core.names import normalise_sans
from certctl_core.plugins import load
from certctl_core.signing import verify
from certctl_core.x509 import check_issued, check_path, read_csr
from certctl_issuer_local import LocalConfig, LocalIssuer
from certctl_issuer_local.authority import Authority, created
from certctl_sdk.testing.fake_host import Crash, FakeHost, FakeRun, FakeStore
from certctl_sdk.testing.issuer_contract import IssuerContract
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtensionOID

NOW = datetime(2026, 11, 23, 12, 0, 0, 654321, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def watched(key, signed):
    """Return a key like ``key`` that adds to ``signed`` whatever it signs."""

    def sign(_self, data, algorithm):
        signed.append(data)
        return key.sign(data, algorithm)

    kept = {n: property(lambda _, n=n: getattr(key, n)) for n in ec.EllipticCurvePrivateKey.__abstractmethods__}
    return type("WatchedKey", (ec.EllipticCurvePrivateKey,), kept | {"sign": sign})()


@pytest.fixture
async def watched_ca(host):
    """Return what makes issuers of one CA, and the bytes that its key has signed."""
    ca, signed = await created(host.store, "A CA", host.clock()), []
    watching = Authority(watched(ca.key, signed), ca.cert, ())
    return lambda: LocalIssuer(LocalConfig(), host, authority=watching), signed


class TestContract(IssuerContract):
    connector = LocalIssuer
    options: ClassVar = {"validity_days": 30, "ca_cert_path": "/ca.pem", "ca_key_path": "/ca.key"}

    @pytest.fixture
    async def make(self, watched_ca):
        return watched_ca[0]

    @pytest.fixture
    async def orders(self, watched_ca):
        return lambda: len(set(watched_ca[1]))


def test_it_is_found_by_its_kind():
    assert load().issuers["GenericCA"] is LocalIssuer


def test_it_can_do_what_a_private_ca_can(host):
    issuer = LocalIssuer(LocalConfig(), host)
    assert all(isinstance(issuer, ability) for ability in (Revoker, TrustChain, Checker, StatusSigner))
    assert not isinstance(issuer, Finder | Poller)


async def test_nothing_is_signed_before_the_bytes_are_saved(watched_ca, order):
    make, signed = watched_ca
    with pytest.raises(Crash):
        await make().issue(order("a.example"), FakeRun(crash_at=1))
    assert signed == []


async def test_a_retry_returns_the_same_certificate_octet_for_octet(issue, order):
    run, request = FakeRun(), order("a.example", common_name="a.example")
    first = await issue(request, run)
    again = await issue(request, run.again())
    assert first.issued == again.issued


async def test_a_crash_after_the_save_changes_nothing_of_what_was_decided(issue, order, host):
    run, request = FakeRun(crash_at=1), order("a.example")
    with pytest.raises(Crash):
        await issue(request, run)
    host.clock = lambda: datetime.now(UTC) + HOUR
    outcome = await issue(request, run.again())
    assert outcome.issued.reference == run.state["serial"]
    assert outcome.leaf.not_valid_after_utc.isoformat() == run.state["not_after"]


async def test_what_was_begun_and_is_past_its_use_is_begun_anew(issue, order, host):
    run, request = FakeRun(crash_at=1), order("a.example", lifetime=timedelta(minutes=10))
    with pytest.raises(Crash):
        await issue(request, run)
    host.clock = lambda: datetime.now(UTC) + HOUR
    outcome = await issue(request, run.again())
    assert outcome.leaf.not_valid_after_utc > host.clock()


async def test_what_was_begun_before_the_clock_was_set_back_is_begun_anew(issue, order, host):
    await issue(order("first.example"), FakeRun("job-1"))
    host.clock = lambda: datetime.now(UTC) + 2 * HOUR
    run, request = FakeRun("job-2", crash_at=1), order("a.example")
    with pytest.raises(Crash):
        await issue(request, run)
    host.clock = lambda: datetime.now(UTC)
    outcome = await issue(request, run.again())
    assert outcome.leaf.not_valid_before_utc <= host.clock()


async def test_what_was_begun_for_another_key_or_by_another_ca_is_not_signed(issue, order, host):
    run = FakeRun()
    await issue(order("a.example"), run)
    with pytest.raises(RejectedError, match="begun with another CA or another key"):
        await issue(order("a.example", key="p384"), run)
    host.store = FakeStore()
    with pytest.raises(RejectedError, match="begun with another CA or another key"):
        await issue(order("a.example"), run, ca_common_name="Another CA")


async def test_the_root_outlives_the_process(issue, order):
    first, second = await issue(order("a.example")), await issue(order("b.example"), FakeRun("job-2"))
    assert first.ca == second.ca


class SlowStore(FakeStore):
    """Lets others in between, as a database does."""

    async def get(self, key):
        await asyncio.sleep(0)
        return await super().get(key)

    async def swap(self, key, *, old, new):
        await asyncio.sleep(0)
        return await super().swap(key, old=old, new=new)


async def test_many_workers_that_start_at_once_share_one_root(order):
    host = FakeHost(store=SlowStore())
    workers = [LocalIssuer(LocalConfig(), host) for _ in range(8)]
    roots = await asyncio.gather(*(worker.trust_chain(FakeRun()) for worker in workers for _ in range(2)))
    assert len(set(roots)) == 1


async def test_the_root_is_what_strict_parties_ask_for(issue, order):
    root = (await issue(order("a.example"), ca_common_name="Our CA")).ca
    assert root.subject == root.issuer
    assert root.subject.rfc4514_string() == "CN=Our CA"
    assert isinstance(root.public_key().curve, ec.SECP256R1)
    assert root.not_valid_after_utc - root.not_valid_before_utc + SECOND == 3650 * DAY
    basic, usage = (root.extensions.get_extension_for_class(k) for k in (x509.BasicConstraints, x509.KeyUsage))
    assert (basic.critical, basic.value.ca, usage.critical) == (True, True, True)
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)


async def test_key_identifiers_are_those_of_rfc_7093(issue, order):
    outcome = await issue(order("a.example"))
    point = outcome.leaf.public_key().public_numbers()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"\x04" + point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"))
    assert outcome.extension(x509.SubjectKeyIdentifier).value.digest == digest.finalize()[:20]
    above = outcome.ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert outcome.extension(x509.AuthorityKeyIdentifier).value.key_identifier == above


@pytest.mark.parametrize("key", ["p256", "rsa", "ed25519"])
@pytest.mark.parametrize("common_name", ["", "a.example", "Somebody Ürgendwo"])
async def test_the_octets_are_those_that_cryptography_would_write(issue, order, keys, key, common_name):
    points = ("http://pki.example/1.crl", "http://pki.example/2.crl")
    names = ["a.example", "192.0.2.1", "2001:db8::1", "b@example.com", "spiffe://prod.example/web"]
    request = order(*names, key=key, common_name=common_name, ekus=("serverAuth", "clientAuth"))
    outcome = await issue(request, crl_distribution_point_urls=points)
    leaf = outcome.leaf
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(outcome.ca.subject)
        .public_key(keys[key].public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for extension in leaf.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    twin = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    assert twin.tbs_certificate_bytes == leaf.tbs_certificate_bytes


async def test_the_names_come_from_the_order_and_not_from_the_csr(issue, order):
    outcome = await issue(order("10.0.0.1", "b.example", common_name="a.example"))
    names = outcome.extension(x509.SubjectAlternativeName)
    assert [str(name.value) for name in names.value] == ["10.0.0.1", "b.example", "a.example"]
    assert isinstance(next(iter(names.value)), x509.IPAddress)
    assert outcome.leaf.subject.rfc4514_string() == "CN=a.example"


@pytest.mark.parametrize(("common_name", "critical"), [("", True), ("a.example", False)], ids=["none", "one"])
async def test_names_are_critical_where_the_subject_is_empty(issue, order, common_name, critical):
    outcome = await issue(order("a.example", common_name=common_name))
    assert outcome.extension(x509.SubjectAlternativeName).critical is critical


@pytest.mark.parametrize(
    ("key", "ekus", "usages"),
    [
        pytest.param("rsa", (), {"digital_signature", "key_encipherment"}, id="rsa server"),
        pytest.param("rsa", ("clientAuth",), {"digital_signature"}, id="rsa client"),
        pytest.param("rsa", ("emailProtection",), {"digital_signature", "key_encipherment"}, id="rsa mail"),
        pytest.param("p256", ("serverAuth",), {"digital_signature"}, id="ec server"),
        pytest.param("p256", ("emailProtection",), {"digital_signature", "key_agreement"}, id="ec mail"),
        pytest.param("ed25519", ("emailProtection",), {"digital_signature"}, id="ed25519 signs only"),
    ],
)
async def test_key_usages_follow_key_and_purpose(issue, order, key, ekus, usages):
    usage = (await issue(order("a@example.com", key=key, ekus=ekus))).extension(x509.KeyUsage)
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    assert usage.critical
    assert {name for name in [*names, "key_cert_sign", "crl_sign"] if getattr(usage.value, name)} == usages


async def test_a_certificate_nobody_revokes_says_so_and_points_nowhere(issue, order):
    points = ("http://pki.example/ca.crl",)
    outcome = await issue(order("a.example", no_rev_avail=True), crl_distribution_point_urls=points)
    mark = outcome.leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier("2.5.29.56"))
    assert (mark.critical, mark.value.public_bytes()) == (False, b"\x05\x00")
    with pytest.raises(x509.ExtensionNotFound):
        outcome.leaf.extensions.get_extension_for_oid(ExtensionOID.CRL_DISTRIBUTION_POINTS)


@pytest.mark.parametrize(
    ("wishes", "backdated", "life"),
    [
        pytest.param({}, HOUR, 90 * DAY, id="the default"),
        pytest.param({"lifetime": 47 * DAY}, HOUR, 47 * DAY, id="days"),
        pytest.param({"lifetime": HOUR}, 6 * timedelta(minutes=1), HOUR, id="an hour"),
        pytest.param({"lifetime": timedelta(seconds=61)}, 6 * SECOND, timedelta(seconds=61), id="a minute"),
        pytest.param({"not_after": NOW + 5 * DAY}, HOUR, 5 * DAY + HOUR + SECOND, id="until a moment"),
        pytest.param(
            {"lifetime": 9 * DAY, "not_after": NOW + 5 * DAY}, HOUR, 5 * DAY + HOUR + SECOND, id="the earlier of both"
        ),
    ],
)
async def test_a_life_is_exact_to_the_second_and_counts_both_ends(issue, order, host, wishes, backdated, life):
    host.clock = lambda: NOW - 30 * DAY
    await issue(order("first.example"))
    host.clock = lambda: NOW
    leaf = (await issue(order("a.example", **wishes), FakeRun("job-2"))).leaf
    assert leaf.not_valid_before_utc == NOW.replace(microsecond=0) - backdated
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc + SECOND == life


async def test_no_certificate_is_older_or_outlives_its_ca(issue, order, host):
    host.clock = lambda: NOW
    young = await issue(order("a.example", lifetime=100 * DAY))
    assert young.leaf.not_valid_before_utc == young.ca.not_valid_before_utc
    host.clock = lambda: NOW + 3640 * DAY
    late = await issue(order("a.example"), FakeRun("job-2"))
    assert late.leaf.not_valid_after_utc == late.ca.not_valid_after_utc
    host.clock = lambda: NOW + 3650 * DAY
    with pytest.raises(MisconfiguredError, match="not valid now; it ends on 2036-11-20 10:59:59"):
        await issue(order("a.example"), FakeRun("job-3"))


async def test_years_from_2050_on_are_written_in_the_long_form(issue, order, host):
    host.clock = lambda: datetime(2049, 12, 1, tzinfo=UTC)
    assert (await issue(order("a.example"))).leaf.not_valid_after_utc.year == 2050


async def test_serial_numbers_are_long_and_positive(issue, order):
    serials = [(await issue(order("a.example"), FakeRun(str(n)))).leaf.serial_number for n in range(20)]
    assert len(set(serials)) == 20
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert max(serial.bit_length() for serial in serials) > 150


@pytest.mark.parametrize(
    ("names", "wishes", "told"),
    [
        pytest.param([], {}, "no name to certify", id="no name"),
        pytest.param(["a.example"], {"ekus": ("anything",)}, "does not know: anything", id="purpose"),
        pytest.param(["a.example"], {"common_name": "x" * 65}, "cannot stand in a certificate", id="long"),
        pytest.param(["a.example"], {"not_after": NOW - 9999 * DAY}, "over before it is issued", id="past"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_before_anything_is_saved(issue, order, names, wishes, told):
    run = FakeRun()
    with pytest.raises(RejectedError, match=told):
        await issue(order(*names, **wishes), run)
    assert run.saves == 0


async def test_a_csr_that_cannot_be_read_is_refused(issue, order):
    request = order("a.example")
    object.__setattr__(request, "csr_pem", "nothing")
    with pytest.raises(RejectedError, match="the CSR cannot be read"):
        await issue(request)


async def test_what_is_issued_passes_the_checks_that_every_ca_has_to(issue, order):
    request = order("a.example", "10.0.0.1")
    issued = (await issue(request)).issued
    now, sans = datetime.now(UTC), normalise_sans(["a.example", "10.0.0.1"])
    checked = check_issued(issued.cert_pem, issued.chain_pem, read_csr(request.csr_pem), sans=sans, now=now)
    assert checked.leaf.serial_number == issued.reference
    check_path(issued.cert_pem, "", issued.chain_pem, now)


async def test_crls_and_answers_are_signed_by_the_ca_key(host):
    issuer = LocalIssuer(LocalConfig(), host)
    signature = await issuer.sign_status(StatusSignRequest(tbs_der=b"status"), FakeRun())
    key = x509.load_pem_x509_certificate((await issuer.trust_chain(FakeRun())).encode()).public_key()
    verify(key, b"status", signature)
    with pytest.raises(InvalidSignature):
        verify(key, b"another", signature)


async def test_revoking_and_checking_succeed_without_anybody_to_call(issue, order, host):
    issued, issuer = (await issue(order("a.example"))).issued, LocalIssuer(LocalConfig(), host)
    await issuer.revoke(RevokeRequest(cert_pem=issued.cert_pem, reference=issued.reference), FakeRun())
    await issuer.check(FakeRun())
    host.clock = lambda: datetime(2099, 1, 1, tzinfo=UTC)
    with pytest.raises(MisconfiguredError, match="not valid now"):
        await issuer.check(FakeRun())


async def test_a_store_that_holds_something_else_is_said_to(issue, order, host):
    await host.store.swap("ca", old=None, new='{"cert_pem": 1}')
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        await issue(order("a.example"))


async def test_the_key_is_kept_as_pkcs8_and_never_shown(host):
    ca = await created(host.store, "A CA", host.clock())
    kept = await host.store.get("ca")
    assert load_pem_private_key(json.loads(kept)["key_pem"].encode(), None).key_size == 256
    assert "BEGIN PRIVATE KEY" in kept
    assert "PRIVATE KEY" not in repr(ca)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ca_cert_path": "/ca.pem"}, id="certificate without key"),
        pytest.param({"ca_key_path": "/ca.key", "ca_cert_path": ""}, id="key without certificate"),
        pytest.param({"validity_days": 0}, id="no life"),
        pytest.param({"crl_distribution_point_urls": ["https://pki.example/crl"]}, id="https points in a circle"),
    ],
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=r"set together|greater than|pattern"):
        LocalConfig(**options)


def test_empty_paths_mean_none():
    assert LocalConfig(ca_cert_path="", ca_key_path="").ca_cert_path is None
