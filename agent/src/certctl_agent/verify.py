"""Step 9 of docs/main-flow.md: look at what is served, and say in plain words how it is not what was deployed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from certctl_core.errors import ConnectorError, DeploymentError
from certctl_core.run import Egress
from certctl_core.target import Bundle, Endpoint
from certctl_core.x509 import fingerprint
from certctl_sdk import tracing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certctl_agent import tls
from certctl_agent.settings import VerifySettings

HANDSHAKE_SECONDS = 5.0
AGAIN_SECONDS = 0.5
LOOKING = tls.looking()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one endpoint presented, as DER, or why it could not be seen."""

    chain: tuple[bytes, ...] = ()
    trouble: str = ""


class Proof:
    """Looks at every endpoint until all serve a bundle, for as long as the settings allow; awaited by calling it."""

    def __init__(self, bundle: Bundle, endpoints: Sequence[Endpoint], egress: Egress, settings: VerifySettings) -> None:
        self._expected = _ders(bundle)
        self._endpoints = [_asking(each, self._expected[0]) for each in endpoints]
        self._egress = egress
        self._settings = settings
        self.expected_fingerprint = fingerprint(self._expected[0])
        self.actual_fingerprint = ""
        """Of the leaf that was served where it differed, else of the one proved; empty if nothing could be seen."""
        self.looked = False
        self.passed = False

    async def __call__(self) -> None:
        """Return once every endpoint serves the bundle.

        Raises:
            DeploymentError: step ``verify``; the time is up and one still does not.
        """
        with tracing.span("verify"):
            await self._insist()

    async def _insist(self) -> None:
        self.looked, self.passed = True, False
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._settings.delay.total_seconds())
        until = loop.time() + self._settings.timeout.total_seconds()
        while faults := await self._look():
            if loop.time() + AGAIN_SECONDS >= until:
                raise DeploymentError("verify", "; ".join(faults))
            await asyncio.sleep(AGAIN_SECONDS)
        self.passed = True

    async def _look(self) -> list[str]:
        """Return what is wrong at each endpoint where something is."""
        every = await asyncio.gather(*(look(endpoint, self._egress) for endpoint in self._endpoints))
        faults = []
        self.actual_fingerprint = self.expected_fingerprint
        for endpoint, seen in zip(self._endpoints, every, strict=True):
            if fault := seen.trouble or difference(self._expected, seen.chain):
                self.actual_fingerprint = fingerprint(seen.chain[0]) if seen.chain else ""
                faults.append(f"{endpoint.host}:{endpoint.port} {fault}")
        return faults


async def look(endpoint: Endpoint, egress: Egress) -> Seen:
    """Return what ``endpoint`` presents, believing nothing."""
    try:
        address = await egress.admit(endpoint.host, endpoint.port)
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            _, writer = await asyncio.open_connection(
                str(address),
                endpoint.port,
                ssl=LOOKING,
                server_hostname=(endpoint.server_name or endpoint.host).rstrip("."),
                ssl_shutdown_timeout=1,
            )
    except TimeoutError:
        return Seen(trouble=f"did not finish a TLS handshake within {HANDSHAKE_SECONDS:g} s")
    except ssl.SSLError as exc:
        return Seen(trouble=f"refused the TLS handshake: {exc.reason or exc}")
    except OSError as exc:
        return Seen(trouble=f"did not answer: {exc.strerror or exc}")
    except ConnectorError as exc:
        return Seen(trouble=f"cannot be looked at: {exc}")
    try:
        return Seen(tuple(tls.presented(writer.get_extra_info("ssl_object"))))
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def difference(expected: Sequence[bytes], served: Sequence[bytes]) -> str:
    """Return what is wrong with ``served``, leaf first; empty if it begins with all of ``expected``, in order."""
    if not served:
        return "presents no certificate"
    if served[0] != expected[0]:
        return f"serves another certificate: {_described(served[0])}"
    if list(served[: len(expected)]) == list(expected):
        return ""
    if missing := [each for each in expected[1:] if each not in served]:
        return f"serves the certificate without its intermediate {_subject(missing[0])}"
    return "serves the intermediates in the wrong order"


def _asking(endpoint: Endpoint, leaf: bytes) -> Endpoint:
    """An address can be no SNI (RFC 6066 section 3): there we ask as clients do, for a name of the certificate."""
    names = _dns_names(leaf)
    if endpoint.server_name or not names or not _is_address(endpoint.host):
        return endpoint
    return replace(endpoint, server_name=names[0].replace("*", "www", 1))


def _dns_names(der: bytes) -> list[str]:
    try:
        sans = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return sans.value.get_values_for_type(x509.DNSName)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _ders(bundle: Bundle) -> list[bytes]:
    """The certificates that must be served: a root at the end may be left out (RFC 8446 section 4.4.2)."""
    leaf, *chain = x509.load_pem_x509_certificates((bundle.cert_pem + bundle.chain_pem).encode())
    if chain and chain[-1].issuer == chain[-1].subject:
        chain.pop()
    return [each.public_bytes(Encoding.DER) for each in (leaf, *chain)]


def _described(der: bytes) -> str:
    try:
        cert = x509.load_der_x509_certificate(der)
    except ValueError:
        return "one that cannot be read"
    return f"{_subject(der)}, serial {cert.serial_number:x}, valid to {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"


def _subject(der: bytes) -> str:
    try:
        subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except ValueError:
        return "that cannot be read"
    return ascii(subject)[1:-1][:100] or "without a subject"
