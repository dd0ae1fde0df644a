"""Files that nobody else may read and that a crash leaves old or new, never half written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from certctl_core.errors import MisconfiguredError


def make_directory(path: Path) -> None:
    """Make ``path``, open to us alone, unless it exists and nobody else may write to it.

    Raises:
        MisconfiguredError: it cannot be made, or others could put their files in the place of ours.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as exc:
        raise MisconfiguredError(f"directory {path} cannot be made: {exc.strerror}") from exc
    if found.st_uid != os.geteuid():
        raise MisconfiguredError(f"directory {path} belongs to another user: chown it, or name another")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise MisconfiguredError(f"directory {path} can be written by others: chmod 700 it, or name another")


def write(path: Path, text: str) -> None:
    """Replace ``path`` by a file of mode 0600 holding ``text``, durably once this returns."""
    replace(path, lambda new: _create(new, text))


def keep_as(path: Path, copy: Path) -> None:
    """Make ``copy`` another name of what ``path`` is now, in place of what it was; nothing if ``path`` is not there."""
    if path.exists():
        replace(copy, lambda new: os.link(path, new))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` produce a file under a name of its own, then put it in the place of ``path``."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        make(new)
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)
    _sync(path.parent)


def read(path: Path) -> str | None:
    """Return what ``path`` holds, None if there is no such file; a link in its place is not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, encoding="utf-8") as file:
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, empty if there is no such file.

    Raises:
        MisconfiguredError: it holds something else.
    """
    try:
        found = json.loads(read(path) or "{}")
    except ValueError as exc:
        raise MisconfiguredError(f"{path} cannot be read as JSON") from exc
    if not isinstance(found, dict):
        raise MisconfiguredError(f"{path} does not hold a JSON object")
    return found


def remove(*paths: Path) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)
    for directory in {path.parent for path in paths}:
        _sync(directory)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process that holds ``path``; whatever ends the process lets go of it.

    Raises:
        MisconfiguredError: another one does.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, path)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        where = path.parent
        raise MisconfiguredError(f"another agent runs with {where}: stop it, or name another --state-dir") from exc


def sweep(directory: Path) -> None:
    """Remove what writers that died left in ``directory``."""
    for left in directory.glob(".*.????????????????"):
        left.unlink(missing_ok=True)


def _create(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        file.write(text)
        file.flush()
        os.fsync(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
