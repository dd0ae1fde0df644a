"""First contact: pin the server by the token's second half, register, and keep who we are."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from certctl_core.errors import MisconfiguredError
from certctl_sdk.api import agents
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certctl_agent import machine, private, tls
from certctl_agent.api import Server
from certctl_agent.identity import Identity

if TYPE_CHECKING:
    from certctl_sdk.api.bodies import NewAgent

PIN = re.compile(r"[0-9a-f]{64}")
SECONDS = 30.0
NAME_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Token:
    """What an operator hands to a machine that may enrol."""

    secret: str = field(repr=False)
    pin: str
    """Lower hex SHA-256 of the SubjectPublicKeyInfo of the CA above the server's certificate; may be empty."""


def read_token(text: str) -> Token:
    """Return the two halves of ``text``.

    Raises:
        MisconfiguredError: it is no token.
    """
    secret, _, pin = text.strip().partition(".")
    if not secret or any(c.isspace() or not c.isprintable() for c in secret):
        raise MisconfiguredError("this is no enrolment token: `certctl agents tokens create` makes one")
    if pin and not PIN.fullmatch(pin.lower()):
        raise MisconfiguredError("the second half of the enrolment token is damaged: it is 64 hex digits")
    return Token(secret, pin.lower())


def pinned_ca(url: str, token: Token, ca_file: Path | None, state_dir: Path) -> Path | None:
    """Return the roots to register under: the CA alone that the token pins, kept as a file, else ``ca_file``.

    What is looked at here is another connection than the one that sends the token, so roots that say more than
    the pin must not decide who gets it.

    Raises:
        MisconfiguredError: the server is not the one that the token is for, or nothing tells who it is.
    """
    secure = url.startswith("https:")
    if token.pin and not secure:
        raise MisconfiguredError(f"the token names a server with TLS, and {url} is plain HTTP: use its https address")
    if not token.pin:
        if secure and not ca_file:
            raise MisconfiguredError(
                "the token does not say by which CA to know the server: name its CA with --ca-file"
            )
        return ca_file
    pem = find_pinned(presented_by(url), token.pin)
    kept = state_dir / "agent-server-ca.pem"
    private.write(kept, pem)
    return kept


def presented_by(url: str) -> list[bytes]:
    """Return the chain that the server shows to anybody, believing none of it; nothing else is exchanged.

    Raises:
        MisconfiguredError: it shows none.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        with (
            socket.create_connection((host, port), timeout=SECONDS) as plain,
            tls.looking().wrap_socket(plain, server_hostname=host) as connection,
        ):
            return tls.presented(connection)
    except (OSError, ssl.SSLError) as exc:
        raise MisconfiguredError(f"no TLS handshake with {host}:{port}: {exc}") from exc


def find_pinned(chain: list[bytes], pin: str) -> str:
    """Return the PEM of the certificate in ``chain`` whose key ``pin`` names, if the leaf leads up to it.

    Raises:
        MisconfiguredError: none has that key, or the leaf is not signed, over the others, by it.
    """
    try:
        leaf, *above = [x509.load_der_x509_certificate(each) for each in chain]
    except ValueError as exc:
        raise MisconfiguredError("the server shows certificates that cannot be read") from exc
    current = leaf
    while _spki_sha256(current) != pin:
        issuer = next((each for each in above if _issued(each, current)), None)
        if issuer is None:
            raise MisconfiguredError(
                "this is not the server that the token was made by, or somebody sits in between:"
                " no certificate that it shows leads up to the CA that the token pins. Nothing was sent"
            )
        above.remove(issuer)
        current = issuer
    return current.public_bytes(Encoding.PEM).decode()


def _issued(issuer: x509.Certificate, below: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(issuer)
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False


def _spki_sha256(cert: x509.Certificate) -> str:
    try:
        key = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return hashlib.sha256(key).hexdigest()


async def register(server: Server, name: str, url: str) -> Identity:
    """Make this machine an agent of ``server`` and return who it is now.

    Raises:
        TransientError: no answer.
        Refused: the server does not take it, or not under this name.
        MisconfiguredError: its answer makes no agent.
    """
    body = cast("NewAgent", {"name": name[:NAME_CHARACTERS], **machine.facts(url)})
    answer = await server.send(agents.register(body))
    agent_id, api_key = answer.get("id"), answer.get("api_key")
    if not isinstance(agent_id, str) or not isinstance(api_key, str) or not agent_id or not api_key:
        raise MisconfiguredError("the server registered this machine but sent no id and key for it")
    return Identity(id=agent_id, api_key=api_key)
