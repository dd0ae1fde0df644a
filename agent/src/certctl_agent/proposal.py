"""What a fresh ``agent.toml`` proposes: the servers found on this machine, their directories and commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from certctl_sdk.commands import ENVIRONMENT

SYSTEMD = Path("/run/systemd/system")
SECONDS = 10
TOO_WIDE = 3
"""A directory with fewer parts than this, like /etc, is never proposed."""
# Not /etc/ssl/certs: that is where the system keeps the roots it trusts, hundreds of them.
SCANNED = ("/etc/letsencrypt/live", "/etc/pki/tls/certs")
CERTIFICATE_LINE = re.compile(r"^\s*ssl_certificate(?:_key)?\s+\"?([^;\"$]+)\"?\s*;", re.MULTILINE)
CONFIGURATION_FILE = re.compile(r"^# configuration file (.+):$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server that may be here: how to tell, and what is usual for it."""

    name: str
    binary: str
    directories: tuple[str, ...]
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()


SERVICES = (
    Service(
        name="nginx",
        binary="nginx",
        directories=("/etc/nginx/ssl", "/etc/nginx/certs"),
        commands=(("nginx-check", ("nginx", "-t")), ("nginx-reload", ("nginx", "-s", "reload"))),
    ),
    Service(
        name="apache2",
        binary="apachectl",
        directories=("/etc/apache2/ssl", "/etc/apache2/certs", "/etc/httpd/ssl", "/etc/httpd/certs"),
        commands=(("apache-check", ("apachectl", "configtest")), ("apache-reload", ("apachectl", "graceful"))),
    ),
    Service(
        name="haproxy",
        binary="haproxy",
        directories=("/etc/haproxy/certs", "/etc/haproxy/ssl"),
        commands=(
            ("haproxy-check", ("haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg")),
            ("haproxy-reload", ("systemctl", "reload", "haproxy")),
        ),
    ),
    Service(
        name="postfix",
        binary="postfix",
        directories=("/etc/postfix/ssl", "/etc/postfix/certs"),
        commands=(("postfix-check", ("postfix", "check")), ("postfix-reload", ("postfix", "reload"))),
    ),
    Service(
        name="dovecot",
        binary="dovecot",
        directories=("/etc/dovecot/private", "/etc/dovecot/ssl"),
        commands=(("dovecot-check", ("doveconf", "-n")), ("dovecot-reload", ("doveadm", "reload"))),
    ),
    Service(
        name="caddy",
        binary="caddy",
        directories=("/etc/caddy/certs", "/etc/caddy/ssl"),
        commands=(
            ("caddy-check", ("caddy", "validate", "--config", "/etc/caddy/Caddyfile")),
            ("caddy-reload", ("caddy", "reload", "--config", "/etc/caddy/Caddyfile")),
        ),
    ),
    Service(name="traefik", binary="traefik", directories=("/etc/traefik/certs",)),
    Service(name="envoy", binary="envoy", directories=("/etc/envoy/certs",)),
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What could be allowed, for the owner of the machine to read and to trim."""

    services: tuple[str, ...]
    directories: tuple[Path, ...]
    commands: dict[str, tuple[str, ...]]
    discovery: tuple[Path, ...]


def propose(
    find: Callable[[str], str | None] | None = None, ask: Callable[[tuple[str, ...]], str] | None = None
) -> Proposal:
    """Return what suits this machine. ``find`` locates programs, ``ask`` runs one and returns what it prints."""
    find, ask = find or _find, ask or _ask
    here = [service for service in SERVICES if find(service.binary)]
    directories = [path for service in here for path in _directories(service, ask)]
    commands = {name: arguments for service in here for name, arguments in service.commands}
    if SYSTEMD.is_dir():
        for service in here:
            if ask(("systemctl", "is-active", service.name)).strip() == "active":
                commands[f"{service.name}-systemctl-reload"] = ("systemctl", "reload", service.name)
    return Proposal(
        services=tuple(service.name for service in here),
        directories=tuple(dict.fromkeys(directories)),
        commands=commands,
        discovery=tuple(path for path in [*map(Path, SCANNED), *dict.fromkeys(directories)] if path.is_dir()),
    )


def _directories(service: Service, ask: Callable[[tuple[str, ...]], str]) -> list[Path]:
    """Those that are there, else the one that is usual."""
    usual = [Path(each) for each in service.directories]
    used = nginx_directories(ask(("nginx", "-T"))) if service.name == "nginx" else []
    return [path for path in usual if path.is_dir()] + used or usual[:1]


def nginx_directories(configuration: str) -> list[Path]:
    """Return the directories of the certificates that ``nginx -T`` prints, as far as they are narrow enough."""
    main = CONFIGURATION_FILE.search(configuration)
    prefix = Path(main[1]).parent if main else Path("/etc/nginx")
    files = (prefix / found[1].strip() for found in CERTIFICATE_LINE.finditer(configuration))
    return [path for path in dict.fromkeys(file.parent for file in files) if _narrow(path) and path.is_dir()]


def _narrow(path: Path) -> bool:
    return len(path.parts) >= TOO_WIDE and ".." not in path.parts


def _find(program: str) -> str | None:
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def _ask(arguments: tuple[str, ...]) -> str:
    try:
        return subprocess.run(  # noqa: S603  # the lists above, no text from outside
            [_find(arguments[0]) or arguments[0], *arguments[1:]],
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            env=ENVIRONMENT,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def make_directories(proposal: Proposal) -> Iterator[str]:
    """Make the directories that are proposed and not there; yield what came of each, in words."""
    for missing in (path for path in proposal.directories if not path.is_dir()):
        try:
            missing.mkdir(mode=0o755)
        except OSError as exc:
            yield f"{missing} could not be made: {exc.strerror}"
        else:
            yield f"{missing} made."
