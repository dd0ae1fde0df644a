"""Files of the data directory: never half written, never readable by others before they should be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from certctl_core.errors import MisconfiguredError

OURS = frozenset(
    {
        *("encryption-key", "admin-key", "enrol-token", "client.toml", "server.lock", "server.pem", "server-ca.pem"),
        "audit-head",
        *("agent.json", "agent.toml", "agent-server-ca.pem"),
    }
)
"""What lies in the data directory and is written by certctl alone, the database (``certctl.db``) beside it."""


def is_ours(path: Path) -> bool:
    """Whether ``path``, which lies in the data directory, is called like a file of certctl's own, or a draft of one."""
    return path.name in OURS or path.name.startswith((".", "certctl.db")) or path.suffix in {".db", ".lock"}


def prepare(directory: Path) -> None:
    """Have the data directory, for its owner only.

    Raises:
        MisconfiguredError: it cannot be made or written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)
    except OSError as exc:
        raise MisconfiguredError(
            f"the data directory {directory} cannot be used: {exc.strerror}; CERTCTL_DATA_DIR names another"
        ) from exc


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """Be the only process that holds ``lock``; it ends with the process, however that ends.

    Raises:
        MisconfiguredError: another one does; the message has its number.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            other = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise MisconfiguredError(
                f"another server (process {other}) holds {lock}: stop it, or give this one a CERTCTL_DATA_DIR"
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, text: str, *, mode: int) -> None:
    """Put ``text`` in place of whatever ``path`` holds, durably and all at once."""
    draft = _draft(path, text, mode)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink()
        raise
    _sync(path.parent)


def create(path: Path, text: str, *, mode: int) -> None:
    """Put ``text`` where nothing is yet, durably and all at once; raise FileExistsError if something is."""
    draft = _draft(path, text, mode)
    try:
        os.link(draft, path)
    finally:
        draft.unlink()
    _sync(path.parent)


@contextlib.contextmanager
def draft(path: Path, parts: Sequence[str] = ("",)) -> Iterator[Path]:
    """A new file beside ``path``, for its owner only; what is left of it in the end is removed.

    ``parts`` are the endings of files that may come to lie beside it.

    Raises:
        MisconfiguredError: nothing can be written there.
    """
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except OSError as exc:
        raise MisconfiguredError(f"nothing can be written beside {path}: {exc.strerror}") from exc
    try:
        yield made
    finally:
        for part in parts:
            made.with_name(made.name + part).unlink(missing_ok=True)


def put(draft: Path, path: Path, *, over: bool = False) -> None:
    """Give a finished file beside ``path`` that name, durably; ``over`` whatever has it, else raise FileExistsError."""
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if over:
        draft.replace(path)
    else:
        os.link(draft, path)
        draft.unlink()
    _sync(path.parent)


def holder(lock: Path) -> str:
    """Return the number of the process that holds ``lock``, empty if none does."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
    else:
        return ""
    finally:
        os.close(descriptor)


def _draft(path: Path, text: str, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    return draft


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
