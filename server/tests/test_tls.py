from __future__ import annotations

import hashlib
import socket
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core import plugins
from certctl_core.errors import MisconfiguredError, TransientError
from certctl_core.x509 import normalise_sans
from certctl_server import start, tls
from certctl_server.context import Context
from certctl_server.issuers.tables import Issuer
from certctl_server.jobs import bell
from certctl_server.settings import Settings
from certctl_server.tls import OwnCertificate, ServerTls, Signed
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

NAMES = normalise_sans(["localhost", "127.0.0.1", "::1"])
LIFE = timedelta(days=90)


def now():
    return datetime.now(UTC)


class Authority:
    """A root that signs whatever it is asked to."""

    def __init__(self, name="Test CA"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.cert = self._sign(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.issued = 0
        self.refusing = False

    @property
    def pem(self):
        return self.cert.public_bytes(Encoding.PEM).decode()

    @property
    def pin(self):
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    def _sign(self, subject, key, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - timedelta(minutes=1))
            .not_valid_after(now() + LIFE)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    async def issue(self, csr_pem, sans):
        if self.refusing:
            raise TransientError("the CA is away")
        self.issued += 1
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        said = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        cert = self._sign(x509.Name([]), csr.public_key(), said)
        return Signed(cert_pem=cert.public_bytes(Encoding.PEM).decode(), ca_pem=self.pem)


def shown(context, roots, name="localhost"):
    """What a client that trusts ``roots`` sees in a handshake, without a network."""
    client_context = ssl.create_default_context(cadata=roots)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = client_context.wrap_socket(ours, server_hostname=name, do_handshake_on_connect=False)
        server = context.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
        with client, server:
            for side in (client, server):
                side.settimeout(0)
            waiting = [client, server]
            while waiting:
                for side in list(waiting):
                    try:
                        side.do_handshake()
                    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        continue
                    waiting.remove(side)
            return x509.load_der_x509_certificate(client.getpeercert(binary_form=True)), client.version()


async def own(directory, authority, clock=now, names=NAMES):
    certificate = OwnCertificate(directory, names, authority.issue, clock)
    return certificate, await certificate.ensure()


async def test_clients_that_trust_our_ca_accept_the_certificate(tmp_path):
    authority = Authority()
    certificate, fresh = await own(tmp_path, authority)
    assert fresh
    _, version = shown(ServerTls(certificate.pair, certificate.pair).context, certificate.ca.read_text())
    assert version == "TLSv1.3"
    assert stat.S_IMODE(certificate.pair.stat().st_mode) == 0o600


async def test_a_restart_keeps_the_certificate(tmp_path):
    authority = Authority()
    await own(tmp_path, authority)
    before = (tmp_path / tls.PAIR_FILE).read_text()
    _, fresh = await own(tmp_path, authority)
    assert not fresh
    assert (tmp_path / tls.PAIR_FILE).read_text() == before


@pytest.mark.parametrize(
    ("passed", "renewed"), [(0.5, False), (0.61, True), (1.5, True)], ids=["half", "before a third is left", "expired"]
)
async def test_it_is_renewed_before_a_third_of_its_life_is_left(tmp_path, passed, renewed):
    authority = Authority()
    await own(tmp_path, authority)
    _, fresh = await own(tmp_path, authority, clock=lambda: now() + LIFE * passed)
    assert fresh is renewed


@pytest.mark.parametrize("damage", ["", "-----BEGIN PRIVATE KEY-----\n", None], ids=["empty", "cut short", "missing"])
async def test_a_damaged_file_is_made_anew(tmp_path, damage):
    authority = Authority()
    await own(tmp_path, authority)
    if damage is None:
        (tmp_path / tls.PAIR_FILE).unlink()
    else:
        (tmp_path / tls.PAIR_FILE).write_text(damage)
    assert (await own(tmp_path, authority))[1]


async def test_a_new_name_of_the_machine_gets_into_the_certificate(tmp_path):
    authority = Authority()
    await own(tmp_path, authority)
    certificate, fresh = await own(tmp_path, authority, names=(*NAMES, *normalise_sans(["certctl.example"])))
    assert fresh
    shown(ServerTls(certificate.pair, certificate.pair).context, authority.pem, "certctl.example")


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    authority = Authority()
    certificate, _ = await own(tmp_path, authority)
    served = ServerTls(certificate.pair, certificate.pair)
    before, _ = shown(served.context, authority.pem)
    certificate.pair.unlink()
    await certificate.ensure()
    served.reload()
    after, _ = shown(served.context, authority.pem)
    assert after.serial_number != before.serial_number


async def test_files_that_do_not_fit_together_leave_the_old_certificate_in_place(tmp_path, caplog):
    authority = Authority()
    certificate, _ = await own(tmp_path, authority)
    served = ServerTls(certificate.pair, certificate.pair)
    before, _ = shown(served.context, authority.pem)
    (tmp_path / "other").mkdir()
    other, _ = await own(tmp_path / "other", authority)
    key = certificate.pair.read_text().partition("-----BEGIN CERTIFICATE")[0]
    certificate.pair.write_text(key + other.pair.read_text()[len(key) :])
    served.reload()
    assert "not reloaded" in caplog.text
    assert shown(served.context, authority.pem)[0] == before


async def test_old_protocol_versions_are_refused(tmp_path):
    certificate, _ = await own(tmp_path, Authority())
    assert ServerTls(certificate.pair, certificate.pair).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used_stop_the_start(tmp_path):
    (tmp_path / "cert.pem").write_text("nonsense")
    with pytest.raises(MisconfiguredError, match=r"cert\.pem"):
        ServerTls(tmp_path / "cert.pem", tmp_path / "none.pem")


async def test_the_pin_of_tokens_is_the_hash_of_the_cas_key(tmp_path):
    authority = Authority()
    await own(tmp_path, authority)
    assert tls.pin(Settings(data_dir=tmp_path, server={"host": "0.0.0.0"})) == authority.pin
    assert tls.pin(Settings(data_dir=tmp_path)) == ""


async def test_a_certificate_file_without_its_ca_pins_nothing(tmp_path):
    authority = Authority()
    certificate, _ = await own(tmp_path, authority)
    leaf, *_ = x509.load_pem_x509_certificates(certificate.pair.read_bytes())
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))

    def pin(path):
        return tls.pin(Settings(server={"tls_cert_path": path, "tls_key_path": path}))

    assert pin(tmp_path / "leaf.pem") == ""
    assert pin(certificate.pair) == authority.pin
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        pin(tmp_path / "none.pem")


