"""Whatever is sent to a real server: a clear refusal or what was meant, never a fault, never half of it written."""

import contextlib
import gzip
import json
import socket
import sqlite3
import threading
import time
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from certctl_sdk.http import httpx
from certctl_sdk.testing.fake_ca import csr_pem
from certctl_server.listeners import HEADER_BYTES, HEADER_SECONDS, READ_SECONDS
from certctl_server.tables import TABLES
from certctl_server.tally import AMISS
from server_flow import routes

MARK = "forged-by-a-stranger"
FORGED = json.dumps({"event": MARK, "level": "error"})
#: What changes by itself, or because somebody called at all.
MOVING = {"audit_event", "audit_checkpoint", "api_key", "lane", "lease", "loop_beat", "setting", "tally", "tally_delta"}
#: They answer 503 to a request that is right while the connector they need is not installed.
LACKING = ("/digest/send", "/scan")
UNREADABLE = {
    "cut short": b'{"name": "x"',
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"7",
    "null": b"null",
    "two objects": b'{"name": "x"} {"name": "y"}',
    "a comment": b'{"name": "x"} // really',
    "not a number": b'{"name": NaN}',
    "infinite": b'{"name": Infinity}',
    "single quotes": b"{'name': 'x'}",
    "a byte order mark": b'\xef\xbb\xbf{"name": "x"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "half a surrogate pair": b'{"name": "\\ud800"}',
    "a surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "a raw control character": b'{"name": "a\x01b"}',
    "NUL": b'{"name": "a\\u0000b"}',
    "NUL in a key": b'{"na\\u0000me": "x"}',
    "deep objects": b'{"config":' * 50_000 + b"1" + b"}" * 50_000,
    "bottomless lists": b'{"config": ' + b"[" * 500_000,
    "deep enough to matter": b'{"config": ' + b"[" * 64 + b"]" * 64 + b"}",
    "too long": b'{"name": "' + b"x" * 1_048_576 + b'"}',
}
VALUES = {
    "a flag": True,
    "a number": 7,
    "a negative number": -1,
    "beyond 32 bits": 2**31,
    "beyond 64 bits": 2**64,
    "a fraction": 1.5,
    "a huge number": 1e308,
    "a list": [],
    "an object": {},
    "nothing in a list": [None],
    "a list in a list": [["x"]],
    "deep": {"a": [{"b": [1, None, {"c": "x"}]}]},
    "a long text": "y" * 9_000,
    "a long list": ["z"] * 1_000,
    "a query object": {"$ne": "", "$gt": 0},
}
TEXTS = {
    "SQL, quoted": "x' OR '1'='1' --",
    "SQL, stacked": "x'; DROP TABLE certificate; --",
    "SQL, union": '") UNION SELECT digest, name FROM api_key --',
    "SQL, parameters": "$1 ?1 :name %s {0} {ids:$1} {now} {C}",
    "SQL, patterns": "%_\\'\"`",
    "a template": "{{7*7}}${7*7}#{7*7}<%= 7*7 %>",
    "a path": "../../../../etc/passwd",
    "a command": "$(touch /tmp/owned)`id`|id;id&&id",
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a formula": "=cmd|' /C calc'!A0",
    "a lookup": "${jndi:ldap://127.0.0.1/a}",
    "a format": "%n%s%x%d%p{}{0.__class__}",
    "a JSON line": FORGED,
    "other scripts": "\u0430\u0440\u0440\u04cf\u0435 \u4f8b\u3048 \U0001f512",
    "combining characters": "Z\u0351\u036b\u0343a\u030a\u0301" * 8,
}
UNSEEN = {
    "a line end": f"a\r\n{FORGED}",
    "an escape sequence": f"a\x1b[2J\x1b]0;{MARK}\x07",
    "turned around": "a\u202eb",
    "without width": "a\u200bb",
    "a line separator": "a\u2028b",
    "a tag": "a\U000e0041b",
    "a C1 control": "a\x9bb",
}
NAMES = {
    "p\u0430ypal.example": "xn--pypal-4ve.example",
    "m\u00fcnchen.example": "xn--mnchen-3ya.example",
    "fa\u00df.example": "xn--fa-hia.example",
    "\uff25\uff38.example": "ex.example",
    "\u24d4xample.example": "example.example",
    "\u212aelvin.example": "kelvin.example",
    "a\u3002example": "a.example",
    "*.\u0430.example": "*.xn--80a.example",
    "XN--PYPAL-4VE.example": "xn--pypal-4ve.example",
}
NO_NAMES = [
    *("xn--a.example", "xn--.example", "xn--n3h.example", "\U0001f600.example", "1\u20442.example", "\u2100.example"),
    *("a\u200db.example", "a\u202eb.example", "a\u00a0b.example", "ex\u00adample.example", "a.\u0301b.example"),
    *(
        "-a.example",
        "a-.example",
        "a..example",
        ".example",
        "a b.example",
        "a%00.example",
        "a\r\nb.example",
        "*",
        "a.*",
    ),
    *("x" * 64 + ".example", ".".join(["x" * 60] * 5), "http://a.example/", "a@b.example", "256.1.1.1", "<b>.example"),
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request, stage):
    """A server; after all of it every row of its audit trail is as it was written, and every total is right."""
    url = request.getfixturevalue("postgres").create("hostile") if request.param == "postgres" else ""
    form = "text" if url else "json"
    server = stage.server(database_url=url, CERTCTL_RATE_LIMIT_ENABLED="false", CERTCTL_LOG_FORMAT=form).start()
    yield server
    stage.run(server, "certctl-server", "audit", "verify")
    amiss = AMISS.text(request.param)
    if url:
        assert request.getfixturevalue("postgres").run(amiss, database="hostile") == ""
    else:
        with sqlite3.connect(f"file:{server.data_dir}/certctl.db?mode=ro", uri=True) as database:
            assert database.execute(amiss).fetchall() == []
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    assert not Path("/tmp/owned").exists()


