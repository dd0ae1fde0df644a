"""Issue certificates from the example signing service.

``POST /orders`` signs a CSR at once and is told the job's key, so that it signs once however often it is asked:
there is nothing to save before it. ``POST /orders/{id}/revocation`` takes a certificate back.
"""

from __future__ import annotations

from urllib.parse import quote

from certctl_core import hookimpl
from certctl_core.config import ConnectorConfig
from certctl_core.errors import RejectedError
from certctl_core.issuer import IssuedCertificate, Issuer, IssueRequest, RevokeRequest
from certctl_core.run import Host, Run
from certctl_sdk.http import Client
from pydantic import Field, HttpUrl, SecretStr


class ExampleConfig(ConnectorConfig):
    """Where the service is, and who we are to it."""

    url: HttpUrl = Field(description="Address of the signing service")
    token: SecretStr = Field(description="Token that may order and revoke")
    ca_pem: str | None = Field(None, description="PEM of the roots that vouch for the service, if not the system's")


class ExampleIssuer(Issuer):
    """One account at the service."""

    kind = "Example"
    Config = ExampleConfig
    config: ExampleConfig

    def __init__(self, config: ExampleConfig, host: Host) -> None:
        super().__init__(config, host)
        self._service = Client(
            "The signing service",
            host,
            str(config.url),
            headers={"Authorization": f"Bearer {config.token.get_secret_value()}"},
            explain=lambda body: body["error"],
            verify=config.ca_pem,
        )

    async def aclose(self) -> None:
        await self._service.aclose()

    async def issue(self, request: IssueRequest, run: Run) -> IssuedCertificate:
        order = {"csr": request.csr_pem}
        if request.lifetime:
            order["lifetime_seconds"] = str(int(request.lifetime.total_seconds()))
        match await self._service.post("/orders", order, headers={"Idempotency-Key": run.key}):
            case {"id": str(id), "certificate": str(cert), "chain": str(chain)}:
                return IssuedCertificate(cert_pem=cert, chain_pem=chain, reference=id)
        raise RejectedError("The signing service was asked for a certificate and answered without one")

    async def revoke(self, request: RevokeRequest, run: Run) -> None:
        await self._service.post(f"/orders/{quote(request.reference, safe='')}/revocation", {"reason": request.reason})

    async def check(self, run: Run) -> None:
        await self._service.get("/account")


@hookimpl
def certctl_issuers() -> list[type[Issuer]]:
    """Bring one kind."""
    return [ExampleIssuer]
