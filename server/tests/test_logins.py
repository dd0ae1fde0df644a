from datetime import timedelta

import pytest
from certctl_sdk.http import httpx
from certctl_server.agents.tables import Agent
from certctl_server.app import make_app
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.keys import create_key, digest, end_key, rotate_key
from certctl_server.auth.roles import Role
from certctl_server.auth.tables import Login
from certctl_server.http.client_address import is_encrypted
from certctl_server.settings import Auth, Server, Settings
from server_flow import routes

LOGIN, LOGOUT, ME, TEAMS = "/api/v1/auth/login", "/api/v1/auth/logout", "/api/v1/auth/me", "/api/v1/teams"
COOKIE = "certctl-login"


@pytest.fixture
async def log_in(connect):
    """Make a browser that logged in with a key, which says its CSRF token by itself."""
    browsers = []

    async def logged_in(key):
        browsers.append(browser := connect())
        answer = await browser.post(LOGIN, json={"key": key})
        assert answer.status_code == 200, answer.text
        browser.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        return browser

    yield logged_in
    for browser in browsers:
        await browser.aclose()


@pytest.fixture
async def operator(log_in):
    """A browser in which an operator logged in."""
    return await log_in((await create_key("bo", Role.OPERATOR))[1])


async def status(browser, path=ME):
    return (await browser.get(path)).status_code


async def events(action):
    return await AuditEvent.select().where(AuditEvent.action == action).order_by(AuditEvent.number)


async def test_a_key_becomes_a_cookie_that_neither_scripts_nor_other_sites_get(connect):
    row, key = await create_key("bo", Role.OPERATOR)
    async with connect() as browser:
        answer = await browser.post(LOGIN, json={"key": key})
        cookie, _, attributes = answer.headers["Set-Cookie"].partition("; ")
        assert cookie.startswith(f"{COOKIE}=")
        assert attributes == "Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
        assert answer.headers["Cache-Control"] == "no-store"
        token = answer.json()["csrf_token"]
        assert answer.json() == {"actor": "bo", "role": "operator", "csrf_token": token}
        me = (await browser.get(ME)).json()
    assert me.pop("expires_at")
    assert me == {"actor": "bo", "role": "operator", "name": "bo", "key_id": row.id, "csrf_token": token}


async def test_neither_cookie_nor_token_can_be_read_from_the_database(operator):
    [row] = await Login.select()
    cookie, token = operator.cookies[COOKIE], operator.headers["X-CSRF-Token"]
    assert row["digest"] == digest(cookie)
    assert not any(secret in str(value) for value in row.values() for secret in (cookie, token))


async def test_over_tls_the_cookie_is_for_this_host_and_for_tls_alone(connect):
    _, key = await create_key("bo", Role.OPERATOR)
    secure = "https://certctl.test"
    async with connect() as browser:
        said = (await browser.post(f"{secure}{LOGIN}", json={"key": key})).headers["Set-Cookie"]
        assert said.startswith(f"__Host-{COOKIE}=")
        assert said.endswith("; HttpOnly; SameSite=Strict; Secure")
        assert "Domain" not in said
        assert await status(browser, f"{secure}{ME}") == 200
        planted = browser.cookies[f"__Host-{COOKIE}"]
    async with connect() as browser:
        assert (await browser.get(f"{secure}{ME}", headers={"Cookie": f"{COOKIE}={planted}"})).status_code == 401


@pytest.mark.parametrize(
    ("scheme", "host", "peer", "forwarded", "encrypted"),
    [
        ("https", "0.0.0.0", "9.9.9.9", "", True),
        ("http", "0.0.0.0", "9.9.9.9", "", True),
        ("http", "127.0.0.1", "127.0.0.1", "", False),
        ("http", "127.0.0.1", "10.0.0.1", "https", True),
        ("http", "127.0.0.1", "10.0.0.1", "http", False),
        ("http", "127.0.0.1", "127.0.0.1", "https", False),
    ],
    ids=["TLS", "behind a TLS proxy", "loopback", "a proxy that has TLS", "a proxy that has none", "anybody says so"],
)
def test_what_is_served_in_the_clear_is_known_to_be(scheme, host, peer, forwarded, encrypted):
    scope = {"scheme": scheme, "client": (peer, 1), "headers": [(b"x-forwarded-proto", forwarded.encode())]}
    settings = Settings(server=Server(host=host), trusted_proxies="10.0.0.0/8")
    assert is_encrypted(scope, settings) is encrypted