@pytest.fixture(scope="module")
def machine(server):
    """An agent's key and the ids of what is the agent's."""
    return server.post("agents", {"id": "ag-h", "name": "ag-h", "hostname": "h.example"})["api_key"]


@pytest.fixture(scope="module")
def there(server, machine):
    """The id of something real of every kind, by the first part of a path."""
    found = {"agents": "ag-h", "teams": "t-h", "owners": "o-h"}
    server.post("teams", {"id": "t-h", "name": "h"})
    server.post("owners", {"id": "o-h", "name": "h", "team_id": "t-h"})
    target = {"name": "h", "type": "NGINX", "agent_id": "ag-h", "config": {}}
    found["targets"] = server.post("targets", target)["id"]
    found["profiles"] = server.post("profiles", {"name": "h"})["id"]
    found["renewal-policies"] = server.post("renewal-policies", {"name": "h"})["id"]
    found["agent-groups"] = server.post("agent-groups", {"name": "h"})["id"]
    found["notifiers"] = server.post("notifiers", {"name": "h", "type": "Webhook", "config": {}})["id"]
    ranges = {"name": "h", "cidrs": ["127.0.0.0/30"]}
    found["network-scan-targets"] = server.post("network-scan-targets", ranges)["id"]
    found |= {"issuers": "iss-local", "policies": "pr-require-owner"}
    found["certificates"] = server.order("h.example", found["targets"])["id"]
    found["jobs"] = server.until("jobs", lambda page: page["total"], "the order")["data"][0]["id"]
    entry = {"fingerprint_sha256": "ab" * 32, "common_name": "f.example", "source_path": "/f.pem"}
    with server.client(machine) as agent:
        report = {"directories": ["/f"], "certificates": [entry]}
        assert agent.post("/api/v1/agents/ag-h/discoveries", json=report).status_code == 202
    [seen] = server.get("discovered-certificates")["data"]
    return found | {"discovered-certificates": seen["id"], "auth": "none", "notifications": "none", "audit": "none"}


