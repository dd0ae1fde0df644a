"""How values stand in the environment, and how groups of settings are read from it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from certctl_core.errors import MisconfiguredError
from pydantic import BeforeValidator, Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "CERTCTL_"
WORDS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ms|us|µs|ns|h|m|s))+")
_environ: ContextVar[Mapping[str, str]] = ContextVar("_environ")


@contextlib.contextmanager
def seen(environ: Mapping[str, str]) -> Iterator[None]:
    """Show ``environ`` to the groups that are made meanwhile."""
    token = _environ.set(environ)
    try:
        yield
    finally:
        _environ.reset(token)


def present() -> Mapping[str, str]:
    """Return the environment that is shown, an empty one if none is."""
    return _environ.get({})


@dataclass(frozen=True, slots=True)
class NamedKey:
    """One entry of CERTCTL_API_KEYS_NAMED."""

    name: str
    key: str = field(repr=False)
    role: Literal["admin", "operator"]


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


Lower = BeforeValidator(_lower)
Flag = Annotated[bool, BeforeValidator(_word)]
Duration = Annotated[timedelta, BeforeValidator(_length), Field(gt=timedelta())]
Retention = Annotated[timedelta, BeforeValidator(_length), Field(ge=timedelta())]
"""A duration; zero is for ever."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
NamedKeys = Annotated[tuple[NamedKey, ...], BeforeValidator(_named)]
Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class Variable:
    """Says which variable sets a field, where that is not the group's prefix and the field's name."""

    name: str


class Group(BaseSettings):
    """Settings that belong together. Made by hand, as tests do, it sees no environment; ``seen`` shows it one."""

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
            if not is_group(info):
                given = [note.name for note in info.metadata if isinstance(note, Variable)]
                found[name] = given[0] if given else f"{prefix}{name.upper()}"
        return found

    @classmethod
    def secret_variables(cls) -> set[str]:
        """Return the variables that hold secrets: those may come from a file, which ``<variable>_FILE`` names."""
        return {name for field, name in cls.variables().items() if _is_secret(cls.model_fields[field])}


def _is_secret(info: FieldInfo) -> bool:
    return info.annotation is SecretStr or NamedKey in get_args(info.annotation)


def is_group(info: FieldInfo) -> bool:
    """Whether a field is a group of its own."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, Group)


class _Environment(PydanticBaseSettingsSource):
    """Each field's own variable, else, of a secret, the contents of the file that ``<variable>_FILE`` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        group: Any = self.settings_cls
        variable = group.variables().get(field_name)
        said = _said(present(), variable, in_file=_is_secret(field)) if variable else None
        return said, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(info, name)[0] for name, info in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value}


def _said(environ: Mapping[str, str], variable: str, *, in_file: bool) -> str:
    if text := environ.get(variable, "").strip():
        return text
    if not in_file or not (file := environ.get(f"{variable}_FILE", "")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise MisconfiguredError(f"{variable}_FILE: {file} cannot be read: {exc}") from exc