async def test_a_login_may_do_what_its_key_may(log_in, operator):
    assert (await operator.post(TEAMS, json={"id": "t-1", "name": "x"})).status_code == 201
    [made] = await events("team_created")
    assert (made["actor"], made["actor_type"]) == ("bo", "User")
    assert await status(operator, "/api/v1/auth/keys") == 403
    viewer = await log_in((await create_key("vi", Role.VIEWER))[1])
    assert await status(viewer, TEAMS) == 200
    assert (await viewer.delete(f"{TEAMS}/t-1")).status_code == 403


@pytest.mark.parametrize("token", [None, "", "0" * 64, "of another login"])
async def test_no_change_without_the_token_of_the_login(log_in, token):
    _, key = await create_key("ada", Role.ADMIN)
    browser, other = await log_in(key), await log_in(key)
    given = browser.headers.pop("X-CSRF-Token")
    if token is not None:
        browser.headers["X-CSRF-Token"] = other.headers["X-CSRF-Token"] if token.startswith("of") else token
    assert given != other.headers["X-CSRF-Token"]
    changes = [route for route in routes() if route.method != "GET" and Role.ANONYMOUS not in route.roles]
    answers = [(route.name, await browser.request(route.method, route.at())) for route in changes]
    assert len(answers) > 25
    assert [name for name, answer in answers if answer.status_code != 403 or "X-CSRF-Token" not in answer.text] == []
    assert {await status(browser), (await browser.head(TEAMS)).status_code} == {200}


@pytest.mark.parametrize("role", [None, Role.AGENT], ids=["an unknown key", "an agent's key"])
async def test_who_may_not_log_in_is_noted_without_the_key(app, ctx, connect, role):
    now, key = ctx.clock(), "cck_00000000_guessed"
    if role:
        await Agent.insert(Agent(id="ag-1", name="a", hostname="a", registered_at=now, created_at=now, updated_at=now))
        _, key = await create_key("a", role, agent_id="ag-1")
    async with connect() as browser:
        answer = await browser.post(LOGIN, json={"key": key})
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403 if role else 401, False)
    await app.calls.flush(last=True)
    [failed] = await events("login_failed")
    assert failed["actor"] == ("ag-1" if role else "anonymous")
    assert "127.0.0.1" in failed["details"]
    rows = await AuditEvent.select()
    assert [row for row in rows if key in str(row)] == []
    [call] = await events("api_post")
    assert '"body_hash":""' in call["details"]


async def test_the_call_of_a_login_names_who_logged_in(app, operator):
    await app.calls.flush(last=True)
    [call] = await events("api_post")
    assert (call["actor"], '"body_hash":""' in call["details"]) == ("bo", True)


@pytest.mark.parametrize(
    ("body", "code"), [({}, 400), ({"key": 7}, 400), ({"key": "x" * 2000}, 400), ({"key": "\u00e9\u2603"}, 401)]
)
async def test_a_login_that_makes_no_sense_is_refused(connect, body, code):
    answer = await connect().post(LOGIN, json=body)
    assert answer.status_code == code
    if code == 400:
        assert [each["field"] for each in answer.json()["details"]] == ["key"]


async def test_other_sites_cannot_log_somebody_in(connect):
    _, key = await create_key("bo", Role.OPERATOR)
    answer = await connect().post(LOGIN, json={"key": key}, headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)


