"""What targets share whose service reads PEM files and is told to reload: NGINX, Apache, Postfix, Dovecot.

A connector subclasses both, sets ``kind``, ``Config`` and the default commands, and has all abilities.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from certctl_core.config import ConnectorConfig
from certctl_core.errors import DeploymentError, MisconfiguredError
from certctl_core.run import Run
from certctl_core.target import Bundle, DeployRequest, Endpoint, Proof, Receipt, RollbackRequest, Target
from pydantic import AliasChoices, BeforeValidator, Field

from certctl_sdk.commands import named
from certctl_sdk.commands import run as run_command
from certctl_sdk.files import Access, ServedFile, Step, deploy_files, recover_files, roll_back_files, try_files

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
NANOSECONDS_FROM = 1_000_000


def _as_seconds(value: Any) -> Any:
    """Read a time as Go programs write it: 10s, 1m30s, or a number of nanoseconds; small numbers are seconds."""
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h))+", value):
        return sum(float(n) * UNITS[unit] for n, unit in re.findall(r"([\d.]+)(ms|s|m|h)", value))
    if isinstance(value, int | float) and value >= NANOSECONDS_FROM:
        return value / 1_000_000_000
    return value


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_as_seconds), Field(ge=timedelta())]
Mode: TypeAlias = Annotated[str, Field(pattern=r"^0?[0-7]{3}$")]
PrivateMode: TypeAlias = Annotated[str, Field(pattern=r"^0?[0-7]{2}0$")]
Owner: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?$")]


class PostDeployVerify(ConnectorConfig):
    """How the served certificate is looked at after a deployment."""

    enabled: bool = Field(default=True, description="Whether to look at what is served")
    endpoint: str | None = Field(None, description="Where to look, as host:port; else the host and port of the target")
    timeout: Duration | None = Field(None, description="How long one look may take")


class PemTargetConfig(ConnectorConfig):
    """The files that the service's configuration names, and what to do once they changed."""

    cert_path: Path = Field(description="File for the certificate, followed by its intermediates")
    key_path: Path = Field(description="File for the private key")
    chain_path: Path | None = Field(None, description="File for the intermediates alone, if the service wants one")
    validate_command: str = Field(description="Command of agent.toml that checks the service's configuration")
    reload_command: str = Field(description="Command of agent.toml that makes the service read its files again")
    cert_file_mode: Mode | None = Field(None, description="Mode of the certificate's file, octal; else kept, or 0644")
    cert_file_owner: Owner | None = Field(None, description="Owner of the certificate's file; else kept")
    cert_file_group: Owner | None = Field(None, description="Group of the certificate's file; else kept")
    chain_file_mode: Mode | None = Field(None, description="Mode of the intermediates' file, octal; else kept, or 0644")
    chain_file_owner: Owner | None = Field(None, description="Owner of the intermediates' file; else kept")
    chain_file_group: Owner | None = Field(None, description="Group of the intermediates' file; else kept")
    key_file_mode: PrivateMode | None = Field(
        None, description="Mode of the key's file, octal, nothing for others; else kept, or 0600"
    )
    key_file_owner: Owner | None = Field(None, description="Owner of the key's file; else kept")
    key_file_group: Owner | None = Field(None, description="Group of the key's file; else kept")
    backup_retention: int = Field(3, ge=0, le=100, description="How many older generations stay for a rollback")
    use_links: bool = Field(
        default=True,
        description="Serve through links, so that one rename changes all files; off where the service refuses links",
    )
    host: str | None = Field(
        None,
        validation_alias=AliasChoices("host", "hostname", "target", "address"),
        description="Where to look for the served certificate",
    )
    port: int = Field(443, ge=1, le=65535, description="Port at that host")
    post_deploy_verify: PostDeployVerify | None = Field(None, description="How to look at what is served")
    post_deploy_verify_attempts: int = Field(1, ge=1, le=20, description="How often to look before giving up")
    post_deploy_verify_backoff: Duration = Field(timedelta(seconds=2), description="Wait before the second look")
    post_deploy_verify_max_backoff: Duration = Field(
        timedelta(seconds=30), description="Longest wait; each is twice the last"
    )


