"""A real NGINX on a free loopback port, with a directory of its own, to deploy to and to look at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from certctl_sdk.commands import ENVIRONMENT

PATIENCE_SECONDS = 10.0

CONFIG = """\
daemon off;
{user}worker_processes 2;
pid {root}/nginx.pid;
error_log {root}/error.log notice;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {root}/temp;
    proxy_temp_path {root}/temp;
    fastcgi_temp_path {root}/temp;
    uwsgi_temp_path {root}/temp;
    scgi_temp_path {root}/temp;
{servers}
}}
"""
SERVER = """\
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate {cert};
        ssl_certificate_key {key};
        {more}
        location / {{ return 200 "{name}\\n"; }}
    }}"""


class Nginx:
    """One NGINX under ``root``: ``start`` it, or use it as a context manager. Each one has its own port.

    It serves one pair of files under all ``names``; ``site`` adds server blocks with files of their own.
    The files need not exist before ``start``.
    """

    def __init__(
        self, root: Path, *, cert: Path | None = None, key: Path | None = None, chain: Path | None = None
    ) -> None:
        """Serve ``cert`` and ``key``, by default ``root/tls/site.crt`` and ``.key``; ``chain`` as trusted chain."""
        self.root = root
        self.cert = cert or root / "tls" / "site.crt"
        self.key = key or root / "tls" / "site.key"
        self.config = root / "nginx.conf"
        """Where its configuration is."""
        self.port = _free_port()
        """Where it listens on 127.0.0.1."""
        self._more = f"ssl_trusted_certificate {chain};" if chain else ""
        self._sites: list[tuple[str, Path, Path]] = [("_", self.cert, self.key)]
        self._process: subprocess.Popen[bytes] | None = None
        for directory in (root, self.cert.parent, self.key.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self._write_config()

    def site(self, name: str, cert: Path, key: Path) -> None:
        """Also serve ``cert`` and ``key`` to clients that ask for ``name``; takes effect with the next reload."""
        self._sites.append((name, cert, key))
        self._write_config()

    @property
    def check_command(self) -> tuple[str, ...]:
        """``nginx -t`` for this instance, to be allowed in an ``Allowed``."""
        return (_program(), "-t", "-q", *self._here())

    @property
    def reload_command(self) -> tuple[str, ...]:
        """``nginx -s reload`` for this instance."""
        return (_program(), "-s", "reload", *self._here())

    @property
    def pid(self) -> int:
        """The process id of its master."""
        assert self._process, "start it first"
        return self._process.pid

    def start(self) -> None:
        """Return once it accepts connections.

        Raises:
            RuntimeError: it does not start; the message holds its error log.
        """
        for _ in range(3):
            self._process = subprocess.Popen(  # noqa: S603  # the arguments are ours
                [_program(), *self._here()], env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
            )
            _within(PATIENCE_SECONDS, lambda: self._ended() or self._accepts())
            if not self._ended() and self._accepts():
                return
            self.kill()
            if "Address already in use" not in self.errors():
                break
            self.port = _free_port()  # somebody was faster
            self._write_config()
        raise RuntimeError(f"NGINX did not start: {self.errors()}")

    def stop(self) -> None:
        """End it as an operator would; nothing if it does not run."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """End it and its workers by SIGKILL, as a crash would; nothing if it does not run."""
        self._end(signal.SIGKILL)

    def served(self, server_name: str = "localhost") -> bytes:
        """Return the certificate, as DER, that a client gets who asks for ``server_name``.

        Raises:
            OSError: no connection, or no handshake.
        """
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection,
            context.wrap_socket(connection, server_hostname=server_name) as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""

    def serves(self, der: bytes, server_name: str = "localhost", *, within_seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether a client gets ``der`` soon: a reload returns before the new workers have taken over."""
        return _within(within_seconds, lambda: self.served(server_name) == der)

    def errors(self) -> str:
        """Return what it logged."""
        log = self.root / "error.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _here(self) -> Sequence[str]:
        # The early log: what NGINX writes before it has read its configuration.
        return "-p", str(self.root), "-c", str(self.config), "-e", str(self.root / "error.log")

    def _write_config(self) -> None:
        servers = "\n".join(
            SERVER.format(port=self.port, name=name, cert=cert, key=key, more=self._more)
            for name, cert, key in self._sites
        )
        user = "user root;\n" if os.geteuid() == 0 else ""  # else its workers could not reach a private directory
        self.config.write_text(CONFIG.format(user=user, root=self.root, servers=servers))

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return (self.root / "nginx.pid").exists()

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            # Workers are in the master's session: killed alone, it would leave them serving.
            os.killpg(self._process.pid, how) if how is signal.SIGKILL else self._process.send_signal(how)
        self._process.wait(PATIENCE_SECONDS)
        self._process = None


def _program() -> str:
    """Find NGINX; skip the test where it is missing, but not in CI."""
    program = shutil.which("nginx", path=ENVIRONMENT["PATH"])
    if program is None and os.environ.get("CI") == "true":
        pytest.fail("nginx is not installed")
    return program or pytest.skip("nginx is not installed")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
