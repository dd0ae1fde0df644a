import re
import tomllib
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from certctl_core.errors import MisconfiguredError, RejectedError
from certctl_core.issuer import IssueRequest
from certctl_core.plugins import load
from certctl_issuer_example import ExampleConfig, ExampleIssuer
from certctl_sdk.testing.fake_ca import FakeCA, csr_pem
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.http_peer import HttpPeer, Reply
from certctl_sdk.testing.issuer_contract import IssuerContract
from certctl_sdk.testing.trouble import reply_in

FOLDER = Path(__file__).parents[1]
TOKEN = "s.token"


class SigningService(HttpPeer):
    """The service, small but real: a key, a socket, and one certificate for each idempotency key."""

    def __init__(self):
        super().__init__(self.reply)
        self.ca, self.orders = FakeCA(), {}

    def reply(self, request):
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Reply(401, json={"error": "who are you?"})
        match request.target.split("/"):
            case [_, "orders"]:
                key = request.headers["idempotency-key"]
                if key not in self.orders:
                    self.orders[key] = self.sign(request.json()["csr"])
                return Reply(201, json=self.orders[key])
            case [_, "orders", id, "revocation"] if id in (order["id"] for order in self.orders.values()):
                return Reply(204)
            case [_, "account"]:
                return Reply(json={"name": "ours"})
        return Reply(404, json={"error": "no such order"})

    def sign(self, csr):
        return {"id": f"order-{len(self.orders)}", "certificate": self.ca.sign(csr), "chain": self.ca.cert_pem}


@pytest.fixture
async def service():
    async with SigningService() as service:
        yield service


@pytest.fixture
async def connect(service):
    made = []

    def connect(token=TOKEN):
        made.append(ExampleIssuer(ExampleConfig(url=service.url, token=token), FakeHost()))
        return made[-1]

    yield connect
    for each in made:
        await each.aclose()


class TestContract(IssuerContract):
    connector, options = ExampleIssuer, {"url": "https://ca.example", "token": TOKEN}

    @pytest.fixture
    def make(self, connect):
        return connect

    @pytest.fixture
    def orders(self, service):
        return lambda: len(service.orders)

    @pytest.fixture
    def troubled(self, service, connect):
        def make(trouble):
            service.answer = lambda request: reply_in(trouble, request)
            return connect()

        return make


async def test_an_order_whose_answer_was_lost_is_not_placed_twice(service, connect):
    request, run = IssueRequest(csr_pem=csr_pem("a.example")), FakeRun()
    first = await connect().issue(request, run)
    assert await connect().issue(request, run.again()) == first
    assert len(service.orders) == 1


async def test_the_lifetime_asked_for_is_passed_on(service, connect):
    await connect().issue(IssueRequest(csr_pem=csr_pem("a.example"), lifetime=timedelta(hours=1)), FakeRun())
    assert service.requests[0].json()["lifetime_seconds"] == "3600"


@pytest.mark.parametrize("answer", [None, [], {}, {"id": 1}, {"id": "1", "certificate": "x", "chain": None}])
async def test_an_answer_without_a_certificate_is_a_refusal(service, connect, answer):
    service.answer = Reply(json=answer)
    with pytest.raises(RejectedError, match="answered without one"):
        await connect().issue(IssueRequest(csr_pem=csr_pem("a.example")), FakeRun())


async def test_the_check_tells_a_good_token_from_a_bad_one(connect):
    await connect().check(FakeRun())
    with pytest.raises(MisconfiguredError, match=re.escape("The signing service answered HTTP 401: who are you?")):
        await connect("wrong").check(FakeRun())


def test_the_entry_point_brings_the_kind():
    [(name, value)] = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["entry-points"][
        "certctl"
    ].items()
    plugins = load([EntryPoint(name, value, "certctl")])
    assert not plugins.failed
    assert plugins.issuers == {"Example": ExampleIssuer}


def test_the_readme_lists_every_option():
    readme = (FOLDER / "README.md").read_text()
    for name, field in ExampleConfig.model_fields.items():
        assert re.search(rf"\| `{name}` \|.*\| {re.escape(field.description)} \|", readme), name
