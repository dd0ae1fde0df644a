"""An issuer that takes no time: what it returns was signed beforehand. It comes as a package, as any connector does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.issuer import IssuedCertificate, Issuer, IssueRequest
from certctl_core.names import normalise_sans
from certctl_core.run import Host, Run
from certctl_issuer_local import LocalConfig, LocalIssuer
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from pydantic import Field

METADATA = "Metadata-Version: 2.1\nName: certctl-issuer-instant\nVersion: 1.0\n"
ENTRY_POINT = "[certctl]\nissuer-instant = instant\n"


class InstantConfig(ConnectorConfig):
    """Where the certificates are."""

    path: Path = Field(description="JSON object: the CA's certificate, and certificates by SHA-256 of their CSR")


class InstantIssuer(Issuer):
    """Looks up what it is asked for."""

    kind = "Instant"
    Config = InstantConfig

    def __init__(self, config: InstantConfig, host: Host) -> None:
        super().__init__(config, host)
        self._signed: dict[str, str] = json.loads(config.path.read_text())

    async def issue(self, request: IssueRequest, run: Run) -> IssuedCertificate:
        """Return what was signed for this CSR."""
        cert = self._signed[sha256(request.csr_pem.encode()).hexdigest()]
        return IssuedCertificate(cert_pem=cert, chain_pem=self._signed["ca"], reference=run.key)


@hookimpl
def certctl_issuers() -> list[type[Issuer]]:
    """Bring one kind."""
    return [InstantIssuer]


def install(directory: Path) -> dict[str, str]:
    """Make the package in ``directory``; return the environment in which programs find it."""
    info = directory / "certctl_issuer_instant-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    (directory / "instant.py").write_text(Path(__file__).read_text())
    there = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{directory}:{there}" if there else str(directory)}


async def signed(names: Iterable[str], csrs: Iterable[str]) -> str:
    """Sign a CSR for each name; return what the issuer's file is to hold."""
    ca = LocalIssuer(LocalConfig(), FakeHost())
    certs, chain = {}, ""
    for name, csr in zip(names, csrs, strict=True):
        issued = await ca.issue(IssueRequest(csr_pem=csr, sans=normalise_sans([name])), FakeRun())
        certs[sha256(csr.encode()).hexdigest()], chain = issued.cert_pem, issued.chain_pem
    return json.dumps({"ca": chain, **certs})
