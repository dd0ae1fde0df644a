"""Everything the server is told, read once from ``CERTCTL_*`` and passed down."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from certctl_core.errors import MisconfiguredError
from certctl_sdk import profile_file
from pydantic import Field, NonNegativeFloat, PositiveInt, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from certctl_server.environment import (
    PREFIX,
    Duration,
    Flag,
    Group,
    Lower,
    NamedKeys,
    Networks,
    Port,
    Retention,
    Texts,
    Variable,
    present,
    seen,
)

#: Read by the agent, the command line and the MCP server, which may share the server's environment.
ELSEWHERE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "SERVER_URL",
        "API_KEY",
        "API_KEY_FILE",
        "SERVER_CA_FILE",
        "AGENT_ID",
        "AGENT_NAME",
        "KEY_DIR",
        "DISCOVERY_DIRS",
        "VERIFY_DEPLOYMENT",
        "VERIFY_TIMEOUT",
        "VERIFY_DELAY",
        "DATABASE_MIGRATIONS_PATH",  # the original's; our migrations are part of the package
    )
)


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches a listener on ``host``."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Server(Group):
    """The API's listener."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}SERVER_")

    host: str = "127.0.0.1"
    port: Port = 8080
    names: Texts = ()
    """What clients may call this server, for its own certificate, beside what the machine knows of itself."""
    tls_mode: Annotated[Literal["auto", "off", "self", "files"], Lower] = "auto"
    tls_cert_path: Path | None = None
    tls_key_path: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_cert_path is None) != (self.tls_key_path is None):
            raise ValueError("CERTCTL_SERVER_TLS_CERT_PATH and CERTCTL_SERVER_TLS_KEY_PATH are set together or not")
        if self.tls_mode == "files" and self.tls_cert_path is None:
            raise ValueError("CERTCTL_SERVER_TLS_MODE=files needs CERTCTL_SERVER_TLS_CERT_PATH and _TLS_KEY_PATH")
        return self

    @property
    def tls(self) -> Literal["off", "self", "files"]:
        """Where the certificate comes from, ``auto`` decided: files if given, else our CA unless on loopback."""
        if self.tls_mode != "auto":
            return self.tls_mode
        if self.tls_cert_path is not None:
            return "files"
        return "off" if is_loopback(self.host) else "self"


class Database(Group):
    """Where the truth is kept. An empty ``url`` is a SQLite file in the data directory."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}DATABASE_")

    url: SecretStr = SecretStr("")
    max_conns: PositiveInt = 25

    @model_validator(mode="after")
    def _known(self) -> Self:
        if urlsplit(self.url.get_secret_value()).scheme not in {"", "sqlite", "postgres", "postgresql"}:
            raise ValueError("CERTCTL_DATABASE_URL: a database is sqlite:///path or postgres://...")
        return self


class Log(Group):
    """What is told on standard error."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}LOG_")

    level: Annotated[Literal["debug", "info", "warn", "error"], Lower] = "info"
    format: Annotated[Literal["json", "text"], Lower] = "json"


class Auth(Group):
    """Who may call, as far as the environment says it."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}AUTH_")

    type: Annotated[Literal["api-key", "none", "jwt"], Lower] = "api-key"
    secret: SecretStr = SecretStr("")
    named_keys: Annotated[NamedKeys, Variable(f"{PREFIX}API_KEYS_NAMED")] = ()

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.type == "jwt":
            raise ValueError("CERTCTL_AUTH_TYPE: jwt is refused, tokens are not checked by this version; use api-key")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The admin keys of CERTCTL_AUTH_SECRET; several during a rotation."""
        return tuple(part.strip() for part in self.secret.get_secret_value().split(",") if part.strip())


class RateLimit(Group):
    """How fast one caller may go on."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}RATE_LIMIT_")

    enabled: Flag = True
    rps: Annotated[float, Field(gt=0)] = 50.0
    burst: PositiveInt = 100
    per_user_rps: NonNegativeFloat = 0.0
    """Of an authenticated caller; 0 is ``rps``."""
    per_user_burst: Annotated[int, Field(ge=0)] = 0
    """Of an authenticated caller; 0 is ``burst``."""


class Scheduler(Group):
    """How long each background loop sleeps at most."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}SCHEDULER_")

    renewal_check_interval: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(hours=1)
    job_processor_interval: Duration = timedelta(seconds=5)
    agent_health_check_interval: Duration = timedelta(minutes=2)
    retry_interval: Duration = timedelta(minutes=5)
    notification_process_interval: Duration = timedelta(minutes=1)
    job_timeout_interval: Annotated[Duration, Variable(f"{PREFIX}JOB_TIMEOUT_INTERVAL")] = timedelta(minutes=10)
    retention_interval: Annotated[Duration, Variable(f"{PREFIX}RETENTION_INTERVAL")] = timedelta(hours=1)
    policy_sweep_interval: Annotated[Duration, Variable(f"{PREFIX}POLICY_SWEEP_INTERVAL")] = timedelta(hours=24)


class Job(Group):
    """How long jobs wait, and how long a runner keeps one without a beat."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}JOB_")

    awaiting_csr_timeout: Duration = timedelta(hours=24)
    awaiting_approval_timeout: Duration = timedelta(hours=168)
    lease: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=30)
    retention: Retention = timedelta(hours=2160)
    """How long finished jobs are kept."""


class Webhook(Group):
    """The notifier ``nt-webhook``, made or refreshed at start if ``url`` is set."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}WEBHOOK_")

    url: SecretStr = SecretStr("")
    secret: SecretStr = SecretStr("")


