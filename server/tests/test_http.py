import asyncio
import contextlib
import hashlib
import json
import logging
import sqlite3
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from certctl_sdk.http import httpx
from certctl_server import app as assembly
from certctl_server import db
from certctl_server.agents.tables import Agent
from certctl_server.app import make_app
from certctl_server.audit.record import Actor, Event
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.keys import create_key
from certctl_server.auth.principal import Req
from certctl_server.auth.roles import OWN_AGENT, Role
from certctl_server.http.asked import is_head, mark_idle
from certctl_server.http.calls import CallLog
from certctl_server.http.client_address import client_address
from certctl_server.http.rate import RateLimiter
from certctl_server.settings import RateLimit, Settings
from litestar import get, post
from litestar.params import FromPath

TEAMS = "/api/v1/teams"


@pytest.fixture
def calls(app):
    async def recorded():
        await app.calls.flush(last=True)
        rows = await AuditEvent.select().where(AuditEvent.resource_type == "api").order_by(AuditEvent.number)
        return [{**row, "details": json.loads(row["details"])} for row in rows]

    return recorded


async def test_every_answer_has_a_new_id_of_ours(client):
    ids = set()
    for path in (TEAMS, "/health", "/api/v1/nothing", "/nowhere", "/api/v1/teams/x"):
        answer = await client.get(path, headers={"X-Request-ID": "mine"})
        ids.add(str(UUID(answer.headers["X-Request-Id"])))
        if answer.status_code >= 400:
            assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert len(ids) == 5


async def test_every_answer_carries_the_security_headers(client, connect):
    for answer in (await client.get(TEAMS), await connect().get(TEAMS), await client.get("/health")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Strict-Transport-Security" not in answer.headers
    secure = await client.get("https://certctl.test/health")
    assert secure.headers["Strict-Transport-Security"] == "max-age=31536000"


async def test_json_ends_with_a_newline(client):
    await client.post(TEAMS, json={"id": "t-1", "name": "x"})
    for path in (TEAMS, f"{TEAMS}/t-1", f"{TEAMS}/t-2", "/health", "/api/v1/health"):
        answer = await client.get(path)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.content.endswith(b"}\n")


@pytest.mark.parametrize("path", ["/api", "/api/v1", "/api/v1/none", "/.well-known/est/x", "/.well-known/pki/x"])
async def test_an_unknown_path_of_the_api_is_a_json_404(connect, path):
    answer = await connect().get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "Not Found")


async def test_a_method_that_is_not_there_is_told_which_are(client):
    answer = await client.patch(f"{TEAMS}/t-1")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, OPTIONS, PUT")
    answer = await client.delete("/api/v1/audit/x")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    answer = await client.post("/health")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_head_is_get_without_the_body(client):
    for path in (TEAMS, "/health", "/api/v1/none"):
        whole, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["Content-Length"] == whole.headers["Content-Length"]


async def test_options_is_answered_before_any_key(connect):
    for path in (TEAMS, "/health", "/anything"):
        answer = await connect().options(path)
        assert (answer.status_code, answer.content) == (204, b"")


async def test_ready_says_whether_the_database_answers(connect):
    assert (await connect().get("/ready")).json() == {"status": "ready"}
    await db.fetch(db.Sql("DELETE FROM migration"))
    assert (await connect().get("/ready")).status_code == 503
    await db.close()
    answer = await connect().get("/ready")
    assert (answer.status_code, answer.json()["error"]) == (503, "Service Unavailable")
    assert (await connect().get("/health")).json() == {"status": "healthy"}


async def test_a_body_over_the_limit_is_not_read(client, settings):
    limit = settings.max_body_size
    fits = json.dumps({"name": "x", "description": ""}).encode()
    assert (await client.post(TEAMS, content=fits.ljust(limit))).status_code == 201
    answer = await client.post(TEAMS, content=fits.ljust(limit + 1))
    assert (answer.status_code, answer.json()["error"]) == (413, "Request Entity Too Large")

    async def unannounced():
        for _ in range(limit // 1024 + 2):
            yield b" " * 1024

    answer = await client.post(TEAMS, content=unannounced())
    assert (answer.status_code, answer.json()["error"]) == (413, "Request Entity Too Large")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 201),
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("Application/JSON", 201),
        ("application/merge-patch+json", 201),
        ("application/x-www-form-urlencoded", 201),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
async def test_bodies_are_json(client, content_type, status):
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await client.post(TEAMS, content=b'{"name": "x"}', headers=headers)
    assert answer.status_code == status


async def test_a_form_that_is_no_json_is_refused(client):
    answer = await client.post(TEAMS, data={"name": "x"})
    assert (answer.status_code, answer.json()["error"]) == (415, "Unsupported Media Type")


