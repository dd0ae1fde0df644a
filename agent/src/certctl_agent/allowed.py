"""``agent.toml``: what the owner of this machine lets the server's configuration touch."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certctl_core.errors import MisconfiguredError
from certctl_core.run import Allowed

HEAD = """\
# What certctl may touch on this machine. A server, even one that was broken into, gets no further than this file.
# The directories that targets may write to, those below them included:
"""


@dataclass(frozen=True, slots=True)
class AgentToml:
    """The file, read and checked."""

    allowed: Allowed = field(default_factory=Allowed)
    discovery_directories: tuple[Path, ...] = ()


def read(path: Path) -> AgentToml:
    """Return what ``path`` allows; nothing is allowed if there is no such file.

    Raises:
        MisconfiguredError: the file says something that cannot be meant, or others than root and we can change it.
    """
    try:
        raw = tomllib.loads(_trusted_text(path))
    except FileNotFoundError:
        return AgentToml()
    except (OSError, ValueError) as exc:
        raise MisconfiguredError(f"{path} cannot be read: {exc}") from exc
    commands, discovery = raw.pop("commands", {}), raw.pop("discovery", {})
    directories = raw.pop("directories", [])
    scanned = discovery.pop("directories", []) if isinstance(discovery, dict) else None
    if raw or discovery:
        raise MisconfiguredError(f"{path} has unknown keys: {', '.join([*raw, *discovery])}")
    if not isinstance(commands, dict):
        raise MisconfiguredError(f'{path}: [commands] holds lines like  reload = ["nginx", "-s", "reload"]')
    allowed = Allowed(
        directories=_directories(path, directories),
        commands={name: _command(path, name, arguments) for name, arguments in commands.items()},
    )
    return AgentToml(allowed, _directories(path, scanned))


def _trusted_text(path: Path) -> str:
    """What is read is what was looked at: both go through the same descriptors, whatever is renamed meanwhile."""
    # Something that is no file, a pipe for instance, must not keep us waiting for whoever opens its other end.
    with _opened(path.parent, os.O_DIRECTORY) as directory, _opened(path.name, os.O_NONBLOCK, directory) as file:
        for descriptor, place in ((directory, path.parent), (file, path)):
            found = os.fstat(descriptor)
            if found.st_uid not in {0, os.geteuid()}:
                raise MisconfiguredError(f"{place} belongs neither to root nor to this user: chown it")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise MisconfiguredError(f"{place} can be written by others than its owner: chmod go-w it")
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise MisconfiguredError(f"{path} is no plain file")
        with open(file, encoding="utf-8", closefd=False) as text:
            return text.read()


@contextlib.contextmanager
def _opened(path: Path | str, flags: int, directory: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _directories(file: Path, found: Any) -> tuple[Path, ...]:
    if not _texts(found) or not all(Path(each).is_absolute() and ".." not in Path(each).parts for each in found):
        raise MisconfiguredError(f'{file}: directories is a list of absolute paths, like ["/etc/nginx/ssl"]')
    return tuple(Path(each) for each in found)


def _command(file: Path, name: str, arguments: Any) -> tuple[str, ...]:
    if not arguments or not _texts(arguments):
        raise MisconfiguredError(f'{file}: command {name} is a list of arguments, like ["nginx", "-s", "reload"]')
    return tuple(arguments)


def _texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def write_text(directories: Iterable[Path], commands: Mapping[str, Sequence[str]], discovery: Iterable[Path]) -> str:
    """Return the file that ``read`` reads back, with words for whoever edits it."""
    # A JSON string is a TOML string as well.
    lines = "".join(f"{json.dumps(name)} = {json.dumps(list(arguments))}\n" for name, arguments in commands.items())
    return (
        f"{HEAD}directories = {_list(directories)}\n\n"
        f"# The commands that targets may run, as lists of arguments; there is no shell:\n[commands]\n{lines}\n"
        f"# Where to look for certificates that nobody told us about:\n[discovery]\ndirectories = {_list(discovery)}\n"
    )


def _list(paths: Iterable[Path]) -> str:
    return json.dumps([str(path) for path in paths])
