"""Secrets in the options of connectors show up nowhere: no reply, no log, no audit row, no message, no backup.

No route that answers without parameters is left out: lists, exports, figures and metrics, later ones included.
"""

import base64
import itertools
import json
import urllib.parse

import pytest
from certctl_sdk.testing.fake_ca import csr_pem
from server_flow import routes

#: A type of each family whose connector is not installed, and options that hold nothing but secrets.
STRANGE = {
    "issuers": ("VaultPKI", ("addr", "token", "role")),
    "targets": ("F5", ("host", "username", "password")),
    "notifiers": ("PagerDuty", ("routing_key",)),
}
CLOSED = "http://127.0.0.1:9"
LISTS = (
    *("connectors", "issuers?per_page=500", "targets?per_page=500", "notifiers?per_page=500", "audit?per_page=500"),
    *("jobs?per_page=500", "jobs?type=Notification", "notifications?per_page=500", "certificates?per_page=500"),
    *(route.path.removeprefix("/api/v1/") for route in routes() if route.method == "GET" and "{" not in route.path),
)
FAMILIES = {"issuer": "issuers", "target": "targets", "notifier": "notifiers"}


class Canaries:
    """Makes secrets that can be told apart, and finds them again."""

    def __init__(self):
        self.made = []
        self._number = itertools.count(1)

    def new(self):
        self.made.append(f"canary{next(self._number):03}Zq7Xw9Kp2Lm")
        return self.made[-1]

    def in_(self, text):
        """Those that are in ``text``, plain, in JSON, quoted for a URL or in base64."""
        return [canary for canary in self.made if any(form in text for form in forms(canary))]


def forms(canary):
    yield canary
    yield urllib.parse.quote(canary)
    for offset in range(3):
        yield base64.b64encode(b"\0" * offset + canary.encode()).decode()[4:-4]


@pytest.fixture(scope="module")
def canaries():
    return Canaries()


@pytest.fixture(scope="module")
def server(stage):
    return stage.server(
        CERTCTL_LOG_LEVEL="debug", CERTCTL_EGRESS_ALLOW="127.0.0.1", CERTCTL_RATE_LIMIT_ENABLED="false"
    ).start()


@pytest.fixture(scope="module")
def agent(stage, server):
    return stage.agent(server)


@pytest.fixture(scope="module")
def hostile(stage):
    """A peer that refuses everything and repeats all it was sent."""
    return stage.receiver(status=400)


class Teller:
    """Calls the API and keeps every reply as it came."""

    def __init__(self, http):
        self._http = http
        self.replies = []

    def __call__(self, method, path, body=None, content=None, **headers):
        headers |= {"Content-Type": "application/json"} if content else {}
        reply = self._http.request(method, f"/api/v1/{path}", json=body, content=content, headers=headers)
        told = f"{reply.status_code} {dict(reply.headers)} {reply.text}"
        self.replies.append(f"{method} {path.partition('?')[0]}: {told}")
        return reply


@pytest.fixture
def tell(server, canaries):
    """Make calls; at the end nothing that was said anywhere may hold a canary."""
    with server.client(server.key) as http:
        teller = Teller(http)
        yield teller
        for path in LISTS:
            assert teller("GET", path).status_code == 200
    assert [reply for reply in teller.replies if canaries.in_(reply)] == []
    assert canaries.in_(server.said) == []
    stored = b"".join(server.files().values())
    assert canaries.in_(stored.decode("latin-1")) == []


def body(family, name, type_, config, agent):
    owner = {"agent_id": agent.id} if family == "targets" else {}
    return {"name": name, "type": type_, "config": config, **owner}


def test_a_canary_would_be_found(canaries):
    canary = canaries.new()
    for text in (canary, json.dumps({"a": canary}), base64.b64encode(f"user:{canary}".encode()).decode()):
        assert canaries.in_(text) == [canary]
    canaries.made.remove(canary)


@pytest.mark.parametrize("family", STRANGE)
def test_options_of_a_connector_that_is_not_installed_are_secrets_throughout(tell, canaries, agent, family):
    type_, names = STRANGE[family]
    config = {name: canaries.new() for name in names} | {"nested": {"list": [canaries.new(), {"deep": canaries.new()}]}}
    reply = tell("POST", family, body(family, f"strange {family}", type_, config, agent))
    assert reply.status_code == 201, reply.text
    row = reply.json()
    assert row["status"] == "incomplete"
    assert row["config"] == dict.fromkeys(names, "********") | {"nested": {"list": ["********", {"deep": "********"}]}}
    one = f"{family}/{row['id']}"
    tell("GET", one)
    tell("POST", f"{one}/test")
    changed = tell("PUT", one, {"config": {names[-1]: canaries.new(), "more": canaries.new()}})
    assert (changed.status_code, changed.json()["config"]["more"]) == (200, "********")
    assert tell("PUT", one, {"type": "NoSuchThing", "config": {"more": canaries.new()}}).status_code == 400
    assert tell("DELETE", one).status_code == 204


@pytest.mark.parametrize("url", ["hostile", CLOSED, "http://192.0.2.1:81"], ids=["repeats us", "closed", "forbidden"])
def test_a_webhook_that_fails_keeps_its_secrets(tell, canaries, agent, hostile, waiting, server, url):
    path = f"/{canaries.new()}?token={canaries.new()}"
    config = {
        "url": (hostile.url if url == "hostile" else url) + path,
        "secret": canaries.new(),
        "authorization": f"Bearer {canaries.new()}",
    }
    made = tell("POST", "notifiers", body("notifiers", f"webhook {url}", "Webhook", config, agent)).json()
    assert {made["config"][name] for name in config} == {"********"}
    assert tell("POST", f"notifiers/{made['id']}/test").status_code == 503
    if url == "hostile":
        assert hostile.posted
    tell("PUT", f"notifiers/{made['id']}", {"config": {"url": f"{CLOSED}/{canaries.new()}"}})
    tell("POST", f"notifiers/{made['id']}/test")
    tell("DELETE", f"notifiers/{made['id']}")


