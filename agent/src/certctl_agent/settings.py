"""Everything the agent is told, read once: flags, then ``CERTCTL_*``, then what enrolment and the server left."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from certctl_core.errors import MisconfiguredError

from certctl_agent import durations, identity
from certctl_agent.logs import LEVELS

SYSTEM_DATA = Path("/var/lib/certctl")
LOCAL_SERVER = "http://127.0.0.1:8080"
BOOLEANS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """How the proof of a deployment looks at what is served."""

    enabled: bool = True
    timeout: timedelta = timedelta(seconds=10)
    delay: timedelta = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What a server that runs on this machine left in ``client.toml``. Its key is the command line's, never ours."""

    url: str = ""
    ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the daemon runs by."""

    server_url: str
    ca_file: Path | None
    agent_id: str
    api_key: str = field(repr=False)
    name: str
    state_dir: Path
    key_dir: Path
    config: Path
    discovery_directories: tuple[Path, ...]
    log_level: str
    log_format: str
    verify: VerifySettings


class Source:
    """Flags and environment behind one question; every fault is told with the variable's name."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> None:
        self._environ = environ
        self._flags = flags

    def text(self, variable: str, default: str = "") -> str:
        """Return the flag, else the variable, else ``default``."""
        return self._flags.get(variable) or self._environ.get(variable) or default

    def secret(self, variable: str) -> str:
        """Return the secret, from the file that ``<variable>_FILE`` names if it is not there itself."""
        if found := self.text(variable):
            return found
        if not (file := self._environ.get(f"{variable}_FILE")):
            return ""
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as exc:
            raise MisconfiguredError(f"{variable}_FILE: {file} cannot be read: {exc}") from exc

    def parsed(self, variable: str, parse: Callable[[str], T], default: T) -> T:
        """Return what ``parse`` makes of the text; raise MisconfiguredError, naming ``variable``, if it cannot."""
        if not (text := self.text(variable)):
            return default
        try:
            return parse(text.strip())
        except ValueError as exc:
            raise MisconfiguredError(f"{variable}: {exc}") from exc


def read(environ: Mapping[str, str], flags: Mapping[str, str | None]) -> Settings:
    """Return the settings of the daemon; ``flags`` are keyed by the variable that they stand before.

    Raises:
        MisconfiguredError: something is missing, does not parse, or would send the key in the clear.
    """
    source = Source(environ, flags)
    state_dir = state_directory(source)
    enrolled = identity.load(state_dir)
    agent_id = source.text("CERTCTL_AGENT_ID", enrolled.id if enrolled else "")
    api_key = source.secret("CERTCTL_API_KEY") or (enrolled.api_key if enrolled else "")
    if not agent_id or not api_key:
        raise MisconfiguredError(
            f"this agent has no id and key: run `certctl-agent enroll` (it writes {identity.path(state_dir)}),"
            " or set CERTCTL_AGENT_ID and CERTCTL_API_KEY"
        )
    client = read_client(state_directory(Source(environ, {})))
    ca_file = source.text("CERTCTL_SERVER_CA_FILE", (enrolled and enrolled.ca_file) or client.ca_file)
    return Settings(
        server_url=server_url(source, client, enrolled),
        ca_file=Path(ca_file) if ca_file else None,
        agent_id=agent_id,
        api_key=api_key,
        name=source.text("CERTCTL_AGENT_NAME", "certctl-agent"),
        state_dir=state_dir,
        key_dir=Path(source.text("CERTCTL_KEY_DIR", str(state_dir / "keys"))).absolute(),
        config=Path(source.text("config", (enrolled and enrolled.config) or str(state_dir / "agent.toml"))).absolute(),
        discovery_directories=source.parsed("CERTCTL_DISCOVERY_DIRS", _paths, ()),
        log_level=source.parsed("CERTCTL_LOG_LEVEL", _one_of(LEVELS), "info"),
        log_format=source.parsed("CERTCTL_LOG_FORMAT", _one_of({"json": 0, "text": 0}), "json"),
        verify=VerifySettings(
            enabled=source.parsed("CERTCTL_VERIFY_DEPLOYMENT", boolean, default=True),
            timeout=source.parsed("CERTCTL_VERIFY_TIMEOUT", durations.parse, timedelta(seconds=10)),
            delay=source.parsed("CERTCTL_VERIFY_DELAY", durations.parse, timedelta(seconds=2)),
        ),
    )


def state_directory(source: Source) -> Path:
    """Where keys, identity and ``agent.toml`` live unless told otherwise: beside a local server's own data."""
    if given := source.text("state_dir") or source.text("CERTCTL_DATA_DIR"):
        return Path(given).absolute()
    if os.access(SYSTEM_DATA if SYSTEM_DATA.exists() else SYSTEM_DATA.parent, os.W_OK):
        return SYSTEM_DATA
    return Path(source.text("XDG_DATA_HOME") or Path.home() / ".local/share") / "certctl"


def read_client(data_dir: Path) -> Client:
    """Return what ``client.toml`` says; nothing if it is not there or not ours to read."""
    try:
        found = tomllib.loads((data_dir / "client.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Client()
    return Client(url=str(found.get("url", "")), ca_file=str(found.get("ca_file", "")))


def server_url(source: Source, client: Client, enrolled: identity.Identity | None = None) -> str:
    """Return where the server is, refusing to speak plain HTTP to another machine.

    Raises:
        MisconfiguredError: the address is no http or https URL, or a plain one off loopback.
    """
    url = source.text("CERTCTL_SERVER_URL", (enrolled and enrolled.server) or client.url or LOCAL_SERVER).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise MisconfiguredError(f"CERTCTL_SERVER_URL: {url!r} is not an address like https://certctl.example:8443")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise MisconfiguredError(f"{url} would send this agent's key unencrypted over the network: use https")
    return url


def boolean(text: str) -> bool:
    """Return what ``text`` says; raise ValueError if it is neither true nor false."""
    if text.lower() not in BOOLEANS:
        raise ValueError(f"{text!r} is neither true nor false")
    return BOOLEANS[text.lower()]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(each.strip()).absolute() for each in text.split(",") if each.strip())


def _one_of(choices: Mapping[str, object]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text.lower()

    return choose