def test_the_names_are_those_that_clients_may_use():
    found = [str(name) for name in tls.names(Settings(server={"host": "0.0.0.0", "names": ["certctl.example"]}))]
    assert found[0] == "certctl.example"
    assert {"localhost", "127.0.0.1", "::1"} <= set(found)
    assert "0.0.0.0" not in found
    assert len(found) == len(set(found))
    assert "192.0.2.7" in [str(name) for name in tls.names(Settings(server={"host": "192.0.2.7"}))]


async def test_our_own_ca_signs_the_certificate_of_the_server(tmp_path):
    settings = Settings(data_dir=tmp_path, server={"host": "0.0.0.0"})
    async with start.ground(settings) as cipher:
        ctx = Context(settings=settings, plugins=plugins.load(), cipher=cipher, clock=now, bell=bell, started_at=now())

        async def issue(csr_pem, sans):
            return await tls.issue_server_certificate(ctx, csr_pem, sans)

        certificate = OwnCertificate(tmp_path, NAMES, issue, now)
        assert await certificate.ensure()
        pin = tls.pin(settings)
        cert, _ = shown(ServerTls(certificate.pair, certificate.pair).context, certificate.ca.read_text())
        assert "CertCtl Local CA" in cert.issuer.rfc4514_string()
        certificate.pair.unlink()
        # Nothing that is written to the database may keep the server from starting.
        await Issuer.update(enabled=False).where(Issuer.id == tls.OWN_CA)
        assert await certificate.ensure()
        assert tls.pin(settings) == pin
