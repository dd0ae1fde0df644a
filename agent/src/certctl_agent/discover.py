"""Report the certificates that lie on this machine, so that none is forgotten."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from certctl_core import config
from certctl_core.errors import ConnectorError, MisconfiguredError
from certctl_core.plugins import Plugins
from certctl_core.run import Allowed, Egress
from certctl_core.scanner import Finding, ScanRequest
from certctl_core.x509 import CertificateFacts, read_certificate

from certctl_agent.api import AgentApi
from certctl_agent.host import AgentHost, FileStore, JobRun, now
from certctl_agent.reports import insist

log = logging.getLogger(__name__)

KIND = "Filesystem"
REPORT_BYTES = 128 * 1024
"""Well below what a server takes in one body, and little memory while it is put together."""
ERRORS = 50
LONGEST = timedelta(hours=1)


async def discover(
    directories: Sequence[Path], *, api: AgentApi, plugins: Plugins, egress: Egress, state_dir: Path
) -> None:
    """Scan ``directories`` and report what is there, in as many reports as it takes; nothing found is no report.

    Raises:
        TransientError, Refused: a report was not taken.
    """
    started = time.monotonic()
    scan = _Scan(list(map(str, directories)))
    host = AgentHost(_store(state_dir), egress, Allowed())
    async with aclosing(_findings(directories, plugins, host, scan)) as findings:
        async for finding in findings:
            if entry := scan.entry(finding):
                scan.add(entry)
            if scan.bytes >= REPORT_BYTES:
                await _report(scan, api, started)
    if scan.certificates or scan.errors:
        await _report(scan, api, started)


class _Scan:
    """What was found and not yet reported."""

    def __init__(self, directories: list[str]) -> None:
        self.directories = directories
        self.certificates: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.bytes = 0

    def entry(self, finding: Finding) -> dict[str, Any] | None:
        """Return the certificate as the API describes it; None, and an error noted, if it cannot be read."""
        try:
            return _described(read_certificate(finding.cert_pem), finding)
        except ValueError as exc:
            self.fault(f"{finding.source_path}: {exc}")
            return None

    def add(self, entry: dict[str, Any]) -> None:
        """Keep ``entry`` for the next report."""
        self.certificates.append(entry)
        self.bytes += len(json.dumps(entry))

    def fault(self, words: str) -> None:
        """Keep an error, unless there are plenty."""
        if len(self.errors) < ERRORS:
            self.errors.append(words)

    def clear(self) -> None:
        """Start the next report."""
        self.certificates, self.errors, self.bytes = [], [], 0


async def _findings(
    directories: Sequence[Path], plugins: Plugins, host: AgentHost, scan: _Scan
) -> AsyncGenerator[Finding, None]:
    try:
        cls = plugins.pick(plugins.scanners, KIND)
        reading = config.read(cls.Config, {"directories": list(map(str, directories))})
        if reading.config is None:
            raise MisconfiguredError("; ".join(f"{path}: {message}" for path, message in reading.faults))
        scanner = cls(reading.config, host)
        try:
            run = JobRun("discovery", now() + LONGEST, Path(f"{host.store.path}.run"))
            found: AsyncIterator[Finding] = scanner.scan(ScanRequest(), run)
            async for finding in found:
                yield finding
        finally:
            await scanner.aclose()
    except ConnectorError as exc:
        log.warning("discovery failed", extra={"error": str(exc)})
        scan.fault(str(exc))


async def _report(scan: _Scan, api: AgentApi, started: float) -> None:
    duration_ms = int((time.monotonic() - started) * 1000)
    await insist(lambda: api.discovered(scan.directories, scan.certificates, scan.errors, duration_ms))
    log.info("certificates reported", extra={"certificates": len(scan.certificates), "errors": len(scan.errors)})
    scan.clear()


def _store(state_dir: Path) -> FileStore:
    return FileStore(state_dir / "stores" / "discovery.json")


def _described(facts: CertificateFacts, finding: Finding) -> dict[str, Any]:
    return {
        "fingerprint_sha256": facts.fingerprint_sha256,
        "common_name": facts.common_name,
        "sans": [str(san) for san in facts.sans],
        "serial_number": facts.serial_number,
        "issuer_dn": facts.issuer_dn,
        "subject_dn": facts.subject_dn,
        "not_before": _rfc3339(facts.not_before),
        "not_after": _rfc3339(facts.not_after),
        "key_algorithm": facts.key.algorithm,
        "key_size": facts.key.size,
        "is_ca": facts.is_ca,
        "pem_data": facts.pem,
        "source_path": finding.source_path,
        "source_format": finding.source_format,
    }


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
