"""Find certificates in the files of a machine.

Reads only, and yields only certificates, written anew from what was parsed: a key that lies in the same file goes
nowhere. The directories to search are the operator's own choice, so they need not lie in the directories that the
machine's owner lets connectors write to (``host.allowed``).
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import stat
from base64 import b64decode
from binascii import Error as Base64Error
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TypeAlias

from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.errors import MisconfiguredError
from certctl_core.run import Run
from certctl_core.scanner import Finding, Scanner, ScanRequest
from certctl_sdk import run_blocking
from cryptography import x509
from pydantic import Field, field_validator

log = logging.getLogger(__name__)

KEYS = frozenset({".key"})
PEM_OR_DER = frozenset({".crt", ".cer", ".cert", ".pem", ".der"})
# A base64 body holds no dash, so that a file full of BEGIN lines is still read in one pass.
BLOCK = re.compile(rb"-----BEGIN (X509 )?CERTIFICATE-----([^-]+)-----END (?:X509 )?CERTIFICATE-----")
BEGIN, SEQUENCE = b"-----BEGIN", b"\x30"
HEAD_BYTES = 1024
DEPTH = 64
REMEMBERED = 65_536
STEP_SECONDS, STEP_FINDINGS, STUCK_SECONDS = 0.2, 16, 60.0
NAMED = 20
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A name may turn into a pipe between look and open: without O_NONBLOCK that open would wait for ever.
FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

Found: TypeAlias = Generator[Finding | None, None, None]


class FilesystemConfig(ConnectorConfig):
    """Where to look, and how far."""

    directories: tuple[Path, ...] = Field(description="Directories to search, with all below them", min_length=1)
    exclude: tuple[Path, ...] = Field(
        (Path("/proc"), Path("/sys"), Path("/dev")), description="Directories to leave out, with all below them"
    )
    max_file_bytes: int = Field(
        1024 * 1024, description="Files longer than this are skipped", ge=1, le=64 * 1024 * 1024
    )
    follow_symlinks: bool = Field(
        default=False, description="Enter directories through symbolic links; links to files are always looked behind"
    )

    @field_validator("directories", "exclude")
    @classmethod
    def _absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        if any(not path.is_absolute() for path in paths):
            raise ValueError("paths start at the root")
        return tuple(Path(os.path.normpath(path)) for path in paths)


class FilesystemScanner(Scanner):
    """The files below some directories."""

    kind = "Filesystem"
    Config = FilesystemConfig
    config: FilesystemConfig

    async def check(self, run: Run) -> None:
        """Return if every directory can be read."""
        if faults := await self._faults():
            raise MisconfiguredError(f"tried to read the directories: {'; '.join(faults)}")

    async def scan(self, request: ScanRequest, run: Run) -> AsyncIterator[Finding]:
        """Yield each certificate of each file once; MisconfiguredError if not one directory can be read."""
        faults = await self._faults()
        if len(faults) == len(self.config.directories):
            raise MisconfiguredError(f"tried to read the directories: {'; '.join(faults)}")
        walk, done = _Walk(self.config, request.since), False
        try:
            while not done:
                done, batch = await run_blocking(self, walk.step, timeout=STUCK_SECONDS)
                for finding in batch:
                    yield finding
        finally:
            walk.close()
        log.info("files scanned", extra={"directories": len(self.config.directories), **walk.counts})

    async def _faults(self) -> list[str]:
        return await run_blocking(self, lambda: list(_unreadable(self.config.directories)), timeout=STUCK_SECONDS)


def _unreadable(directories: tuple[Path, ...]) -> Iterator[str]:
    for directory in directories:
        try:
            os.close(os.open(directory, DIRECTORY))
        except OSError as exc:
            yield f"{_shown(directory)}: {exc.strerror}"


class _Window:
    """Remembers what was set last and forgets the oldest, so that memory stays bounded."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, bool] = OrderedDict()

    def get(self, key: object) -> bool | None:
        """What was set for ``key``; None if nothing was, or if it is forgotten."""
        return self._kept.get(key)

    def set(self, key: object, *, value: bool = True) -> None:
        """Remember ``value``."""
        self._kept[key] = value
        if len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)


