import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.notifier import Notifier
from certctl_core.plugins import FailedPackage
from pydantic import AliasChoices, Field, SecretStr


class PagerConfig(ConnectorConfig):
    key: SecretStr = Field(validation_alias=AliasChoices("routing_key", "key"), description="Key")


class Pager(Notifier):
    kind = "Pager"
    Config = PagerConfig

    async def send(self, request, run):
        raise NotImplementedError

    async def resolve(self, request, run):
        raise NotImplementedError


async def test_what_is_loaded_and_what_failed_is_listed(client, ctx):
    ctx.plugins.notifiers["Pager"] = Pager
    ctx.plugins.origins[Pager] = "certctl-notifier-pager 1.2.3"
    ctx.plugins.failed.append(
        FailedPackage("bad", "certctl-bad 0.1", "ImportError: no", distribution="certctl-bad", version="0.1")
    )
    answer = (await client.get("/api/v1/connectors")).json()
    [loaded] = answer["loaded"]
    schema = loaded.pop("schema")
    assert loaded == {
        "kind_of": "notifier",
        "kind": "Pager",
        "distribution": "certctl-notifier-pager",
        "version": "1.2.3",
        "abilities": ["Resolver"],
    }
    assert (schema["required"], schema["properties"]["routing_key"]["format"]) == (["routing_key"], "password")
    failed = {"entry_point": "bad", "distribution": "certctl-bad", "version": "0.1", "error": "ImportError: no"}
    assert answer["failed"] == [failed]


@pytest.mark.parametrize("family", ["issuers", "targets", "notifiers", "connectors"])
async def test_without_a_key_nothing_is_told(connect, family):
    async with connect() as stranger:
        assert (await stranger.get(f"/api/v1/{family}")).status_code == 401