async def test_a_client_that_goes_away_amid_its_body_is_no_fault_of_ours(app, database):
    _, key = await create_key("ada", Role.ADMIN)
    heard = iter([{"type": "http.request", "body": b'{"name":', "more_body": True}])
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": TEAMS, "raw_path": TEAMS.encode(), "root_path": "", "query_string": b"", "client": ("192.0.2.1", 1),
        "server": ("certctl.test", 80),
        "headers": [(b"host", b"certctl.test"), (b"authorization", f"Bearer {key}".encode())],
    }  # fmt: skip
    said = []

    async def receive():
        return next(heard, {"type": "http.disconnect"})

    async def send(message):
        said.append(message)

    await app(scope, receive, send)
    assert said[0]["status"] == 400


async def test_get_may_carry_any_content_type(client):
    assert (await client.get(TEAMS, headers={"Content-Type": "text/plain"})).status_code == 200


@pytest.mark.parametrize("path", [f"{TEAMS}/a%00b", f"{TEAMS}?name=%00", f"{TEAMS}?%00=1", f"{TEAMS}?sort=%ff"])
async def test_nul_and_what_is_no_text_are_refused(client, path):
    assert (await client.get(path)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/agents/ag-1/work?foo=1"),
        ("GET", f"{TEAMS}/t-1?foo=1"),
        ("GET", f"{TEAMS}?foo=1"),
        ("POST", f"{TEAMS}?foo=1"),
        ("DELETE", f"{TEAMS}/t-1?foo=1&_=2"),
        ("GET", "/api/v1/auth/info?foo=1"),
    ],
)
async def test_parameters_that_a_route_does_not_know_are_refused(client, method, path):
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["details"]) == (400, [{"field": "foo", "message": "is unknown"}])


async def test_a_cache_buster_is_no_parameter(client):
    assert (await client.get("/api/v1/auth/check?_=1")).status_code == 200


async def test_a_refused_path_is_in_the_trail_all_the_same(client, calls):
    await client.get(f"{TEAMS}/a%00b")
    [row] = await calls()
    assert (row["resource_id"], row["details"]["status"]) == (f"{TEAMS}/a\ufffdb", 400)


async def test_ignored_keys_are_named(client):
    answer = await client.post(TEAMS, json={"name": "x", "colour": 1, "size": 2, "created_at": "x"})
    assert (answer.status_code, answer.headers["X-Certctl-Ignored-Fields"]) == (201, "colour,size")
    assert "X-Certctl-Ignored-Fields" not in (await client.get(TEAMS)).headers


async def test_other_origins_are_let_in_by_name_only(ctx, connect):
    listed = {"Origin": "https://dash.example"}
    assert "Access-Control-Allow-Origin" not in (await connect().get(TEAMS, headers=listed)).headers
    for path in ("/health", "/ready", "/api/v1/auth/info"):
        assert (await connect().get(path)).headers["Access-Control-Allow-Origin"] == "*"


