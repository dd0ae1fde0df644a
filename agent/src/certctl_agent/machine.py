"""What this machine says of itself."""

from __future__ import annotations

import platform
import socket
from datetime import datetime, timedelta
from importlib.metadata import version
from urllib.parse import urlsplit

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def facts(server_url: str) -> dict[str, str]:
    """Return what registration and heartbeats report, in the words that the original's agents use."""
    machine = platform.machine().lower()
    return {
        "version": version("certctl-agent"),
        "hostname": socket.gethostname(),
        "os": platform.system().lower(),
        "architecture": ARCHITECTURES.get(machine, machine),
        "ip_address": _own_address(server_url),
    }


def clock_offset(server_time: object, ours: datetime) -> timedelta:
    """Return how far our clock is ahead of what a server said; nothing if it said nothing readable."""
    try:
        return ours - datetime.fromisoformat(str(server_time))
    except (ValueError, TypeError):
        return timedelta()


def _own_address(server_url: str) -> str:
    """The address from which we reach the server; connecting a UDP socket sends nothing."""
    parts = urlsplit(server_url)
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM
        )
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
