"""Directories held open, and files in them that are private before they have content and durable once named.

Every path is walked by descriptor, and no link is followed below the directory that was allowed, so
nobody who may write near a target can lead us elsewhere. Errors carry the whole path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certctl_core.errors import DeploymentError, MisconfiguredError

WORDS = {
    errno.ENOENT: "{} is not there",
    errno.EROFS: "{} cannot be changed: its file system is mounted read-only",
    errno.ENOSPC: "{} cannot be written: no space is left on its disk",
    errno.EDQUOT: "{} cannot be written: the quota of its disk is used up",
    errno.EACCES: "this program may not open or change {}",
    errno.EPERM: "this program may not change {}, or it is marked immutable",
    errno.ENOTDIR: "{} is a link or a file, where a directory must be",
    errno.ELOOP: "{} is a link, where a file must be",
}


@contextlib.contextmanager
def as_deployment_error(step: str) -> Iterator[None]:
    """Turn an OSError within into a DeploymentError of ``step`` that names the path and the cause in plain words."""
    try:
        yield
    except OSError as exc:
        words = WORDS.get(exc.errno or 0, "{}: " + (exc.strerror or "input or output error").lower())
        raise DeploymentError(step, words.format(exc.filename)) from exc


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in an OSError which path it was about; by descriptor the system knows a part of it or nothing."""
    try:
        yield
    except OSError as exc:
        exc.filename = str(path)
        raise


@dataclass(frozen=True, slots=True)
class Held:
    """What a file holds, and who may open it. -1 as ``uid`` or ``gid``: whoever makes it."""

    data: bytes = field(repr=False)
    mode: int
    uid: int = -1
    gid: int = -1


class Directory:
    """A directory held open, so that it stays the one that was checked whatever its path comes to mean."""

    def __init__(self, path: Path, above: Directory | None = None) -> None:
        """Open ``path``; with ``above``, the entry of that name in it, and not through a link.

        Raises:
            OSError: it cannot be opened or is no directory.
        """
        self.path = path
        with _naming(path):
            if above is None:
                self.fd = os.open(path, os.O_DIRECTORY)
            else:
                self.fd = os.open(path.name, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above.fd)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def inside(self, name: str) -> Directory:
        """Open the directory ``name`` in this one."""
        return Directory(self.path / name, self)

    def names(self) -> list[str]:
        """Return the names in it, in no order."""
        return os.listdir(self.fd)

    def stat(self, name: str) -> os.stat_result | None:
        """Return what ``name`` is, itself and not what it may link to; None if it is not there."""
        with _naming(self.path / name):
            try:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def read(self, name: str) -> Held | None:
        """Return the plain file ``name``; None if it is not there."""
        with _naming(self.path / name):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                found = os.fstat(fd)
                return Held(file.read(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)

    def write(self, name: str, held: Held) -> None:
        """Make a new file. Nobody else can open it before it has its owner and mode, and only then comes the content.

        Raises:
            OSError: also if there is a file of that name.
        """
        with _naming(self.path / name):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.fd)
            with os.fdopen(fd, "wb") as file:
                own = os.fstat(fd)
                if held.uid not in (-1, own.st_uid) or held.gid not in (-1, own.st_gid):
                    os.fchown(fd, held.uid, held.gid)
                os.fchmod(fd, held.mode)
                file.write(held.data)
                file.flush()
                os.fsync(fd)

    def link_to(self, name: str) -> str | None:
        """Return where the link ``name`` leads; None if it is not there."""
        with _naming(self.path / name):
            try:
                return os.readlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                return None

    def symlink(self, name: str, to: str) -> None:
        """Make a new symbolic link."""
        with _naming(self.path / name):
            os.symlink(to, name, dir_fd=self.fd)

    def restore(self, name: str, of: Directory, entry: str) -> None:
        """Make ``name`` the very file ``entry`` of another directory, which takes no space, or a copy of it."""
        try:
            os.link(entry, name, src_dir_fd=of.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError:  # another file system, or one without hard links
            if held := of.read(entry):
                self.write(name, held)

    def rename(self, new: str, name: str) -> None:
        """Let ``new`` take the place of ``name``. Durable after ``sync``."""
        with _naming(self.path / name):
            os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Yield a name to make the new ``name`` under; it then takes the place of the old one, durably."""
        new = unfinished(name) + secrets.token_hex(8)
        yield new
        self.rename(new, name)
        self.sync()

    def remove(self, name: str) -> None:
        """Remove the file or link ``name``; nothing if it is not there. Durable after ``sync``."""
        with _naming(self.path / name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def make(self, name: str, mode: int) -> Directory:
        """Make the directory ``name`` with what our umask leaves of ``mode``, unless it is there, and open it."""
        with _naming(self.path / name), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=self.fd)
        return self.inside(name)

    def permit(self, mode: int) -> None:
        """Set who may look into it, whatever our umask is."""
        with _naming(self.path):
            if stat.S_IMODE(os.fstat(self.fd).st_mode) != mode:
                os.fchmod(self.fd, mode)

    def clear(self, name: str) -> None:
        """Remove the directory ``name`` with all that is in it."""
        with _naming(self.path / name):
            shutil.rmtree(name, dir_fd=self.fd)

    def sweep(self, name: str) -> None:
        """Remove what ``replacing`` of ``name`` left when it was cut short."""
        for left in self.names():
            if left.startswith(unfinished(name)):
                self.remove(left)

    def sync(self) -> None:
        """Make every name in it durable."""
        with _naming(self.path):
            os.fsync(self.fd)


def unfinished(name: str) -> str:
    """Return how the names of what is to become ``name`` begin."""
    return f".{name}.certctl-"


def open_allowed(path: Path, allowed: Sequence[Path]) -> Directory:
    """Open the directory ``path``, which must lie in one of ``allowed``, without following links below that.

    Raises:
        MisconfiguredError: it does not.
        OSError: it cannot be opened.
    """
    roots = [root for root in allowed if path.is_relative_to(root)]
    if not roots or ".." in path.parts:
        raise MisconfiguredError(
            f"agent.toml of this machine allows no files in {path}: its owner may add that to directories"
        )
    root = max(roots, key=lambda root: len(root.parts))
    found = Directory(root)
    for part in path.relative_to(root).parts:
        with contextlib.closing(found):
            found = found.inside(part)
    return found
