"""Everything the server is told, read once from ``CERTCTL_*`` and passed down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from certctl_core.errors import MisconfiguredError
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "CERTCTL_"
SYSTEM_DATA = Path("/var/lib/certctl")
WORDS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ms|us|µs|ns|h|m|s))+")
#: Read by the agent, the command line and the MCP server, which may share the server's environment.
ELSEWHERE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "SERVER_URL",
        "API_KEY",
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
_environ: ContextVar[Mapping[str, str]] = ContextVar("_environ")


@dataclass(frozen=True, slots=True)
class NamedKey:
    """One entry of CERTCTL_API_KEYS_NAMED."""

    name: str
    key: str = field(repr=False)
    role: Literal["admin", "operator"]


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches a listener on ``host``."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _word(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() not in WORDS:
        raise ValueError("this is neither true nor false")
    return WORDS[value.lower()]


def _length(value: Any) -> Any:
    if not isinstance(value, str) or value == "0":
        return timedelta() if value == "0" else value
    if not DURATION.fullmatch(value):
        raise ValueError("this is no duration like 30s or 1h30m")
    numbers = re.findall(r"([\d.]+)([a-zµ]+)", value)
    return timedelta(seconds=sum(float(number) * UNITS[unit] for number, unit in numbers))


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _networks(value: Any) -> Any:
    return tuple(ip_network(part, strict=False) for part in _split(value)) if isinstance(value, str) else value


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = []
    for number, entry in enumerate(_split(value), 1):
        name, _, rest = entry.partition(":")
        key, colon, role = rest.rpartition(":")
        if not colon:
            key, role = rest, "operator"
        if not name or not key or role not in {"admin", "operator"}:
            raise ValueError(f"entry {number} is not name:key or name:key:admin")
        found.append(NamedKey(name, key, role))
    return tuple(found)


Flag = Annotated[bool, BeforeValidator(_word)]
Duration = Annotated[timedelta, BeforeValidator(_length), Field(gt=timedelta())]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
NamedKeys = Annotated[tuple[NamedKey, ...], BeforeValidator(_named)]
Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class Variable:
    """Says which variable sets a field, where that is not the group's prefix and the field's name."""

    name: str


class Group(BaseSettings):
    """Settings that belong together. Made by hand, as tests do, it sees no environment; ``read`` shows it one."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, env_prefix=PREFIX)

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the sources that are not asked have no name here
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let what is passed stand before the environment, and nothing else speak."""
        return init_settings, _Environment(settings_cls)

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return the variable of each field that has one, by the field's name."""
        prefix = cls.model_config.get("env_prefix", PREFIX)
        found = {}
        for name, info in cls.model_fields.items():
            if not _is_group(info):
                given = [note.name for note in info.metadata if isinstance(note, Variable)]
                found[name] = given[0] if given else f"{prefix}{name.upper()}"
        return found


def _is_group(info: FieldInfo) -> bool:
    return isinstance(info.annotation, type) and issubclass(info.annotation, Group)


class _Environment(PydanticBaseSettingsSource):
    """Each field's own variable, else the contents of the file that ``<variable>_FILE`` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        group: Any = self.settings_cls
        variable, environ = group.variables().get(field_name), _environ.get({})
        return (_said(environ, variable) if variable else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(info, name)[0] for name, info in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value}


def _said(environ: Mapping[str, str], variable: str) -> str:
    if text := environ.get(variable, "").strip():
        return text
    if not (file := environ.get(f"{variable}_FILE", "")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise MisconfiguredError(f"{variable}_FILE: {file} cannot be read: {exc}") from exc


class Server(Group):
    """The API's listener."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}SERVER_")

    host: str = "127.0.0.1"
    port: Port = 8080
    names: Texts = ()
    """What clients may call this server, for its own certificate, beside what the machine knows of itself."""
    tls_mode: Annotated[Literal["auto", "off", "self", "files"], BeforeValidator(_lower)] = "auto"
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

    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_lower)] = "info"
    format: Annotated[Literal["json", "text"], BeforeValidator(_lower)] = "json"