@pytest.fixture
def rows(server, request):
    """Every row of every table that changes by calls alone."""

    def read():
        names = [table._meta.tablename for table in TABLES if table._meta.tablename not in MOVING]
        if not server.environ.get("CERTCTL_DATABASE_URL"):
            with sqlite3.connect(f"file:{server.data_dir}/certctl.db?mode=ro", uri=True) as database:
                return {name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for name in names}
        cluster = request.getfixturevalue("postgres")
        query = " UNION ALL ".join(f"SELECT '{name} ' || r::text FROM {name} r" for name in names)
        return sorted(cluster.run(query, database="hostile").splitlines())

    return read


class Caller:
    """Calls the API in a way of its own, and lets no fault pass."""

    def __init__(self, http):
        self._http = http
        self.count = 0

    def __call__(self, method, path, content=b"", **headers):
        self.count += 1
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        answer = self._http.request(method, path, content=content, headers=sent)
        told = f"{method} {path[:200]} {content[:100]!r} {headers}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code < 500 or (answer.status_code == 503 and path.endswith(LACKING)), told
        if answer.status_code >= 400 and method != "HEAD":
            assert {"error", "message", "request_id"} <= answer.json().keys(), told
            assert len(answer.content) < 100_000, told
        return answer


@pytest.fixture
def call(server):
    with server.client(server.key) as http:
        yield Caller(http)


@pytest.fixture
def call_as_agent(server, machine):
    with server.client(machine) as http:
        yield Caller(http)


@pytest.fixture(autouse=True)
def alive(server):
    """After each test it serves, has told of no fault, and nobody wrote a line of its log."""
    told = len(server.said)
    yield
    assert server.ready()
    assert server.running
    lines = server.said[told:].splitlines()
    if server.environ["CERTCTL_LOG_FORMAT"] == "text":
        assert [line for line in lines if not line.startswith("[") or "internal error" in line] == []
    else:
        events = [json.loads(line) for line in lines]
        assert [each for each in events if each["event"] in {"internal error", MARK} or "exception" in each] == []


#: Actions that look at no body; with one that cannot be read they do what they are told all the same.
BODILESS = ("cancel", "retry", "test", "read", "rotate", "rotate-key", "logout", "heartbeat")
AGENTS_OWN = ("csr", "discoveries", "status", "verify", "heartbeat")


def readers():
    """Every route that reads a body."""
    found = [route for route in routes() if route.method in {"POST", "PUT"} and "/members/" not in route.path]
    return [route for route in found if route.path.rpartition("/")[2] not in BODILESS]


def place(route, there):
    kind = route.path.split("/")[3]
    return route.at(id=there.get(kind, "none"), job_id=there["jobs"], certificate_id=there["certificates"])


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_body_that_cannot_be_read_is_refused_and_changes_nothing(call, call_as_agent, there, rows, body):
    before = rows()
    for route in readers():
        caller = call_as_agent if route.path.rpartition("/")[2] in AGENTS_OWN else call
        answer = caller(route.method, place(route, there), UNREADABLE[body])
        allowed = {400, 404} if "job_id" in route.path or "jobs/{id}/verify" in route.path else {400}
        assert answer.status_code in ({413} if body == "too long" else allowed), (route, answer.text)
    assert call.count + call_as_agent.count > 30
    assert rows() == before


def fields():
    """Every key that a body of ours may have."""
    found, waiting = set(), [msgspec.Struct]
    while waiting:
        struct = waiting.pop()
        waiting += struct.__subclasses__()
        if struct.__module__.startswith("certctl_server."):
            found |= {field.encode_name for field in msgspec.structs.fields(struct)}
    return sorted(found)