class NetworkScan(Group):
    """Whether anything in a network is probed."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}NETWORK_SCAN_")

    enabled: Flag = False


class Settings(Group):
    """What one server process runs by."""

    server: Server = Field(default_factory=Server)
    database: Database = Field(default_factory=Database)
    log: Log = Field(default_factory=Log)
    auth: Auth = Field(default_factory=Auth)
    rate_limit: RateLimit = Field(default_factory=RateLimit)
    scheduler: Scheduler = Field(default_factory=Scheduler)
    job: Job = Field(default_factory=Job)
    webhook: Webhook = Field(default_factory=Webhook)
    network_scan: NetworkScan = Field(default_factory=NetworkScan)

    data_dir: Path = Field(default_factory=lambda: profile_file.data_dir(present()))
    max_body_size: PositiveInt = 1_048_576
    agent_keys: Annotated[Literal["required", "optional"], Lower] = "required"
    agent_bootstrap_token: SecretStr = SecretStr("")
    login_lifetime: Duration = timedelta(hours=12)
    """How long the cookie of a login lasts, if its key does."""
    cors_origins: Texts = ()
    metrics_port: Port = 0
    """Where else this process shows its metrics, on loopback; 0: nowhere."""
    keygen_mode: Annotated[Literal["agent", "server"], Lower] = "agent"
    ca_cert_path: Path | None = None
    ca_key_path: Path | None = None
    config_encryption_key: SecretStr = SecretStr("")
    renewal_concurrency: PositiveInt = 25
    agent_offer_lease: Duration = timedelta(seconds=60)
    agent_run_lease: Duration = timedelta(minutes=10)
    egress_allow: Texts = ()
    trusted_proxies: Networks = ()
    broker_url: SecretStr = SecretStr("")
    call_log_retention: Retention = timedelta()
    audit_flush_timeout_seconds: PositiveInt = 30
    """How long a server that stops tries to write down what was called last."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.ca_cert_path is None) != (self.ca_key_path is None):
            raise ValueError("CERTCTL_CA_CERT_PATH and CERTCTL_CA_KEY_PATH are set together or not at all")
        if self.keygen_mode == "server":
            raise ValueError("CERTCTL_KEYGEN_MODE: server is refused, keys are made by agents only; leave it at agent")
        if self.call_log_retention:
            raise ValueError(
                "CERTCTL_CALL_LOG_RETENTION: calls are rows of the audit trail, which nothing shortens; leave it at 0"
            )
        if self.broker and urlsplit(self.broker).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("CERTCTL_BROKER_URL: a broker is redis://..., rediss://... (TLS) or unix:///path")
        if self.broker and urlsplit(self.database_url).scheme == "sqlite":
            raise ValueError(
                "CERTCTL_BROKER_URL joins several processes, which need CERTCTL_DATABASE_URL=postgres://..."
            )
        return self

    @property
    def broker(self) -> str:
        """Where the broker is that joins servers and workers; empty: each process has workers of its own."""
        return self.broker_url.get_secret_value()

    @property
    def database_url(self) -> str:
        """Where the database is, the default filled in."""
        return self.database.url.get_secret_value() or f"sqlite://{quote(str(self.data_dir.absolute() / 'certctl.db'))}"

    @property
    def embedded(self) -> bool:
        """One process is the whole installation: the database is a SQLite file."""
        return urlsplit(self.database_url).scheme == "sqlite"


GROUPS: Mapping[str, type[Group]] = {
    name: info.annotation
    for name, info in Settings.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Group)
}


def variables() -> frozenset[str]:
    """Return the name of every variable that sets something here."""
    groups: list[type[Group]] = [Settings, *GROUPS.values()]
    return frozenset(name for group in groups for name in group.variables().values())


def unused(environ: Mapping[str, str]) -> list[str]:
    """Return the ``CERTCTL_*`` variables that are set and do nothing in this version."""
    known = variables() | ELSEWHERE
    groups: list[type[Group]] = [Settings, *GROUPS.values()]
    known |= {f"{name}_FILE" for group in groups for name in group.secret_variables()}
    return sorted(name for name, value in environ.items() if name.startswith(PREFIX) and value and name not in known)


def read(environ: Mapping[str, str]) -> Settings:
    """Return what ``environ`` says, the defaults filled in.

    Raises:
        MisconfiguredError: values that do not parse or do not fit together; every one is named with its variable.
    """
    faults: list[str] = []
    made: dict[str, Any] = {}
    with seen(environ):
        for name, group in GROUPS.items():
            try:
                made[name] = group()
            except ValidationError as exc:
                faults += _told(group, exc)
                made[name] = group.model_construct()
        try:
            settings = Settings(**made)
        except ValidationError as exc:
            faults += _told(Settings, exc)
    if faults:
        raise MisconfiguredError("; ".join(faults))
    return settings


def _told(group: type[Group], error: ValidationError) -> list[str]:
    variables = group.variables()
    found = []
    for fault in error.errors(include_input=False, include_url=False):
        said = fault["msg"].removeprefix("Value error, ")
        where = next((variables[part] for part in fault["loc"] if part in variables), "")
        found.append(f"{where}: {said}" if where else said)
    return found
