"""Issue certificates from a private CA whose key is certctl's own, or was handed to it in files."""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64decode, b64encode
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from certctl_core import der, hookimpl, signing
from certctl_core.config import ConnectorConfig
from certctl_core.csr import CsrError, name_in, read_csr
from certctl_core.errors import RejectedError
from certctl_core.issued import CLOCK_SKEW
from certctl_core.issuer import IssuedCertificate, Issuer, IssueRequest, RevokeRequest, StatusSignRequest
from certctl_core.names import San
from certctl_core.parsed import EKU_OIDS, serial_hex
from certctl_core.run import Host, Run, State
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, field_validator, model_validator

from certctl_issuer_local.authority import Authority, created, loaded
from certctl_issuer_local.leaf import Leaf, lifetime, new_serial, spki_der, to_be_signed


class LocalConfig(ConnectorConfig):
    """Options of one private CA."""

    ca_common_name: str = Field(
        "CertCtl Local CA",
        min_length=1,
        max_length=64,
        description="Common name of the root certificate; read once, when the CA is created",
    )
    validity_days: int = Field(
        90, ge=1, le=3650, description="Life of a certificate in days where the order does not say"
    )
    ca_cert_path: Path | None = Field(
        None, description="PEM file with the CA certificate, then those above it; empty lets certctl create a CA"
    )
    ca_key_path: Path | None = Field(
        None, description="PEM file with the CA's private key, RSA or ECDSA, not encrypted; goes with ca_cert_path"
    )
    crl_distribution_point_urls: tuple[Annotated[str, Field(pattern=r"^http://[!-~]+$")], ...] = Field(
        (), description="Where relying parties find the CRL, http only; written into every certificate"
    )

    @field_validator("ca_cert_path", "ca_key_path", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @model_validator(mode="after")
    def _both_files_or_none(self) -> LocalConfig:
        if (self.ca_cert_path is None) != (self.ca_key_path is None):
            raise ValueError("ca_cert_path and ca_key_path are set together or not at all")
        return self


class LocalIssuer(Issuer):
    """A CA that signs here. What is to be signed is saved first; signing it again gives the same certificate."""

    kind = "GenericCA"
    saves_first = True
    Config = LocalConfig
    config: LocalConfig

    def __init__(self, config: LocalConfig, host: Host, *, authority: Authority | None = None) -> None:
        super().__init__(config, host)
        self._authority = authority
        self._opening = asyncio.Lock()

    async def issue(self, request: IssueRequest, run: Run) -> IssuedCertificate:
        authority, now = await self._open(), self.host.clock()
        authority.check_alive(now)
        key = _key(request.csr_pem)
        tbs_der = _begun(run.state, authority, key, now)
        if tbs_der is None:
            leaf = self._leaf(request, key, authority, now)
            tbs_der = to_be_signed(authority, leaf)
            ends = {"not_before": leaf.not_before.isoformat(), "not_after": leaf.not_after.isoformat()}
            await run.save({"serial": serial_hex(leaf.serial), **ends, "tbs": b64encode(tbs_der).decode()})
        cert = x509.load_der_x509_certificate(authority.sign(tbs_der))
        return IssuedCertificate(
            cert_pem=cert.public_bytes(Encoding.PEM).decode(),
            chain_pem=authority.chain_pem,
            reference=serial_hex(cert.serial_number),
        )

    async def revoke(self, request: RevokeRequest, run: Run) -> None:
        """Nobody else is to be told: the record that the server keeps is what this CA's CRL and OCSP are made from."""

    async def trust_chain(self, run: Run) -> str:
        return (await self._open()).trust_pem

    async def sign_status(self, request: StatusSignRequest, run: Run) -> bytes:
        authority = await self._open()
        return signing.signature(authority.key, request.tbs_der)

    async def check(self, run: Run) -> None:
        authority = await self._open()
        authority.check_alive(self.host.clock())
        probe = secrets.token_bytes(32)
        signing.verify(authority.key.public_key(), probe, signing.signature(authority.key, probe))

    async def _open(self) -> Authority:
        """Return the CA, the same one for every worker; made or read on first use."""
        if self._authority is None:
            async with self._opening:
                if self._authority is None:
                    self._authority = await self._load()
        return self._authority

    async def _load(self) -> Authority:
        if self.config.ca_cert_path and self.config.ca_key_path:
            return loaded(self.config.ca_cert_path, self.config.ca_key_path)
        return await created(self.host.store, self.config.ca_common_name, self.host.clock())

    def _leaf(self, request: IssueRequest, key: CertificatePublicKeyTypes, authority: Authority, now: datetime) -> Leaf:
        if unknown := [eku for eku in request.ekus if eku not in EKU_OIDS]:
            raise RejectedError(f"the order asks for purposes that this CA does not know: {', '.join(unknown)}")
        sans = _names(request)
        if not sans:
            raise RejectedError("the order has no name to certify")
        if refused := authority.refused(sans):
            raise RejectedError(f"the CA certificate does not permit {', '.join(map(str, refused))}")
        life = request.lifetime or (None if request.not_after else timedelta(days=self.config.validity_days))
        not_before, not_after = lifetime(now, life, request.not_after, authority.cert)
        return Leaf(
            serial=new_serial(),
            not_before=not_before,
            not_after=not_after,
            common_name=request.common_name,
            sans=sans,
            key=key,
            ekus=request.ekus or ("serverAuth",),
            crl_urls=() if request.no_rev_avail else self.config.crl_distribution_point_urls,
            no_rev_avail=request.no_rev_avail,
        )


def _key(csr_pem: str) -> CertificatePublicKeyTypes:
    try:
        return x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    except ValueError as exc:
        raise RejectedError(f"the CSR cannot be read: {exc}") from exc


def _names(request: IssueRequest) -> tuple[San, ...]:
    """Return the names of the order, the common name among them where it is one; of the CSR if the order has none."""
    common = name_in(request.common_name) if request.common_name else None
    try:
        sans = request.sans or read_csr(request.csr_pem).names
    except CsrError as exc:
        raise RejectedError(str(exc)) from exc
    return tuple(dict.fromkeys([*sans, common] if common else sans))


def _begun(state: State, authority: Authority, key: CertificatePublicKeyTypes, now: datetime) -> bytes | None:
    """Return the bytes that an earlier attempt meant to sign, None if there are none or they are of no use now."""
    tbs, not_after = state.get("tbs"), state.get("not_after")
    if not isinstance(tbs, str) or not isinstance(not_after, str) or datetime.fromisoformat(not_after) <= now:
        return None
    not_before = state.get("not_before")
    if isinstance(not_before, str) and datetime.fromisoformat(not_before) > now + CLOCK_SKEW:
        return None
    tbs_der = b64decode(tbs)
    _, _, _, issuer, _, _, spki, *_ = der.children(tbs_der)
    if issuer.whole != authority.subject_der or spki.whole != spki_der(key):
        raise RejectedError("the order was begun with another CA or another key; what came of it is not known here")
    return tbs_der


@hookimpl
def certctl_issuers() -> list[type[Issuer]]:
    """Bring one kind."""
    return [LocalIssuer]
