"""Look for certificates in files: PEM with any number of them, DER with one. Keys are passed over, never read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from certctl_core.x509 import CertificateFacts, read_certificate

LARGEST_BYTES = 64 * 1024 * 1024
BLOCK = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----.*?-----END (?:X509 )?CERTIFICATE-----", re.DOTALL)


class Outcome(StrEnum):
    """What became of a certificate, or of a file without one."""

    FOUND = "found"
    """Nothing yet."""
    IMPORTED = "imported"
    KNOWN = "known"
    """The server has it."""
    EXPIRED = "expired"
    """Left out: there is nothing to renew it for."""
    CA = "CA certificate"
    """Left out: it is no server's. One with names is, as what ``openssl req -x509`` makes for a server."""
    NONE = "not a certificate"
    BROKEN = "unreadable"
    REFUSED = "refused"
    """By the server."""
    UNSURE = "unsure"
    """The server did not answer: it may have it. Called again, it is known or imported."""
    LEFT = "not tried"


FAILED = frozenset({Outcome.BROKEN, Outcome.REFUSED, Outcome.UNSURE, Outcome.LEFT, Outcome.FOUND})
"""What is not as it was asked for."""


@dataclass(slots=True)
class Entry:
    """One certificate of a file, or a file without one."""

    file: str
    outcome: Outcome
    facts: CertificateFacts | None = None
    id: str = ""
    """At the server."""
    detail: str = ""
    asked_for: bool = True
    """The file was named, not found in a directory."""

    @property
    def failed(self) -> bool:
        """Whether somebody has to look at it."""
        return self.outcome in FAILED or (self.outcome is Outcome.NONE and self.asked_for)

    @property
    def name(self) -> str:
        """What the certificate calls itself."""
        if self.facts is None:
            return ""
        return self.facts.common_name or next(map(str, self.facts.sans), self.facts.subject_dn)


def look(paths: Iterable[Path], now: datetime, *, expired: bool) -> Iterator[Entry]:
    """Yield every certificate in the files, and in those below directories, each once; and what else is in the way.

    Args:
        paths: Files and directories; symbolic links in a directory are not followed into others.
        now: The present.
        expired: Those that have ended are wanted as well.
    """
    seen: dict[str, str] = {}
    for path in paths:
        for file in _below(path):
            for entry in _in_file(file, named=file == path):
                if entry.facts is None or entry.outcome is not Outcome.FOUND:
                    yield entry
                    continue
                first = seen.setdefault(entry.facts.fingerprint_sha256, entry.file)
                if first != entry.file:
                    entry.outcome, entry.detail = Outcome.KNOWN, f"the same as in {first}"
                elif entry.facts.is_ca and not entry.facts.sans:
                    entry.outcome = Outcome.CA
                elif entry.facts.not_after < now and not expired:
                    entry.outcome, entry.detail = Outcome.EXPIRED, f"since {entry.facts.not_after:%Y-%m-%d}"
                yield entry


def _below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))


def _in_file(file: Path, *, named: bool) -> Iterator[Entry]:
    try:
        raw = b"" if not file.is_file() else _bytes(file)
    except OSError as exc:
        yield Entry(str(file), Outcome.BROKEN, detail=exc.strerror or str(exc), asked_for=named)
        return
    if not file.is_file():
        yield Entry(str(file), Outcome.BROKEN, detail="no file", asked_for=named)
    elif raw is None:
        yield Entry(str(file), Outcome.BROKEN, detail=f"larger than {LARGEST_BYTES} bytes", asked_for=named)
    elif blocks := BLOCK.findall(raw):
        repeated = set[bytes]()
        for block in blocks:
            if block not in repeated:
                yield _entry(file, block, Outcome.BROKEN, named=named)
            repeated.add(block)
    else:
        # DER begins so (SEQUENCE), and so does text with a zero: only what can be read is taken for one.
        yield _entry(file, raw, Outcome.NONE, named=named)


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.stat().st_size <= LARGEST_BYTES else None


def _entry(file: Path, raw: bytes, otherwise: Outcome, *, named: bool) -> Entry:
    try:
        facts = read_certificate(raw)
    except ValueError as exc:
        detail = str(exc) if otherwise is Outcome.BROKEN else ""
        return Entry(str(file), otherwise, detail=detail, asked_for=named)
    return Entry(str(file), Outcome.FOUND, facts, asked_for=named)
