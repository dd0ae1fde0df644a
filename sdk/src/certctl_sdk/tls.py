"""Contexts for TLS clients, from PEM text that never touches a disk."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

from certctl_core.errors import MisconfiguredError

Identity: TypeAlias = tuple[str, str]
"""PEM of the client certificate followed by its chain, and PEM of its unencrypted key."""


def tls_context(roots_pem: str | None = None, identity: Identity | None = None) -> ssl.SSLContext:
    """Return a client's context that trusts ``roots_pem`` and shows ``identity``.

    Without roots it trusts the system's; the variable ``SSL_CERT_FILE`` names others.

    Raises:
        MisconfiguredError: the roots, the certificate or the key cannot be read, or key and certificate do not match.
    """
    if not roots_pem and identity is None:
        return shared_context()
    try:
        context = ssl.create_default_context(cadata=roots_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise MisconfiguredError("the trusted roots are not PEM certificates") from exc
    if identity:
        with _readable("\n".join(identity)) as path:
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(path, password="")
            except (ssl.SSLError, ValueError) as exc:
                raise MisconfiguredError("the client certificate and its key cannot be used together") from exc
    return context


@cache
def shared_context() -> ssl.SSLContext:
    """The one context with the system's roots: loading them costs 25 ms."""
    return ssl.create_default_context()


@contextlib.contextmanager
def _readable(text: str) -> Iterator[str]:
    """A path to ``text``: OpenSSL reads keys from files only. In memory where the system can, never left behind."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        with os.fdopen(os.memfd_create("identity"), "w") as memory:
            memory.write(text)
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            yield file.name