class PemTarget(Target):
    """A service on this machine that reads PEM files. Has all abilities of a target, and ``recover``."""

    config: PemTargetConfig

    async def deploy(self, request: DeployRequest, run: Run) -> Receipt:
        """Write, check, reload and verify; all files are back as they were if any of it fails."""
        return await deploy_files(
            self._files(request.bundle),
            self.host.allowed,
            check=self._command("check"),
            reload=self._command("reload"),
            verify=self._proof(request.verify),
            link=self.config.use_links,
            keep=self.config.backup_retention,
        )

    async def rollback(self, request: RollbackRequest, run: Run) -> None:
        """Serve the files again that were there before, and reload."""
        await roll_back_files(self._paths(), request.receipt, self.host.allowed, reload=self._command("reload"))

    async def recover(self, run: Run) -> bool:
        """Put back a deployment that a crash cut short, and reload; False if there is none. For the agent's start."""
        return await recover_files(self._paths(), self.host.allowed, reload=self._command("reload"))

    async def check(self, run: Run) -> None:
        """Ask the service whether its configuration is right, and this machine whether it allows what is needed."""
        self._command("reload")
        await self._command("check")()

    async def dry_run(self, request: DeployRequest, run: Run) -> None:
        """Stage the files and remove them again; see that both commands are allowed."""
        for step in ("check", "reload"):
            self._command(step)
        try_files(self._files(request.bundle), self.host.allowed)

    async def endpoints(self, run: Run) -> tuple[Endpoint, ...]:
        """Return the one place to look at; none if looking is switched off or no host is configured."""
        verify = self.config.post_deploy_verify
        if verify and not verify.enabled:
            return ()
        if verify and verify.endpoint:
            host, _, port = verify.endpoint.rpartition(":")
            if not host or not port.isdecimal():
                raise MisconfiguredError(f"post_deploy_verify.endpoint is {verify.endpoint!r}, not host:port")
            return (Endpoint(host=host.strip("[]"), port=int(port)),)
        return (Endpoint(host=self.config.host, port=self.config.port),) if self.config.host else ()

    def _files(self, bundle: Bundle) -> list[ServedFile]:
        config = self.config
        whole = bundle.cert_pem + bundle.chain_pem
        files = [
            ServedFile(config.cert_path, whole, 0o644, self._access("cert")),
            ServedFile(config.key_path, bundle.key_pem, 0o600, self._access("key")),
        ]
        if config.chain_path:
            if not bundle.chain_pem:
                raise MisconfiguredError(f"chain_path is {config.chain_path}, but this certificate has no chain")
            files.append(ServedFile(config.chain_path, bundle.chain_pem, 0o644, self._access("chain")))
        return files

    def _paths(self) -> list[Path]:
        config = self.config
        return [config.cert_path, config.key_path, *([config.chain_path] if config.chain_path else [])]

    def _access(self, which: str) -> Access:
        mode, owner, group = (getattr(self.config, f"{which}_file_{name}") for name in ("mode", "owner", "group"))
        return Access(None if mode is None else int(mode, 8), owner, group)

    def _command(self, step: str) -> Step:
        text = self.config.validate_command if step == "check" else self.config.reload_command
        return partial(run_command, named(text, self.host.allowed), step=step)

    def _proof(self, verify: Proof | None) -> Step | None:
        return partial(self._look, verify) if verify else None

    async def _look(self, verify: Proof) -> None:
        wait = self.config.post_deploy_verify_backoff
        for _ in range(self.config.post_deploy_verify_attempts - 1):
            with contextlib.suppress(DeploymentError):
                return await self._look_once(verify)
            await asyncio.sleep(min(wait, self.config.post_deploy_verify_max_backoff).total_seconds())
            wait *= 2
        return await self._look_once(verify)

    async def _look_once(self, verify: Proof) -> None:
        how = self.config.post_deploy_verify
        limit = how.timeout.total_seconds() if how and how.timeout else None
        try:
            async with asyncio.timeout(limit):
                await verify()
        except TimeoutError as exc:
            raise DeploymentError("verify", "looking at what is served took too long") from exc
