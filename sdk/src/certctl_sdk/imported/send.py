"""Record certificates at a server, several at once; one that is there already is known, however it got there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from certctl_core.names import SanKind, parse_san
from certctl_core.x509 import CertificateFacts

from certctl_sdk.api import certificates
from certctl_sdk.api.bodies import NewCertificate
from certctl_sdk.api.objects import ManagedCertificate
from certctl_sdk.client import MOST_PER_PAGE, ApiError, AsyncClient, ClientError
from certctl_sdk.imported.files import Entry, Outcome

NAMES_AT_ONCE = 40
"""In one question: they stand in its URL."""
AT_ONCE = 8
CONFLICT = 409
ID_DIGITS = 40


async def record(
    client: AsyncClient, entries: Iterable[Entry], more: Mapping[str, Any], tell: Callable[[], None]
) -> None:
    """Record those that were found, and write into each what became of it; ``more`` is said of all of them.

    Raises:
        ClientError: nothing was tried, since the server could not even be asked what it has.
    """
    wanted = [each for each in entries if each.outcome is Outcome.FOUND]
    for each in wanted:
        each.outcome = Outcome.LEFT
    recording = _Recording(client, await _known(client, wanted), more, tell)
    await asyncio.gather(*map(recording.record, wanted))


@dataclass(slots=True)
class _Recording:
    """What all of them have in common."""

    client: AsyncClient
    known: Mapping[str, str]
    more: Mapping[str, Any]
    tell: Callable[[], None]
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    gone: bool = False
    """The server did not answer once: it is not asked again for each."""

    async def record(self, entry: Entry) -> None:
        """Record one."""
        facts = cast("CertificateFacts", entry.facts)
        there = [self.known[mark] for mark in _marks(facts) if mark in self.known]
        if there:
            entry.outcome, entry.id = Outcome.KNOWN, there[0]
        else:
            async with self.gate:
                if not self.gone:
                    await self._send(entry, facts)
        self.tell()

    async def _send(self, entry: Entry, facts: CertificateFacts) -> None:
        # The id follows from the certificate, so that one cannot be recorded twice.
        id = f"mc-{facts.fingerprint_sha256[:ID_DIGITS]}"
        entry.outcome = Outcome.UNSURE  # should this be cut off
        try:
            await self.client.send(certificates.create(cast("NewCertificate", {**self.more, **_body(facts), "id": id})))
        except ApiError as exc:
            known = exc.status == CONFLICT
            entry.outcome, entry.detail = (Outcome.KNOWN, "") if known else (Outcome.REFUSED, _words(exc))
            entry.id = id if known else ""
        except ClientError as exc:
            entry.detail, self.gone = str(exc), True
        else:
            entry.outcome, entry.id = Outcome.IMPORTED, id
            entry.detail = "names of kinds that are not known here are left out" if facts.has_other_names else ""


def _body(facts: CertificateFacts) -> dict[str, Any]:
    return {
        # People's names and the like are no names that can be ordered, and none is needed beside others.
        "common_name": facts.common_name if _is_host(facts.common_name) or not facts.sans else "",
        "sans": [str(name) for name in facts.sans],
        "status": "Active",
        "serial_number": facts.serial_number,
        "expires_at": facts.not_after.isoformat(),
    }


def _is_host(text: str) -> bool:
    try:
        return parse_san(text).kind in {SanKind.DNS, SanKind.IP}
    except ValueError:
        return False


def _words(exc: ApiError) -> str:
    try:
        said = json.loads(exc.body)
        faults = [f"{each['field']}: {each['message']}" for each in said.get("details", ())]
        return "; ".join(faults) or str(said["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return str(exc)


async def _known(client: AsyncClient, wanted: Iterable[Entry]) -> dict[str, str]:
    """The ids of what the server has under the names of these, by what tells certificates apart."""
    facts = [each.facts for each in wanted if each.facts]
    names = sorted({name for each in facts for name in (each.common_name, *map(str, each.sans)) if _is_host(name)})
    parts = [names[start : start + NAMES_AT_ONCE] for start in range(0, len(names), NAMES_AT_ONCE)]
    rows = [row for part in await asyncio.gather(*(_rows(client, part) for part in parts)) for row in part]
    return {mark: row["id"] for row in rows for mark in _row_marks(row)}


async def _rows(client: AsyncClient, names: list[str]) -> list[ManagedCertificate]:
    query = {"common_name": names, "cursor": "", "page_size": MOST_PER_PAGE}
    return [row async for row in client.walk(certificates.list(cast("Any", query)))]


def _marks(facts: CertificateFacts) -> Iterator[str]:
    yield facts.fingerprint_sha256
    yield _mark(facts.serial_number, facts.not_after)


def _row_marks(row: ManagedCertificate) -> Iterator[str]:
    if row.get("fingerprint"):
        yield row["fingerprint"]
    elif row.get("serial_number"):
        yield _mark(row["serial_number"], datetime.fromisoformat(row["expires_at"]))


def _mark(serial: str, end: datetime) -> str:
    return f"{serial.replace(':', '').lower().lstrip('0')} {int(end.timestamp())}"
