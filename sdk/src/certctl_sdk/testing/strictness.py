"""What every contract suite asks of a connector's class and of its options."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from certctl_core.config import ConnectorConfig, is_secret, read
from certctl_core.connector import Connector
from certctl_core.contract import CONTRACTS, check
from pydantic import AliasChoices, ValidationError


def assert_loads(connector: type[Connector]) -> None:
    """Raise unless the program would load ``connector``: its kind, its methods' names and signatures, its options."""
    [contract] = [contract for contract in CONTRACTS if issubclass(connector, contract.base)]
    check(contract, connector)


def assert_strict(config: type[ConnectorConfig], options: Mapping[str, Any]) -> None:
    """Raise unless ``options`` are accepted, an unknown one is refused, and no secret among them is ever told."""
    secrets = secrets_of(config, options)
    accepted = config.model_validate(options)
    canary = next(iter(secrets), "canary")
    try:
        config.model_validate({**options, "no_such_option": canary})
    except ValidationError as exc:
        refused = str(exc)
    else:
        raise AssertionError("an unknown option is accepted")
    misread = read(config, dict.fromkeys(options, canary))
    told = [refused, str(misread.faults), repr(accepted), str(accepted)]
    assert not [text for secret in secrets for text in told if secret in text], "a secret is told"


def secrets_of(config: type[ConnectorConfig], options: Mapping[str, Any]) -> list[str]:
    """The values of ``options`` that ``config`` declares as secret."""
    found = []
    for name, field in config.model_fields.items():
        alias = field.validation_alias
        names = [name, *(alias.choices if isinstance(alias, AliasChoices) else [alias])]
        if is_secret(field):
            found += [text for key in names if isinstance(key, str) and key in options for text in _texts(options[key])]
    return [secret for secret in dict.fromkeys(found) if secret]


def _texts(value: Any) -> list[str]:
    items = value.values() if isinstance(value, Mapping) else value
    return [str(value)] if isinstance(value, str) or not isinstance(items, Iterable) else [str(each) for each in items]


def canaries_of(config: type[ConnectorConfig], options: Mapping[str, Any]) -> list[str]:
    """As ``secrets_of``, and of an address that is a secret also its path and query."""
    secrets = secrets_of(config, options)
    parts = (urlsplit(secret) for secret in secrets if "://" in secret)
    return secrets + [
        part for url in parts for part in (url.path.strip("/"), url.path.rpartition("/")[2], url.query) if part
    ]


def told_by(error: BaseException) -> str:
    """All that a log would show of ``error``, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error)