class Auth(Group):
    """Who may call, as far as the environment says it."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}AUTH_")

    type: Annotated[Literal["api-key", "none", "jwt"], BeforeValidator(_lower)] = "api-key"
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
    notification_process_interval: Duration = timedelta(minutes=1)
    retry_interval: Duration = timedelta(minutes=5)
    job_timeout_interval: Annotated[Duration, Variable(f"{PREFIX}JOB_TIMEOUT_INTERVAL")] = timedelta(minutes=10)


class Job(Group):
    """How long jobs wait, and how long a runner keeps one without a beat."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}JOB_")

    awaiting_csr_timeout: Duration = timedelta(hours=24)
    awaiting_approval_timeout: Duration = timedelta(hours=168)
    lease: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=30)


class Pki(Group):
    """What relying parties fetch over plain HTTP."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}PKI_")

    http_port: Port = 8081
    base_url: str = ""
    """Written into certificates; empty writes nothing."""


class Webhook(Group):
    """The notifier ``nt-webhook``, made or refreshed at start if ``url`` is set."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}WEBHOOK_")

    url: SecretStr = SecretStr("")
    secret: SecretStr = SecretStr("")


class Settings(Group):
    """What one server process runs by."""

    server: Server = Field(default_factory=Server)
    database: Database = Field(default_factory=Database)
    log: Log = Field(default_factory=Log)
    auth: Auth = Field(default_factory=Auth)
    rate_limit: RateLimit = Field(default_factory=RateLimit)
    scheduler: Scheduler = Field(default_factory=Scheduler)
    job: Job = Field(default_factory=Job)
    pki: Pki = Field(default_factory=Pki)
    webhook: Webhook = Field(default_factory=Webhook)

    data_dir: Path = Field(default_factory=lambda: default_data_dir(_environ.get(os.environ)))
    max_body_size: PositiveInt = 1_048_576
    agent_keys: Annotated[Literal["required", "optional"], BeforeValidator(_lower)] = "required"
    agent_bootstrap_token: SecretStr = SecretStr("")
    cors_origins: Texts = ()
    keygen_mode: Annotated[Literal["agent", "server"], BeforeValidator(_lower)] = "agent"
    ca_cert_path: Path | None = None
    ca_key_path: Path | None = None
    config_encryption_key: SecretStr = SecretStr("")
    renewal_concurrency: PositiveInt = 25
    agent_offer_lease: Duration = timedelta(seconds=60)
    agent_run_lease: Duration = timedelta(minutes=10)
    egress_allow: Texts = ()
    trusted_proxies: Networks = ()
    broker_url: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.ca_cert_path is None) != (self.ca_key_path is None):
            raise ValueError("CERTCTL_CA_CERT_PATH and CERTCTL_CA_KEY_PATH are set together or not at all")
        return self

    @property
    def database_url(self) -> str:
        """Where the database is, the default filled in."""
        return self.database.url.get_secret_value() or f"sqlite://{quote(str(self.data_dir.absolute() / 'certctl.db'))}"

    @property
    def embedded(self) -> bool:
        """One process is the whole installation: SQLite and no broker."""
        return urlsplit(self.database_url).scheme == "sqlite" and not self.broker_url.get_secret_value()


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
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and value and name not in known and name.removesuffix("_FILE") not in known
    )


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return where the server keeps its files if not told: the system's place, else the user's."""
    if os.access(SYSTEM_DATA if SYSTEM_DATA.exists() else SYSTEM_DATA.parent, os.W_OK):
        return SYSTEM_DATA
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "certctl"


def read(environ: Mapping[str, str]) -> Settings:
    """Return what ``environ`` says, the defaults filled in.

    Raises:
        MisconfiguredError: values that do not parse or do not fit together; every one is named with its variable.
    """
    token = _environ.set(environ)
    faults: list[str] = []
    made: dict[str, Any] = {}
    try:
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
    finally:
        _environ.reset(token)
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
