"""``client.toml``: where the server of this machine is, left by it for the clients of this machine."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NAME = "client.toml"
"""The file's name in the data directory. Its mode is 0600."""
SYSTEM_DATA = Path("/var/lib/certctl")
"""The data directory of a server that runs as a service."""
DEFAULT_URL = "http://127.0.0.1:8080"
"""Where a server is that nothing was said of."""


@dataclass(frozen=True, slots=True)
class ClientFile:
    """What ``client.toml`` says; empty where it says nothing."""

    url: str = ""
    """The server's address."""
    ca_file: str = ""
    """A PEM file with the roots for its certificate."""
    api_key: str = field(default="", repr=False)
    """An admin key for the command line alone, to be sent to ``url`` only."""


def data_dir(environ: Mapping[str, str]) -> Path:
    """Return where a server of this machine keeps its files: CERTCTL_DATA_DIR, else the system's place, else ours."""
    if given := environ.get("CERTCTL_DATA_DIR"):
        return Path(given).absolute()
    if os.access(SYSTEM_DATA if SYSTEM_DATA.exists() else SYSTEM_DATA.parent, os.W_OK):
        return SYSTEM_DATA
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "certctl"


def read(directory: Path) -> ClientFile:
    """Return what the file in ``directory`` says; nothing if it is not there, not ours to read, or damaged."""
    try:
        found = tomllib.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ClientFile()
    return ClientFile(**{name: str(found.get(name, "")) for name in ("url", "ca_file", "api_key")})


def write(client: ClientFile) -> str:
    """Return the text of the file."""
    values = {"url": client.url, "ca_file": client.ca_file, "api_key": client.api_key}
    # A JSON string without escapes of surrogates is a TOML basic string.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items() if value]
    return "".join(["# Written by the server at each start.\n", *lines])
