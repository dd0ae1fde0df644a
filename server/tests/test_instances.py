import json

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.errors import MisconfiguredError
from certctl_core.issuer import IssuedCertificate, Issuer
from certctl_server import db
from certctl_server.connectors.instances import Instances
from certctl_server.connectors.loop import ConnectorLoop
from certctl_server.issuers.tables import Issuer as IssuerRow


class Options(ConnectorConfig):
    url: str


class Paper(Issuer):
    """Remembers that it was closed."""

    kind = "Paper"
    Config = Options

    def __init__(self, config, host):
        super().__init__(config, host)
        self.closed = False

    async def issue(self, request, run):
        return IssuedCertificate(cert_pem="", chain_pem="", reference="")

    async def aclose(self):
        self.closed = True


@pytest.fixture
async def instances(ctx):
    ctx.plugins.issuers["Paper"] = Paper
    loop = ConnectorLoop()
    loop.start()
    instances = Instances(ctx, loop)
    times = {"created_at": db.now(), "updated_at": db.now()}
    config = json.dumps({"url": "https://ca.example"})
    await IssuerRow.insert(IssuerRow(id="iss", name="iss", type="Paper", config=config, status="ready", **times))
    yield instances
    await instances.aclose()
    await loop.stop()


def change(**columns):
    return IssuerRow.update(columns).where(IssuerRow.id == "iss")


async def test_a_row_has_one_instance_for_as_long_as_its_options_stay(instances):
    one = await instances.issuer("iss")
    assert await instances.issuer("iss") is one
    await change(name="other")
    assert await instances.issuer("iss") is one


async def test_new_options_make_a_new_instance_and_the_old_one_is_closed_in_the_end(instances):
    one = await instances.issuer("iss")
    await change(config=json.dumps({"url": "https://new.example"}), config_version=2)
    two = await instances.issuer("iss")
    assert (one is two, two.config.url) == (False, "https://new.example")
    # A job may still be using it.
    assert not one.closed
    await instances.aclose()
    assert (one.closed, two.closed) == (True, True)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"enabled": False}, "disabled"),
        ({"config": "{}", "config_version": 2}, "incomplete"),
        ({"type": "Unknown"}, "Unknown"),
    ],
    ids=["disabled", "incomplete", "not installed"],
)
@pytest.mark.parametrize("made", [True, False], ids=["was in use", "never made"])
async def test_what_cannot_be_used_says_why(instances, columns, why, made):
    if made and why != "Unknown":
        await instances.issuer("iss")
    await change(**columns)
    with pytest.raises(MisconfiguredError, match=why):
        await instances.issuer("iss")


async def test_a_row_that_is_gone_says_so(instances):
    with pytest.raises(MisconfiguredError, match="gone"):
        await instances.issuer("none")


async def test_what_an_instance_remembers_is_sealed_and_set_only_over_what_was_read(instances):
    store = (await instances.issuer("iss")).host.store
    call = instances.loop.call
    assert await call(lambda: store.get("account")) is None
    assert await call(lambda: store.swap("account", old=None, new="secret-1"))
    assert not await call(lambda: store.swap("account", old=None, new="other"))
    assert not await call(lambda: store.swap("account", old="wrong", new="other"))
    assert await call(lambda: store.swap("account", old="secret-1", new="secret-2"))
    assert await call(lambda: store.get("account")) == "secret-2"
    [row] = await db.fetch(db.Sql("SELECT value FROM connector_memory"))
    assert "secret" not in row["value"]
    assert await call(lambda: store.swap("account", old="secret-2", new=None))
    assert await db.fetch(db.Sql("SELECT * FROM connector_memory")) == []
