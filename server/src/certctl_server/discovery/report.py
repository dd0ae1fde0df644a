"""What an agent says it found, made harmless: every text in it is a stranger's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from certctl_core.x509 import CertificateFacts, normalise_fingerprint, read_certificate, serial_hex

from certctl_server import db

ALGORITHMS = ("RSA", "ECDSA", "Ed25519", "Ed448", "DSA", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87")
FORMATS = ("PEM", "DER", "network")
SPELLINGS = {word.casefold(): word for word in (*ALGORITHMS, *FORMATS)}
NAME, TEXT, PATH_BYTES, SANS = 255, 2048, 1024, 250
KEY_BITS = 1_000_000
HEX = re.compile(r"[0-9a-f]{1,128}")
COLONS = re.compile(r"[:\s]")


class Entry(msgspec.Struct):
    """One certificate as agents describe it, our own and older ones."""

    fingerprint_sha256: str = ""
    common_name: str = ""
    sans: list[str] | None = None
    serial_number: str = ""
    issuer_dn: str = ""
    subject_dn: str = ""
    not_before: str | None = None
    not_after: str | None = None
    key_algorithm: str = ""
    key_size: int = 0
    is_ca: bool = False
    pem_data: str | None = None
    source_path: str = ""
    source_format: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """One certificate at one place, ready to be stored; times as text that both databases take."""

    fingerprint_sha256: str
    common_name: str
    sans: str
    serial_number: str
    issuer_dn: str
    subject_dn: str
    not_before: str | None
    not_after: str | None
    key_algorithm: str
    key_size: int
    is_ca: bool
    pem_data: str
    source_path: str
    source_format: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is unique by, beside its agent."""
        return self.fingerprint_sha256, self.source_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """One report, ready to be stored."""

    directories: list[str]
    found: list[Found]
    errors: int
    """How many places could not be read, or were described in a way that makes no sense."""
    duration_ms: int


def clean(text: str, limit: int) -> str:
    """Return ``text`` without anything that moves a cursor, hides or turns text around, cut to ``limit`` characters."""
    return "".join(c for c in text[: 4 * limit] if c.isprintable())[:limit]


def read_entries(entries: Iterable[Any]) -> tuple[list[Found], int]:
    """Return what can be stored of the ``entries``, each place once, and how many make no sense."""
    found: dict[tuple[str, str], Found] = {}
    unfit = 0
    for raw in entries:
        try:
            entry = _found(msgspec.convert(raw, Entry))
        except ValueError:
            unfit += 1
        else:
            found.setdefault(entry.key, entry)
    return [found[key] for key in sorted(found)], unfit


def _found(entry: Entry) -> Found:
    """Raise ValueError for what is no certificate. What the certificate itself says counts more than the report."""
    path, form = _path(entry.source_path), SPELLINGS.get(entry.source_format.casefold(), "")
    if entry.pem_data:
        return _of_certificate(read_certificate(entry.pem_data), path, form)
    return Found(
        fingerprint_sha256=normalise_fingerprint(entry.fingerprint_sha256),
        common_name=clean(entry.common_name, NAME),
        sans=_sans(entry.sans or ()),
        serial_number=_serial(entry.serial_number),
        issuer_dn=clean(entry.issuer_dn, TEXT),
        subject_dn=clean(entry.subject_dn, TEXT),
        not_before=_moment(entry.not_before),
        not_after=_moment(entry.not_after),
        key_algorithm=SPELLINGS.get(entry.key_algorithm.casefold(), clean(entry.key_algorithm, 32)),
        key_size=max(0, min(entry.key_size, KEY_BITS)),
        is_ca=entry.is_ca,
        pem_data="",
        source_path=path,
        source_format=form,
    )


def _of_certificate(facts: CertificateFacts, path: str, form: str) -> Found:
    return Found(
        fingerprint_sha256=facts.fingerprint_sha256,
        common_name=clean(facts.common_name, NAME),
        sans=_sans(map(str, facts.sans)),
        serial_number=facts.serial_number[:128],
        issuer_dn=clean(facts.issuer_dn, TEXT),
        subject_dn=clean(facts.subject_dn, TEXT),
        not_before=db.text_of(facts.not_before),
        not_after=db.text_of(facts.not_after),
        key_algorithm=clean(facts.key.algorithm, 32),
        key_size=facts.key.size,
        is_ca=facts.is_ca,
        # Written anew: nothing that lay beside the certificate comes along, least of all a key.
        pem_data=facts.pem,
        source_path=path,
        source_format=form,
    )


def _path(text: str) -> str:
    """Cut by bytes, because an index holds it; what was cut off still tells two places apart."""
    shown = clean(text, 4 * PATH_BYTES)
    if len(shown.encode()) <= PATH_BYTES:
        return shown
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return shown.encode()[: PATH_BYTES - len(digest) - 3].decode(errors="ignore") + "…" + digest


def _sans(names: Iterable[str]) -> str:
    return json.dumps([clean(name, NAME) for name in list(names)[:SANS]], ensure_ascii=False)


def _serial(text: str) -> str:
    """Older agents leave leading zeros out."""
    digits = COLONS.sub("", text.lower()[:512]).removeprefix("0x")
    return serial_hex(int(digits, 16))[:128] if HEX.fullmatch(digits) else ""


def _moment(text: str | None) -> str | None:
    """None for what is no time, the zero time of older agents included."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    if moment.tzinfo is None or moment.year <= 1:
        return None
    return db.text_of(moment)