@pytest.mark.parametrize("value", VALUES)
def test_values_of_the_wrong_type_are_refused_one_and_all(call, call_as_agent, there, value):
    names = fields()
    assert len(names) > 60
    for route in readers():
        caller = call_as_agent if route.path.rpartition("/")[2] in AGENTS_OWN else call
        for body in (
            dict.fromkeys(names, VALUES[value]),
            {"name": "x", "config": VALUES[value], "sans": VALUES[value]},
        ):
            answer = caller(route.method, place(route, there), json.dumps(body).encode())
            assert answer.status_code != 413, "too long to be looked at"


def made_of(text, there):
    """A body for every kind that people name things in, with ``text`` wherever any text may be."""
    named = {"name": text}
    return {
        "teams": named | {"description": text},
        "owners": named | {"team_id": there["teams"]},
        "profiles": named | {"description": text},
        "renewal-policies": named,
        "agent-groups": named | {"description": text, "match_os": text[:60]},
        "notifiers": named | {"type": "Webhook", "config": {"url": text, "secret": text, text: text}},
        "issuers": named | {"type": "GenericCA", "config": {text: text}},
        "targets": named | {"type": "NGINX", "agent_id": there["agents"], "config": {"cert_path": text, text: [text]}},
        "policies": named | {"type": "AllowedDomains", "config": {"allowed": [text], text: text}},
        "network-scan-targets": named | {"cidrs": ["192.0.2.0/24", text]},
        "auth/keys": named | {"role": "viewer"},
        "agents/tokens": named,
        "agents": named | {"hostname": text, "os": text[:60]},
        "certificates": named
        | {"common_name": "h.example", "issuer_id": "iss-local", "owner_id": there["owners"], "team_id": there["teams"]}
        | {"environment": text[:50], "tags": {text: text}},
    }


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text_wherever_it_is_stored(call, there, text):
    """What a person may call a thing comes back as it was, and nothing else happens."""
    said = TEXTS[text]
    for path, body in made_of(said, there).items():
        answer = call("POST", f"/api/v1/{path}", json.dumps(body).encode())
        assert answer.status_code in {201, 400}, (path, answer.text)
        if answer.status_code == 201:
            made = answer.json()
            assert made["name"] == said
            if path not in {"auth/keys", "agents/tokens"}:
                assert call("GET", f"/api/v1/{path}/{made['id']}").json()["name"] == said
            if path != "agents":
                call("DELETE", f"/api/v1/{path}/{made['id']}")
    assert call("POST", "/api/v1/teams", json.dumps({"name": f"once more {said}"[:255]}).encode()).status_code == 201


@pytest.mark.parametrize("text", UNSEEN)
def test_text_that_does_not_show_is_refused_in_names(call, there, rows, text):
    before = rows()
    for path, body in made_of(UNSEEN[text], there).items():
        answer = call("POST", f"/api/v1/{path}", json.dumps(body).encode())
        assert answer.status_code == 400, (path, answer.text)
        assert "name" in [each["field"] for each in answer.json()["details"]]
    assert rows() == before


@pytest.mark.parametrize("text", [*TEXTS, *UNSEEN])
def test_paths_queries_and_headers_are_text_too(call, rows, text):
    before = rows()
    said = (TEXTS | UNSEEN)[text]
    inside = quote(said, safe="")
    for route in routes():
        if route.method == "GET" and "{" in route.path:
            call("GET", route.path.replace("{id}", inside).replace("{certificate_id}", inside))
        elif route.method == "GET":
            for name in ("q", "name", "status", "sort", "cursor", "created_before", inside):
                call("GET", f"{route.path}?{name}={inside}")
    raw = bytes(byte for byte in said.encode() if byte >= 32)  # a head with others is none
    for name in ("X_Request_ID", "User_Agent", "Content_Type", "Cookie", "Origin", "traceparent", "X_Forwarded_For"):
        call("GET", "/api/v1/teams", **{name: raw})
    for scheme in (b"Bearer ", b"Basic ", b""):
        assert call("GET", "/api/v1/teams", Authorization=scheme + raw).status_code == 401
    assert rows() == before