def test_an_issuer_that_repeats_us_keeps_our_secrets_also_in_the_job_it_fails(tell, canaries, hostile, server):
    config = {"url": hostile.url, "token": canaries.new()}
    made = tell("POST", "issuers", {"name": "hostile", "type": "Example", "config": config}).json()
    assert made["config"]["token"] == "********"
    assert tell("POST", f"issuers/{made['id']}/test").status_code == 503
    certificate = server.order("hostile.example.com", issuer_id=made["id"])["id"]
    order = {"csr_pem": csr_pem("hostile.example.com")}
    assert tell("POST", f"certificates/{certificate}/renew", order).status_code == 202
    row = server.until(f"certificates/{certificate}", lambda row: row["status"] == "Failed", "the order to fail")
    assert "signing service" in row["last_error"]
    [job] = server.jobs(certificate)
    assert job["last_error"] == row["last_error"]
    for path in (f"jobs/{job['id']}", f"certificates/{certificate}", f"issuers/{made['id']}"):
        tell("GET", path)


@pytest.mark.parametrize("kind_of", FAMILIES)
def test_every_secret_of_every_connector_stays_where_it_is(tell, canaries, agent, kind_of):
    family = FAMILIES[kind_of]
    kinds = [each for each in tell("GET", "connectors").json()["loaded"] if each["kind_of"] == kind_of]
    assert kinds
    for each in kinds:
        secrets = {name: told for name, told in each["schema"]["properties"].items() if is_secret(told)}
        config = {name: planted(told, canaries.new()) for name, told in secrets.items()}
        config |= {"of_no_schema": canaries.new()}
        made = tell("POST", family, body(family, f"whole {each['kind']}", each["kind"], config, agent))
        assert made.status_code == 201, made.text
        assert {str(value).strip("[']") for value in made.json()["config"].values()} == {"********"}
        one = f"{family}/{made.json()['id']}"
        tell("GET", one)
        tell("POST", f"{one}/test")
        tell("PUT", one, {"config": dict.fromkeys(config, "********")})
        assert tell("PUT", one, {"enabled": "perhaps", "config": {name: canaries.new() for name in config}}).is_error
        assert tell("POST", family, {"id": made.json()["id"], "name": "again", "type": each["kind"]}).is_error
        assert tell("DELETE", one).status_code == 204


def planted(told, secret):
    """A value that such a property may have, with the secret in it."""
    return [f"X-Key: {secret}"] if told.get("type") == "array" else f"{CLOSED}/{secret}"


def is_secret(told):
    """Whether a schema says so of a property, or of what it may be instead of null."""
    return told.get("writeOnly") or any(is_secret(each) for each in told.get("anyOf", ()))


@pytest.mark.parametrize("way", ["query", "key", "scheme", "cookie", "login", "login of a wrong type"])
def test_secrets_that_callers_put_elsewhere_are_not_repeated(tell, canaries, way):
    secret = canaries.new()
    if way == "query":
        assert tell("GET", f"notifiers?token={secret}").status_code == 400
        assert tell("GET", f"notifiers?type={secret[:4]}&api_key={secret}").status_code == 400
    elif way.startswith("login"):
        given = secret if way == "login" else [secret]
        assert tell("POST", "auth/login", {"key": given}).status_code == (401 if way == "login" else 400)
    else:
        said = {"key": f"Bearer {secret}", "scheme": f"{secret} x", "cookie": ""}[way]
        reply = tell("GET", "notifiers", Authorization=said, Cookie=f"certctl-login={secret}")
        assert reply.status_code == 401


WRONG = {
    "a number": lambda secret: {"url": 7, "secret": secret, "authorization": [secret]},
    "no address": lambda secret: {"url": secret, "secret": {"deep": secret}},
    "a header": lambda secret: {"url": CLOSED, "headers": {"X-Key\n": secret}, "secret": secret},
    "unknown keys": lambda secret: {"url": f"{CLOSED}/{secret}", "token": secret, "secrets": [secret]},
    "a list for a text": lambda secret: {"url": f"{CLOSED}/{secret}", "secret": [secret]},
    "a sealed text": lambda secret: {"url": f"{CLOSED}/{secret}", "secret": f"sealed:1:{'0' * 16}:{secret}"},
    "not an object": lambda secret: secret,
    "a list": lambda secret: [secret],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_that_are_refused_or_incomplete_are_not_repeated(tell, canaries, agent, wrong):
    given = WRONG[wrong](canaries.new())
    reply = tell("POST", "notifiers", body("notifiers", f"wrong: {wrong}", "Webhook", given, agent))
    assert reply.status_code in {201, 400}
    good = {"url": f"{CLOSED}/{canaries.new()}"}
    made = tell("POST", "notifiers", body("notifiers", f"right before {wrong}", "Webhook", good, agent)).json()
    tell("PUT", f"notifiers/{made['id']}", {"config": WRONG[wrong](canaries.new())})
    tell("POST", f"notifiers/{made['id']}/test")


@pytest.mark.parametrize("cut", [1, 2, 10], ids=lambda cut: f"{cut} bytes short")
def test_a_body_that_is_no_json_is_not_repeated(tell, canaries, cut):
    text = json.dumps({"name": "broken", "type": "Webhook", "config": {"secret": canaries.new()}})[:-cut]
    assert tell("POST", "notifiers", content=text.encode()).status_code == 400
