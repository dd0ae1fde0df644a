"""What is installed, over HTTP."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypedDict

from certctl_core.config import ConnectorConfig
from certctl_core.connector import Checker, Connector
from certctl_core.contract import CONTRACTS, Contract
from certctl_core.plugins import Plugins
from litestar import get

from certctl_server.auth.roles import READ
from certctl_server.context import Ctx


class Loaded(TypedDict):
    """One kind that can be used."""

    kind_of: str
    kind: str
    distribution: str
    version: str
    abilities: list[str]
    schema: dict[str, Any]


class FailedPackage(TypedDict):
    """One package that was left out."""

    entry_point: str
    distribution: str
    version: str
    error: str


class Installed(TypedDict):
    """What is installed."""

    loaded: list[Loaded]
    failed: list[FailedPackage]


@lru_cache(maxsize=256)
def _schema(model: type[ConnectorConfig]) -> dict[str, Any]:
    return model.model_json_schema()


def _loaded(plugins: Plugins) -> Iterator[Loaded]:
    for contract in CONTRACTS:
        kinds: dict[str, type[Connector]] = getattr(plugins, contract.name)
        for kind, cls in sorted(kinds.items()):
            distribution, _, version = plugins.origins.get(cls, "").partition(" ")
            yield {
                "kind_of": contract.name.removesuffix("s"),
                "kind": kind,
                "distribution": distribution,
                "version": version,
                "abilities": _abilities(contract, cls),
                "schema": _schema(cls.Config),
            }


def _abilities(contract: Contract, cls: type[Connector]) -> list[str]:
    return sorted(ability.__name__ for ability in (*contract.abilities, Checker) if issubclass(cls, ability))


@get("/api/v1/connectors", opt={"roles": READ})
async def connectors(ctx: Ctx) -> Installed:
    """List the kinds that can be used, and the packages that were left out, with the reason."""
    failed: list[FailedPackage] = [
        {"entry_point": each.name, "distribution": each.distribution, "version": each.version, "error": each.error}
        for each in ctx.plugins.failed
    ]
    return {"loaded": list(_loaded(ctx.plugins)), "failed": failed}


routes = [connectors]