@pytest.mark.parametrize(("name", "stored"), NAMES.items(), ids=map(ascii, NAMES))
def test_a_name_in_another_script_is_kept_as_what_it_really_says(call, there, name, stored):
    owned = {"issuer_id": "iss-local", "owner_id": there["owners"], "team_id": there["teams"]}
    answer = call("POST", "/api/v1/certificates", json.dumps({"common_name": name, "sans": [name], **owned}).encode())
    assert (answer.status_code, answer.json()["common_name"], answer.json()["sans"]) == (201, stored, [stored])


def test_what_is_no_name_is_refused_and_nothing_is_ordered(call, there, rows):
    before = rows()
    owned = {"issuer_id": "iss-local", "owner_id": there["owners"], "team_id": there["teams"]}
    for name in NO_NAMES:
        answer = call("POST", "/api/v1/certificates", json.dumps({"common_name": name, **owned}).encode())
        assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "common_name"), name
    assert rows() == before


def test_a_csr_that_is_none_reaches_no_order(call_as_agent, there, rows):
    before = rows()
    good = csr_pem("h.example")
    wrong = ["", "x", good[:-40], good.replace("A", "B", 5), good * 50, "-----BEGIN CERTIFICATE REQUEST-----\n" * 1000]
    for pem in [*wrong, good.replace("CERTIFICATE REQUEST", "PRIVATE KEY"), "A" * 60_000]:
        body = {"csr_pem": pem, "certificate_id": there["certificates"]}
        assert call_as_agent("POST", "/api/v1/agents/ag-h/csr", json.dumps(body).encode()).status_code in {400, 404}
    after = rows()
    if isinstance(after, dict):  # the fault is told with the order
        before.pop("job"), after.pop("job")
        assert after == before