async def test_logging_out_ends_the_login_and_takes_the_cookie_away(operator):
    cookie = operator.cookies[COOKIE]
    answer = await operator.post(LOGOUT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Set-Cookie"].startswith(f"{COOKIE}=; Path=/; Max-Age=0")
    assert await Login.count() == 0
    assert (await operator.get(ME, headers={"Cookie": f"{COOKIE}={cookie}"})).status_code == 401


async def test_logging_out_with_a_key_ends_nothing(client):
    assert (await client.post(LOGOUT)).status_code == 204
    assert await status(client) == 200


@pytest.mark.parametrize("how", ["deleted", "rotated", "expired"])
async def test_a_login_ends_with_its_key(log_in, ctx, how):
    row, key = await create_key("bo", Role.OPERATOR, expires_at=ctx.clock() + timedelta(hours=1))
    browser = await log_in(key)
    assert await status(browser) == 200
    if how == "deleted":
        await end_key(row.id, ctx.clock())
    elif how == "rotated":
        await rotate_key(row.id, ctx.clock())
    else:
        ctx.clock.ahead = timedelta(hours=1, seconds=1)
    assert await status(browser) == 401


async def test_a_login_with_a_key_ends_when_the_next_one_is_used(log_in, ctx):
    row, key = await create_key("bo", Role.OPERATOR)
    _, successor = await rotate_key(row.id, ctx.clock())
    old = await log_in(key)
    assert await status(old) == 200
    new = await log_in(successor)
    assert [await status(browser) for browser in (old, new)] == [401, 200]


async def test_a_login_ends_in_time_and_is_forgotten(log_in, ctx):
    _, key = await create_key("bo", Role.OPERATOR)
    browser = await log_in(key)
    ctx.clock.ahead = ctx.settings.login_lifetime - timedelta(minutes=1)
    assert await status(browser) == 200
    ctx.clock.ahead = ctx.settings.login_lifetime + timedelta(seconds=1)
    assert await status(browser) == 401
    await log_in(key)
    assert await Login.count() == 1


async def test_a_cookie_that_somebody_else_chose_is_never_taken_over(connect, operator):
    _, key = await create_key("ada", Role.ADMIN)
    before = operator.cookies[COOKIE]
    async with connect() as browser:
        for planted in ("chosen", before):
            answer = await browser.post(LOGIN, json={"key": key}, headers={"Cookie": f"{COOKIE}={planted}"})
            assert planted not in answer.headers["Set-Cookie"]
    # Who logs in anew in a browser has logged out there.
    assert await status(operator) == 401


async def test_a_key_that_is_shown_counts_before_the_cookie(operator):
    _, key = await create_key("vi", Role.VIEWER)
    shown = await operator.get(ME, headers={"Authorization": f"Bearer {key}"})
    assert (shown.json()["actor"], "csrf_token" in shown.json()) == ("vi", False)
    assert (await operator.get(ME, headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await operator.get(ME, headers={"Authorization": "Basic YTpi"})).status_code == 401


class TestWithKeysOfTheEnvironment:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(data_dir=tmp_path, auth=Auth(secret="of-everybody", named_keys="bo:thought-up"))

    async def test_their_logins_end_when_they_leave_it(self, ctx, log_in):
        browser, named = await log_in("of-everybody"), await log_in("thought-up")
        assert (await browser.get(ME)).json()["actor"] == "api-key-user"
        assert (await named.get(ME)).json()["role"] == "operator"
        rows = await Login.select()
        assert not any(digest(key) in str(row) for row in rows for key in ("of-everybody", "thought-up"))
        ctx.settings = Settings(data_dir=ctx.settings.data_dir, auth=Auth(secret="of-everybody"))
        restarted = httpx.ASGITransport(app=make_app(ctx))
        async with httpx.AsyncClient(transport=restarted, base_url="http://certctl.test") as client:
            cookies = [{"Cookie": f"{COOKIE}={each.cookies[COOKIE]}"} for each in (browser, named)]
            assert [(await client.get(ME, headers=each)).status_code for each in cookies] == [200, 401]