class _Walk:
    """A walk through the directories, taken in steps by whichever thread has the turn."""

    def __init__(self, config: FilesystemConfig, since: datetime | None) -> None:
        self._config = config
        self._exclude = frozenset(config.exclude)
        self._since = since.timestamp() if since else 0.0
        self._directories, self._files, self._parsed = _Window(), _Window(), _Window()
        # Exact, unlike the windows: it is what ends a walk through links that lead in circles.
        self._behind_links: set[tuple[int, int]] = set()
        self._turn = Lock()
        self._closed = False
        self._all = self._roots()
        self.counts: Counter[str] = Counter(files=0, certificates=0, skipped=0, unreadable=0)

    def step(self) -> tuple[bool, list[Finding]]:
        """Walk on for a moment; return whether that was the end, and what was found."""
        batch: list[Finding] = []
        try:
            with self._turn:
                until = monotonic() + STEP_SECONDS
                for finding in self._all:
                    batch += [finding] if finding else []
                    if self._closed or len(batch) >= STEP_FINDINGS or monotonic() >= until:
                        return False, batch
                return True, batch
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """Let go of all directories: now, or when the step that runs in a thread ends."""
        self._closed = True
        if self._turn.acquire(blocking=False):
            try:
                self._all.close()
            finally:
                self._turn.release()

    def _roots(self) -> Found:
        for root in self._config.directories:
            yield from self._directory(root, None, 0)

    def _directory(self, path: Path, parent: int | None, depth: int, *, linked: bool = False) -> Found:
        """What lies in and below a directory; None after each entry, so that a step can end there."""
        try:
            fd = _open(path, parent, DIRECTORY)
        except OSError as exc:
            self._note_unreadable(path, exc)
            return
        try:
            if path in self._exclude or depth > DEPTH or not self._first_visit(os.fstat(fd), linked=linked):
                return
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield from self._entry(path / entry.name, entry, fd, depth, linked=linked)
                    yield None
        except OSError as exc:
            self._note_unreadable(path, exc)
        finally:
            os.close(fd)

    def _first_visit(self, found: os.stat_result, *, linked: bool) -> bool:
        identity = found.st_dev, found.st_ino
        if self._directories.get(identity) or identity in self._behind_links:
            return False
        if linked:
            if len(self._behind_links) >= REMEMBERED:
                return False
            self._behind_links.add(identity)
        self._directories.set(identity)
        return True

    def _entry(self, path: Path, entry: os.DirEntry[str], parent: int, depth: int, *, linked: bool) -> Found:
        try:
            # As far as the directory itself tells, which spares a look at each file.
            link, directory = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
            regular = entry.is_file(follow_symlinks=False)
        except OSError as exc:
            self._note_unreadable(path, exc)
            return
        if link:
            yield from self._behind(path, depth)
        elif directory:
            yield from self._directory(path, parent, depth + 1, linked=linked)
        elif regular:
            yield from self._file(path, parent)

    def _behind(self, link: Path, depth: int) -> Found:
        """What a link leads to, under its real path: of several links any one may come first in the next scan."""
        path = Path(os.path.realpath(link))
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as exc:
            self._note_unreadable(link, exc)
            return
        if not self._exclude.isdisjoint((path, *path.parents)):
            return
        if stat.S_ISREG(mode):
            yield from self._file(path, None)
        elif stat.S_ISDIR(mode) and self._config.follow_symlinks:
            yield from self._directory(path, None, depth + 1, linked=True)

    def _file(self, path: Path, parent: int | None) -> Iterator[Finding]:
        if path.suffix.lower() in KEYS:
            return
        try:
            identity, content = self._content(path, parent)
        except OSError as exc:
            self._note_unreadable(path, exc)
            return
        kind = "DER" if content.startswith(SEQUENCE) else "PEM"
        ders = {sha256(der).digest(): der for der in ([content] if kind == "DER" else _pem_blocks(content))}
        for digest, der in ders.items():
            if self._is_certificate(digest, der):
                self._files.set(identity)
                self.counts["certificates"] += 1
                yield Finding(cert_pem=ssl.DER_cert_to_PEM_cert(der), source_path=_shown(path), source_format=kind)

    def _content(self, path: Path, parent: int | None) -> tuple[tuple[int, int], bytes]:
        """What the file holds; nothing if that can be no certificate, or was seen before."""
        with open(_open(path, parent, FILE | os.O_NOFOLLOW), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            identity = found.st_dev, found.st_ino
            too_long = found.st_size > self._config.max_file_bytes
            self.counts["skipped"] += too_long
            unchanged = max(found.st_mtime, found.st_ctime) < self._since
            if too_long or unchanged or not stat.S_ISREG(found.st_mode) or self._files.get(identity):
                return identity, b""
            self.counts["files"] += 1
            head = file.read(HEAD_BYTES) or b""
            suffix = path.suffix.lower()
            der = suffix in PEM_OR_DER and head.startswith(SEQUENCE)
            text = b"\0" not in head and (suffix or head.startswith(BEGIN))
            return identity, head + (file.read(self._config.max_file_bytes) or b"") if der or text else b""

    def _is_certificate(self, digest: bytes, der: bytes) -> bool:
        known = self._parsed.get(digest)
        if known is None:
            try:
                x509.load_der_x509_certificate(der)
                known = True
            except (ValueError, x509.InvalidVersion):
                known = False
            self._parsed.set(digest, value=known)
        return known

    def _note_unreadable(self, path: Path, exc: OSError) -> None:
        self.counts["unreadable"] += 1
        if self.counts["unreadable"] <= NAMED:
            log.warning("not readable", extra={"path": _shown(path), "reason": exc.strerror})


def _open(path: Path, parent: int | None, flags: int) -> int:
    """Open what lies in the directory ``parent``, unless it is a link; without one ``path``, wherever it leads."""
    return os.open(path, flags) if parent is None else os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=parent)


def _pem_blocks(content: bytes) -> Iterator[bytes]:
    for match in BLOCK.finditer(content):
        with suppress(Base64Error):
            yield b64decode(b"".join(match[2].split()), validate=True)


def _shown(path: Path) -> str:
    """A path as text that can be sent and shown: what a name may hold beyond that is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@hookimpl
def certctl_scanners() -> list[type[Scanner]]:
    """Bring one kind."""
    return [FilesystemScanner]