class TestWithOrigins:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(data_dir=tmp_path, cors_origins="https://dash.example,https://b.example")

    async def test_a_listed_origin_is_echoed_and_others_are_not(self, connect):
        answer = await connect().get(TEAMS, headers={"Origin": "https://dash.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"
        assert answer.headers["Vary"] == "Origin"
        answer = await connect().get(TEAMS, headers={"Origin": "https://dash.example.evil"})
        assert "Access-Control-Allow-Origin" not in answer.headers

    async def test_preflight_says_what_is_allowed(self, connect):
        answer = await connect().options(TEAMS, headers={"Origin": "https://b.example"})
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, PUT, DELETE, PATCH, OPTIONS"
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type, Authorization, X-Request-ID"
        assert answer.headers["Access-Control-Max-Age"] == "86400"
        answer = await connect().options(TEAMS, headers={"Origin": "https://c.example"})
        assert (answer.status_code, "Access-Control-Allow-Methods" in answer.headers) == (204, False)


class TestUnderARateLimit:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(data_dir=tmp_path, rate_limit=RateLimit(rps=0.1, burst=3))

    async def test_who_goes_too_fast_is_told_when_to_go_on(self, client):
        for _ in range(3):
            assert (await client.get(TEAMS)).status_code == 200
        answer = await client.get(TEAMS)
        assert (answer.status_code, answer.json()["message"]) == (429, "Rate limit exceeded")
        assert 1 <= int(answer.headers["Retry-After"]) <= 10

    async def test_one_caller_does_not_slow_another(self, client, connect):
        for _ in range(4):
            await client.get(TEAMS)
        assert (await connect().get(TEAMS)).status_code == 401

    async def test_wrong_keys_count_against_the_address(self, connect):
        statuses = [(await connect(f"guess-{n}").get(TEAMS)).status_code for n in range(5)]
        assert statuses == [401, 401, 401, 429, 429]

    async def test_calls_that_lead_nowhere_count_against_the_address(self, connect, settings):
        statuses = [
            (await connect().get("/api/v1/none")).status_code,
            (await connect().patch(TEAMS)).status_code,
            (await connect().get(f"{TEAMS}/a%00b")).status_code,
            (await connect().get("/api/v1/none")).status_code,
            (await connect().post(TEAMS, content=b" " * (settings.max_body_size + 1))).status_code,
        ]
        assert statuses == [404, 405, 400, 429, 429]
        answer = await connect().get("/api/v1/none")
        assert (answer.json()["message"], int(answer.headers["Retry-After"]) > 0) == ("Rate limit exceeded", True)
        assert (await connect().get(TEAMS)).status_code == 429

    async def test_calls_that_lead_nowhere_are_one_row_an_address_and_minute(self, connect, calls):
        long = "/api/v1/" + "x" * 50_000
        for _ in range(5):
            await connect().get(long)
        [row] = await calls()
        minute = row["details"].pop("minute")
        assert row["details"] == {
            "method": "GET",
            "path": long[:512],
            "status": 404,
            "remote_addr": "127.0.0.1",
            "calls": 5,
        }
        assert (row["actor"], row["action"], row["resource_id"]) == ("anonymous", "api_refused", long[:255])
        assert datetime.fromisoformat(f"{minute}:00Z")

    async def test_a_path_outside_the_api_that_nobody_answers_counts_too(self, connect):
        assert [(await connect().get("/nowhere")).status_code for _ in range(4)] == [404, 404, 404, 429]

    async def test_liveness_is_never_limited(self, connect):
        for path in ("/health", "/ready"):
            assert {(await connect().get(path)).status_code for _ in range(6)} == {200}


def test_a_bucket_refills_with_time():
    now = [0.0]
    limiter = RateLimiter(2, 3, lambda: now[0])
    assert [limiter.wait("a") for _ in range(3)] == [0, 0, 0]
    wait = limiter.wait("a")
    assert wait == pytest.approx(0.5, abs=1e-3)
    now[0] += wait
    assert limiter.wait("a") == 0
    assert limiter.wait("a") > 0
    now[0] += 60
    assert [limiter.wait("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_full_buckets_are_forgotten():
    now = [0.0]
    limiter = RateLimiter(1, 1, lambda: now[0])
    for number in range(10_000):
        limiter.wait(str(number))
    now[0] += 10
    limiter.wait("one more")
    assert len(limiter) == 1


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("10.0.0.1", "6.6.6.6, <script>", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("9.9.9.9", "1.2.3.4", "9.9.9.9"),
        ("::1", "1.2.3.4", "::1"),
    ],
    ids=["one proxy", "forged part", "only proxies", "no address", "no header", "untrusted peer", "other family"],
)
def test_only_trusted_proxies_say_whom_they_speak_for(peer, forwarded, found):
    scope = {"client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
    assert client_address(scope, Settings(trusted_proxies="10.0.0.0/8").trusted_proxies) == found
    assert client_address(scope, ()) == peer


async def test_every_call_is_written_down(client, connect, calls):
    body = b'{"name": "x"}'
    made = await client.post(f"{TEAMS}?_=b", content=body)
    await client.get(f"{TEAMS}?page=1")
    await client.head(TEAMS)
    await connect().get(TEAMS)
    for path in ("/health", "/ready", "/api/v1/health", "/api/v1/crl", "/api/v1/ocsp/a/1", "/.well-known/pki/crl/x"):
        await client.get(path)
    await client.options(TEAMS)
    post, get, head, refused = await calls()
    assert (post["actor"], post["actor_type"], post["action"], post["resource_id"]) == (
        "ada",
        "User",
        "api_post",
        TEAMS,
    )
    assert post["request_id"] == made.headers["X-Request-Id"]
    assert post["details"].pop("latency_ms") > 0
    assert post["details"] == {
        "method": "POST",
        "path": TEAMS,
        "body_hash": hashlib.sha256(body).hexdigest(),
        "status": 201,
        "remote_addr": "127.0.0.1",
    }
    assert (get["action"], get["details"]["body_hash"]) == ("api_get", "")
    assert (head["action"], head["details"]["method"]) == ("api_get", "HEAD")
    assert (refused["actor"], refused["details"]["status"]) == ("anonymous", 401)


async def test_polls_that_find_nothing_are_one_row_an_hour(ctx, monkeypatch):
    @get("/api/v1/agents/{id:str}/work", opt={"roles": OWN_AGENT, "query": {"empty"}})
    async def work(request: Req, id: FromPath[str]) -> dict[str, bool]:
        if "empty" in request.query_params:
            mark_idle(request)
        return {"head": is_head(request)}

    @post("/api/v1/agents/{id:str}/heartbeat", opt={"roles": OWN_AGENT}, status_code=200)
    async def beat(id: FromPath[str]) -> None: ...

    monkeypatch.setattr(assembly, "ROUTES", [work, beat])
    app = make_app(ctx)
    now = ctx.clock()
    await Agent.insert(Agent(id="ag-1", name="a", hostname="h", registered_at=now, created_at=now, updated_at=now))
    _, key = await create_key("x", Role.AGENT, agent_id="ag-1")
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x", headers=headers) as agent:
        for _ in range(3):
            await agent.post("/api/v1/agents/ag-1/heartbeat")
            await agent.get("/api/v1/agents/ag-1/work?empty=1")
        assert (await agent.get("/api/v1/agents/ag-1/work")).json() == {"head": False}
        assert (await agent.head("/api/v1/agents/ag-1/work")).headers["Content-Length"] == str(len('{"head":true}\n'))
    await app.calls.flush()
    rows = await AuditEvent.select(AuditEvent.resource_id, AuditEvent.actor).order_by(AuditEvent.number)
    assert [row["resource_id"].rpartition("/")[2] for row in rows] == ["heartbeat", "work", "work", "work"]
    assert {row["actor"] for row in rows} == {"ag-1"}


def _called(address, path="/x"):
    details = {"method": "GET", "path": path, "status": 404, "remote_addr": address}
    return Event(Actor("anonymous"), "api_get", "api", path, details)


async def test_strangers_never_push_out_calls_with_a_key(database):
    log = CallLog(timedelta(seconds=1))
    for number in range(40_000):
        log.add_stranger(_called(f"10.0.{number % 3}.1"))
    for number in range(2_000):
        log.count(_called(f"10.1.{number // 250}.{number % 250}"))
    for _ in range(10_000):
        log.add(Event(Actor("ada"), "api_get", "api", "/y"))
    await log.flush(last=True)
    await log.flush(last=True)
    rows = await AuditEvent.select(AuditEvent.actor, AuditEvent.action, AuditEvent.details)
    assert sum(row["actor"] == "ada" for row in rows) == 10_000
    assert sum(row["action"] == "api_get" for row in rows if row["actor"] == "anonymous") == 5_000
    counted = {told["remote_addr"]: told["calls"] for row in rows if (told := json.loads(row["details"])).get("calls")}
    assert (len(counted), sum(counted.values())) == (1_001, 37_000)


async def test_calls_that_wait_are_written_when_the_server_stops(app, client, calls):
    async with app.calls.running():
        await client.get(TEAMS)
        await asyncio.sleep(0)
    assert await AuditEvent.count().where(AuditEvent.action == "api_get") == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("patience", "written"), [(30, 1), (1, 0)], ids=["back in time", "too late"])
async def test_a_server_that_stops_waits_for_a_database_that_takes_no_rows(
    database, tmp_path, caplog, patience, written
):
    await db.fetch(db.Sql("PRAGMA busy_timeout=20"))
    log = CallLog(timedelta(seconds=patience))
    with contextlib.closing(sqlite3.connect(tmp_path / "test.db", check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(2, other.rollback)
        async with log.running():
            log.add(Event(Actor("ada"), "api_get", "api", "/y"))
        await asyncio.sleep(max(0, 2.2 - patience))
    assert await AuditEvent.count() == written
    assert ("calls not recorded" in caplog.text) is not bool(written)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_calls_wait_while_the_database_takes_none(app, client, database, tmp_path):
    await db.fetch(db.Sql("PRAGMA busy_timeout=20"))
    await client.get(TEAMS)
    with contextlib.closing(sqlite3.connect(tmp_path / "test.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        await app.calls.flush()
        other.rollback()
    assert await AuditEvent.count().where(AuditEvent.action == "api_get") == 0
    await app.calls.flush()
    assert await AuditEvent.count().where(AuditEvent.action == "api_get") == 1


async def test_the_access_log_tells_the_route_and_no_secret(client, caplog):
    with caplog.at_level(logging.INFO, "certctl_server.access"):
        await client.get(f"{TEAMS}/t-1?_=hunter2", headers={"X-Request-ID": "mine"})
    [line] = [record for record in caplog.records if record.name == "certctl_server.access"]
    assert (line.route, line.method, line.status, line.actor) == (f"{TEAMS}/{{id}}", "GET", 404, "ada")
    assert line.client_request == "mine"
    assert "hunter2" not in str(vars(line))


async def test_mounts_and_pages_answer_what_is_theirs(ctx, connect, client):
    async def said(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    app = make_app(ctx, mounts={"/.well-known/pki/crl/": said}, pages=said)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as other:
        assert (await other.get("/.well-known/pki/crl/a")).text == "/.well-known/pki/crl/a"
        page = await other.get("/dashboard")
        assert (page.text, "default-src" in page.headers["Content-Security-Policy"]) == ("/dashboard", True)
        assert (await other.get("/api/v1/nothing")).status_code == 404
