"""How we trust the server, and how to see the certificates that a peer presents."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from certctl_core.errors import MisconfiguredError


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that accepts servers under ``ca_file``, or under the system's roots.

    Raises:
        MisconfiguredError: ``ca_file`` cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as exc:
        raise MisconfiguredError(f"the server's CA file {ca_file} cannot be read: {exc.strerror or exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        # What the operator pinned is trusted as it is, an intermediate CA as well.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def looking() -> ssl.SSLContext:
    """Return a context that believes nobody and refuses nobody: for reading what is presented."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def presented(connection: ssl.SSLSocket | ssl.SSLObject) -> list[bytes]:
    """Return the DER of each certificate that the peer sent, leaf first, in the order it sent them."""
    if hasattr(connection, "get_unverified_chain"):
        return list(connection.get_unverified_chain())
    # Public from Python 3.13 on; before, the same function is there on the inner object only.
    inner: Any = connection._sslobj  # type: ignore[union-attr]  # noqa: SLF001
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in inner.get_unverified_chain() or ()]