def exchange(server, sent, seconds=10):
    """What is answered to these bytes until the server closes or says no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        found = b""
        try:
            connection.sendall(sent)
            while part := connection.recv(65_536):
                found += part
        except OSError:  # cut off while we spoke
            pass
        return found


CLOSE = b"Host: h\r\nConnection: close\r\n"
SMUGGLED = b"GET /api/v1/auth/info HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
RAW = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n",
    "a method that is none": b"G\x00T / HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\n" + CLOSE + b"\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nX-A: a\x00b\r\n" + CLOSE + b"\r\n",
    "a header without a name": b"GET /health HTTP/1.1\r\n: a\r\n" + CLOSE + b"\r\n",
    "a space before the colon": b"GET /health HTTP/1.1\r\nContent-Length : 4\r\n" + CLOSE + b"\r\n",
    "two lengths": b"POST /api/v1/auth/login HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 70\r\n"
    + CLOSE
    + b"\r\n{}"
    + SMUGGLED,
    "length and chunks": b"POST /api/v1/auth/login HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    + CLOSE
    + b"\r\n0\r\n\r\n"
    + SMUGGLED,
    "a length that is none": b"POST /api/v1/auth/login HTTP/1.1\r\nContent-Length: +2\r\n" + CLOSE + b"\r\n{}",
    "a negative length": b"POST /api/v1/auth/login HTTP/1.1\r\nContent-Length: -2\r\n" + CLOSE + b"\r\n{}",
    "a chunk that is none": b"POST /api/v1/auth/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    + CLOSE
    + b"\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "a huge chunk": b"POST /api/v1/auth/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    + CLOSE
    + b"\r\nffffffffffffffff\r\n{}",
}


@pytest.mark.parametrize("sent", RAW)
def test_what_is_no_request_gets_one_refusal_and_nothing_that_hides_in_it(server, rows, sent):
    before = rows()
    answer = exchange(server, RAW[sent], READ_SECONDS + 5)
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert b"auth_type" not in answer
    assert answer == b"" or answer.split()[1] in {b"400", b"401", b"413", b"501"}
    assert rows() == before


def memory(server):
    """The server's resident memory in MiB."""
    [line] = [each for each in Path(f"/proc/{server.pid}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("shape", ["one header", "many headers", "the path", "trailers"])
def test_ten_megabytes_of_head_are_cut_off_early(server, rows, shape):
    stored, before = rows(), memory(server)
    size = 10 * 1024 * 1024
    start = b"GET /api/v1/auth/info HTTP/1.1\r\n" + CLOSE
    sent = {
        "one header": start + b"X-A: " + b"a" * size,
        "many headers": start + b"X-A: aaaaaaaaaa\r\n" * (size // 17),
        "the path": b"GET /" + b"a" * size,
        "trailers": b"POST /api/v1/auth/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        + CLOSE
        + b"\r\n0\r\n"
        + b"X-A: aaaaaaaaaa\r\n" * (size // 17),
    }[shape]
    assert len(sent) > 100 * HEADER_BYTES
    answer = exchange(server, sent)
    assert answer == b"" or answer.split()[1] == b"400"
    assert memory(server) - before < 8
    assert rows() == stored


TEAM = b'{"name": "half", "description": "'
CHUNK = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
BODIES = {
    "a long one": (b"Content-Length: 67108864\r\n", TEAM + b"x" * 67_108_800),
    "one without end": (b"Transfer-Encoding: chunked\r\n", b"21\r\n" + TEAM + b"\r\n" + CHUNK * 1_024),
    "a packed one": (b"Content-Encoding: gzip\r\n", gzip.compress(TEAM + b"x" * 67_108_864 + b'"}')),
    "half of one": (b"Content-Length: 1000\r\n", TEAM),
    "half of one, in chunks": (b"Transfer-Encoding: chunked\r\n", b"21\r\n" + TEAM + b"\r\n"),
}


@pytest.mark.parametrize("body", BODIES)
def test_of_a_body_that_is_too_long_or_not_whole_nothing_is_written(server, rows, body):
    stored, before = rows(), memory(server)
    head, sent = BODIES[body]
    if b"Encoding: gzip" in head:
        head += b"Content-Length: %d\r\n" % len(sent)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection, contextlib.suppress(OSError):
        asked = b"POST /api/v1/teams HTTP/1.1\r\nContent-Type: application/json\r\nHost: h\r\n" + head
        connection.sendall(asked + b"Authorization: Bearer " + server.key.encode() + b"\r\n\r\n" + sent)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65_536)
        assert answer == b"" or answer.split()[1] in {b"400", b"413", b"415"}
    time.sleep(0.2)
    assert memory(server) - before < 16
    assert rows() == stored


def test_clients_that_dribble_are_let_go_while_others_are_served(server, rows):
    """Slow heads and slow bodies, two hundred of them."""
    before = rows()
    head = b"GET /api/v1/auth/info HTTP/1.1\r\nHost: h\r\nX-A: "
    body = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{"
    slow = {}
    for number in range(200):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        connection.sendall(body if number % 2 else head)
        slow[connection] = number % 2
    over, waits = threading.Event(), []

    def dribble():
        while not over.wait(0.5):
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.send(b" ")

    thread = threading.Thread(target=dribble)
    thread.start()
    began, ended = time.monotonic(), {}
    try:
        while time.monotonic() - began < READ_SECONDS + 5 and len(ended) < len(slow):
            asked = time.monotonic()
            assert httpx.get(f"{server.url}/api/v1/auth/info").status_code == 200
            waits.append(time.monotonic() - asked)
            for connection in slow.keys() - ended.keys():
                if _is_over(connection):
                    ended[connection] = time.monotonic() - began
            time.sleep(0.2)
    finally:
        over.set()
        thread.join()
        for connection in slow:
            connection.close()
    assert len(ended) == len(slow)
    assert max(ended[each] for each in slow if not slow[each]) < HEADER_SECONDS + 4
    assert max(ended.values()) < READ_SECONDS + 4
    assert sorted(waits)[len(waits) // 2] < 0.25
    assert max(waits) < 2
    assert rows() == before


def _is_over(connection):
    connection.settimeout(0)
    try:
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
