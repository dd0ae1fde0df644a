"""The server's own certificate: where it comes from, when it is renewed, and how agents know its CA."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

from certctl_core.errors import ConnectorError, MisconfiguredError
from certctl_core.issuer import IssuedCertificate, Issuer, IssueRequest, TrustChain
from certctl_core.x509 import San, SanKind, normalise_sans
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.connectors.run import CallRun
from certctl_server.context import Context
from certctl_server.files import replace
from certctl_server.settings import Settings

log = logging.getLogger(__name__)
OWN_CA = "iss-local"
PAIR_FILE, CA_FILE = "server.pem", "server-ca.pem"
PATIENCE = timedelta(seconds=30)
LOOK_AGAIN = timedelta(minutes=10)
# Renewed before a third is left, with time for another try or two.
USED = 0.6


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and the CAs above it: the one that signed first, the root last."""

    cert_pem: str
    ca_pem: str


async def issue_server_certificate(ctx: Context, csr_pem: str, sans: tuple[San, ...]) -> Signed:
    """Have our own CA sign a server certificate at once.

    Raises:
        ConnectorError: it did not, or is none that can.
    """
    loop = ConnectorLoop()
    loop.start()
    instances = Instances(ctx, loop)
    try:
        issuer = await instances.own_ca(OWN_CA)
        return await instances.call(issuer, "issue", lambda: _sign(issuer, csr_pem, sans, ctx.clock()))
    finally:
        await instances.aclose()
        await loop.stop()


async def _sign(issuer: Issuer, csr_pem: str, sans: tuple[San, ...], now: datetime) -> Signed:
    # Nothing resumes this: a certificate that a crash loses is one that nobody ever saw.
    run = CallRun(f"server-certificate-{hashlib.sha256(csr_pem.encode()).hexdigest()}", now + PATIENCE)
    issued = await issuer.issue(IssueRequest(csr_pem=csr_pem, sans=sans, ekus=("serverAuth",)), run)
    if not isinstance(issued, IssuedCertificate) or not isinstance(issuer, TrustChain):
        raise MisconfiguredError(f"a CA of kind {issuer.kind} cannot issue the server's own certificate")
    return Signed(cert_pem=issued.cert_pem, ca_pem=await issuer.trust_chain(run))


Issue: TypeAlias = Callable[[str, tuple[San, ...]], Awaitable[Signed]]
"""Takes a CSR and the names to certify."""


class ServerTls:
    """What a listener shows to clients: files that may be exchanged while it runs."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._files = (cert, key)
        self.context = self._fresh()

    def reload(self) -> None:
        """Show what the files hold now from the next handshake on; what was shown before if they are unusable."""
        try:
            # A context that takes the certificate and then refuses the key would be left with half a pair.
            self._fresh()
            self.context.load_cert_chain(*self._files)
        except MisconfiguredError as exc:
            log.error("server certificate not reloaded", extra={"error": str(exc)})
        else:
            log.info("server certificate loaded", extra={"file": str(self._files[0])})

    def _fresh(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        cert, key = self._files
        try:
            context.load_cert_chain(cert, key)
        except OSError as exc:
            raise MisconfiguredError(f"the server certificate in {cert} and {key} cannot be used: {exc}") from exc
        return context


def names(settings: Settings) -> tuple[San, ...]:
    """Return what clients may call this server: what it is told, what it is bound to, and what the machine is."""
    host = settings.server.host.strip("[]")
    found = [*settings.server.names, host, socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    if _is_any(host):
        found += [socket.getfqdn(), *_addresses()]
    return tuple(dict.fromkeys(name for text in found if text and (name := _certifiable(text))))


def _certifiable(text: str) -> San | None:
    """None for what a machine is called but no certificate can say."""
    with contextlib.suppress(ValueError):
        [name] = normalise_sans([text])
        if name.kind is SanKind.DNS or not _is_any(name.value):
            return name
    return None


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return not host


def _addresses() -> Iterable[str]:
    """The machine's own, and those it calls others from: hosts files know many a machine as 127.0.1.1 only."""
    with contextlib.suppress(OSError):
        yield from (str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(socket.gethostname(), None))
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing; it picks the address that would be sent from.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))
            yield str(probe.getsockname()[0])


class OwnCertificate:
    """A certificate of our own CA in the data directory, key and all, in one file that is replaced whole."""

    def __init__(self, data_dir: Path, sans: tuple[San, ...], issue: Issue, clock: Callable[[], datetime]) -> None:
        self.pair, self.ca = data_dir / PAIR_FILE, data_dir / CA_FILE
        self._sans, self._issue, self._clock = sans, issue, clock

    async def ensure(self) -> bool:
        """Have a certificate that is good for some time; return whether it is a new one.

        Raises:
            ConnectorError: the CA gave none, and the old one is due.
        """
        if self._is_good():
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        signed = await self._issue(_csr(key, self._sans), self._sans)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        # The root goes along: an agent that knows its hash alone can then see it at first contact.
        replace(self.pair, pem + signed.cert_pem + signed.ca_pem, mode=0o600)
        replace(self.ca, signed.ca_pem, mode=0o644)
        log.info("server certificate issued", extra={"names": [str(name) for name in self._sans]})
        return True

    async def keep(self, tls: ServerTls) -> None:
        """Renew in time for as long as the process lives."""
        while True:
            await asyncio.sleep(LOOK_AGAIN.total_seconds())
            try:
                if await self.ensure():
                    tls.reload()
            except ConnectorError as exc:
                log.warning("server certificate not renewed", extra={"error": str(exc)})

    def _is_good(self) -> bool:
        try:
            pem = self.pair.read_bytes()
            load_pem_private_key(pem, None)
            leaf, *_ = x509.load_pem_x509_certificates(pem)
            said = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound):
            return False
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        named = {
            *said.get_values_for_type(x509.DNSName),
            *(str(each) for each in said.get_values_for_type(x509.IPAddress)),
        }
        wanted = {name.value for name in self._sans}
        return self.ca.exists() and wanted <= named and begin <= self._clock() < begin + (end - begin) * USED


def _csr(key: ec.EllipticCurvePrivateKey, sans: tuple[San, ...]) -> str:
    general = [
        x509.IPAddress(ip_address(name.value)) if name.kind is SanKind.IP else x509.DNSName(name.value) for name in sans
    ]
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(
        x509.SubjectAlternativeName(general), critical=True
    )
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def pair_of(settings: Settings) -> tuple[Path, Path] | None:
    """Return where the certificate and the key of the API's listener are, None if it speaks plain HTTP."""
    if settings.server.tls == "off":
        return None
    if settings.server.tls_cert_path and settings.server.tls_key_path and settings.server.tls == "files":
        return settings.server.tls_cert_path, settings.server.tls_key_path
    pair = settings.data_dir / PAIR_FILE
    return pair, pair


def pin(settings: Settings) -> str:
    """Return the second half of an enrolment token: hex SHA-256 of the SPKI of the CA above our certificate.

    Empty without TLS, and with a certificate file that does not hold the CA: agents then need its roots.

    Raises:
        MisconfiguredError: the certificate cannot be read.
    """
    if (pair := pair_of(settings)) is None:
        return ""
    try:
        shown = x509.load_pem_x509_certificates(pair[0].read_bytes())
    except (OSError, ValueError) as exc:
        raise MisconfiguredError(f"the server certificate in {pair[0]} cannot be read: {exc}") from exc
    if len(shown) == 1 and shown[0].issuer != shown[0].subject:
        return ""
    above = shown[min(1, len(shown) - 1)]
    spki = above.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
