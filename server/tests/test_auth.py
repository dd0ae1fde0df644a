import json
from datetime import timedelta

import pytest
from certctl_sdk.http import httpx
from certctl_server.agents.tables import Agent
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.guard import Guard
from certctl_server.auth.keys import (
    create_key,
    create_token,
    digest,
    end_key,
    rotate_agent_key,
    rotate_key,
    spend_token,
)
from certctl_server.auth.principal import EVERYBODY, Principal, Req, agent_caller, visible
from certctl_server.auth.roles import ENROL, Role
from certctl_server.auth.tables import ApiKey, EnrolmentToken
from certctl_server.errors import HANDLERS, Refused
from certctl_server.people.tables import Team
from certctl_server.settings import Auth, Settings
from certctl_server.targets.tables import Target
from litestar import Litestar, post

CHECK, KEYS, TEAMS = "/api/v1/auth/check", "/api/v1/auth/keys", "/api/v1/teams"


@pytest.fixture
async def agent(ctx):
    now = ctx.clock()
    row = Agent(id="ag-1", name="web", hostname="web", registered_at=now, created_at=now, updated_at=now)
    await Agent.insert(row)
    return "ag-1"


async def key_of(role, agent="ag-1"):
    return (await create_key("x", role, agent_id=agent if role is Role.AGENT else None))[1]


async def status(connect, key, path=CHECK):
    async with connect(key) as client:
        return (await client.get(path)).status_code


async def test_a_key_says_who_calls(connect):
    row, key = await create_key("ada", Role.VIEWER)
    async with connect(key) as client:
        assert (await client.get(CHECK)).json() == {"status": "authenticated", "actor": "ada", "role": "viewer"}
        me = (await client.get("/api/v1/auth/me")).json()
    assert me == {"actor": "ada", "role": "viewer", "name": "ada", "key_id": row.id}


async def test_only_a_digest_of_a_key_is_kept(database):
    _, key = await create_key("ada", Role.ADMIN)
    [stored] = await ApiKey.select()
    assert key.startswith(f"{stored['prefix']}_")
    assert stored["prefix"].startswith("cck_")
    assert stored["digest"] == digest(key)
    secret = key.removeprefix(f"{stored['prefix']}_")
    assert len(secret) >= 40
    assert not any(secret in str(value) for value in stored.values())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "Authorization header required"),
        ("Basic YTpi", "Authorization must be of the form: Bearer KEY"),
        ("Bearer", "Invalid API key"),
        ("Bearer nonsense", "Invalid API key"),
        ("Bearer \xff\xfe", "Invalid API key"),
    ],
    ids=["none", "other scheme", "empty", "unknown", "not text"],
)
async def test_without_a_good_key_nothing_is_told(connect, header, message):
    async with connect() as client:
        answer = await client.get(TEAMS, headers={"Authorization": header.encode("latin-1")} if header else {})
    assert (answer.status_code, answer.json()["message"]) == (401, message)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="certctl"'


async def test_unknown_expired_and_ended_keys_are_answered_alike(connect, ctx):
    _, expired = await create_key("a", Role.ADMIN, expires_at=ctx.clock() - timedelta(seconds=1))
    row, ended = await create_key("b", Role.ADMIN)
    await end_key(row.id, ctx.clock())
    bodies = set()
    for key in ("cck_unknown", expired, ended):
        async with connect(key) as client:
            answer = await client.get(CHECK)
        body = answer.json()
        body.pop("request_id")
        bodies.add((answer.status_code, str(body)))
    assert bodies == {(401, "{'error': 'Unauthorized', 'message': 'Invalid API key'}")}


async def test_the_scheme_is_read_in_any_case(connect):
    _, key = await create_key("ada", Role.ADMIN)
    async with connect() as client:
        assert (await client.get(CHECK, headers={"Authorization": f"bEARER  {key}"})).status_code == 200


async def test_a_key_ends_when_it_expires(connect, ctx):
    _, key = await create_key("a", Role.ADMIN, expires_at=ctx.clock() + timedelta(hours=1))
    assert await status(connect, key) == 200
    ctx.clock.ahead = timedelta(hours=1, seconds=1)
    assert await status(connect, key) == 401


async def test_use_is_noted_once_a_minute(connect, ctx):
    row, key = await create_key("a", Role.ADMIN)

    async def used():
        return (await ApiKey.select(ApiKey.last_used_at).where(ApiKey.id == row.id).first())["last_used_at"]

    assert await used() is None
    await status(connect, key)
    first = await used()
    await status(connect, key)
    assert await used() == first
    ctx.clock.ahead = timedelta(seconds=61)
    await status(connect, key)
    assert await used() - first > timedelta(minutes=1)


async def test_the_older_key_of_a_rotation_lasts_until_the_newer_is_used(connect, ctx):
    old, old_key = await create_key("ada", Role.OPERATOR)
    new, new_key = await rotate_key(old.id, ctx.clock())
    assert (new.name, new.role) == ("ada", "operator")
    assert await status(connect, old_key) == 200
    assert await status(connect, new_key) == 200
    assert await status(connect, old_key) == 401
    assert await status(connect, new_key) == 200


async def test_the_older_key_of_a_rotation_lasts_a_day_at_most(connect, ctx):
    old, old_key = await create_key("ada", Role.OPERATOR)
    await rotate_key(old.id, ctx.clock())
    ctx.clock.ahead = timedelta(hours=23, minutes=59)
    assert await status(connect, old_key) == 200
    ctx.clock.ahead = timedelta(hours=24, seconds=1)
    assert await status(connect, old_key) == 401


async def test_rotation_never_makes_a_key_live_longer(ctx):
    soon = ctx.clock() + timedelta(hours=1)
    old, _ = await create_key("ada", Role.OPERATOR, expires_at=soon)
    new, _ = await rotate_key(old.id, ctx.clock())
    rows = await ApiKey.select(ApiKey.expires_at)
    assert {row["expires_at"] for row in rows} == {soon}
    assert new.replaces == old.id


@pytest.mark.parametrize("again", ["the same", "its successor"])
async def test_a_second_rotation_keeps_the_end_and_ends_the_unused_successor(connect, ctx, again):
    old, old_key = await create_key("ada", Role.OPERATOR, expires_at=ctx.clock() + timedelta(days=90))
    assert await status(connect, old_key) == 200
    first, first_key = await rotate_key(old.id, ctx.clock())
    second, second_key = await rotate_key(old.id if again == "the same" else first.id, ctx.clock())
    assert (second.expires_at, second.replaces) == (old.expires_at, old.id)
    assert [await status(connect, key) for key in (first_key, old_key)] == [401, 200]
    ctx.clock.ahead = timedelta(days=2)
    assert [await status(connect, key) for key in (old_key, second_key)] == [401, 200]
    assert first.expires_at == old.expires_at


async def test_a_key_without_end_has_successors_without_end(ctx):
    old, _ = await create_key("ada", Role.OPERATOR)
    for _ in range(3):
        new, _ = await rotate_key(old.id, ctx.clock())
        assert new.expires_at is None


async def test_a_key_that_has_ended_is_neither_rotated_nor_ended(ctx):
    row, _ = await create_key("ada", Role.OPERATOR)
    await end_key(row.id, ctx.clock())
    for again in (rotate_key(row.id, ctx.clock()), end_key(row.id, ctx.clock())):
        with pytest.raises(Refused, match="Key not found"):
            await again


async def test_an_agents_key_is_its_own(connect, agent, ctx):
    row, key = await create_key("web", Role.AGENT, agent_id=agent)
    assert key.startswith("cca_")
    async with connect(key) as client:
        assert (await client.get(CHECK)).json()["actor"] == agent
        assert (await client.get(TEAMS)).status_code == 403
    new, _ = await rotate_agent_key(agent, row.id, ctx.clock())
    assert (new.agent_id, new.replaces) == (agent, row.id)


@pytest.mark.parametrize(
    ("role", "agent_id"), [("root", None), ("enrolment", None), ("agent", None), ("admin", "ag-1")]
)
async def test_a_stored_key_has_a_role_that_fits(database, role, agent_id):
    with pytest.raises(ValueError, match=r"root|stored key"):
        await create_key("x", role, agent_id=agent_id)


class TestWithKeysOfTheEnvironment:
    @pytest.fixture
    def settings(self, tmp_path):
        auth = Auth(secret="first-secret, second-secret", named_keys="bo:bo-key,bo:bo-next,cy:cy:key:admin")
        return Settings(data_dir=tmp_path, auth=auth, agent_bootstrap_token="boot")

    @pytest.mark.parametrize(
        ("key", "actor", "role"),
        [
            ("first-secret", "api-key-user", "admin"),
            ("second-secret", "api-key-user", "admin"),
            ("bo-key", "bo", "operator"),
            ("bo-next", "bo", "operator"),
            ("cy:key", "cy", "admin"),
        ],
    )
    async def test_they_work(self, connect, key, actor, role):
        async with connect(key) as client:
            answer = (await client.get(CHECK)).json()
        assert (answer["actor"], answer["role"]) == (actor, role)

    async def test_the_static_enrolment_token_opens_nothing_else(self, connect):
        assert await status(connect, "boot") == 403


class TestWithoutKeys:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(data_dir=tmp_path, auth=Auth(type="none"))

    async def test_everybody_is_an_anonymous_admin(self, connect):
        async with connect() as client:
            assert (await client.get(CHECK)).json() == {
                "status": "authenticated",
                "actor": "anonymous",
                "role": "admin",
            }
            assert (await client.get("/api/v1/auth/info")).json() == {"auth_type": "none", "required": False}

    async def test_a_good_key_still_says_who_calls(self, connect):
        _, key = await create_key("ada", Role.VIEWER)
        async with connect(key) as client:
            assert (await client.get(CHECK)).json()["actor"] == "ada"


async def test_a_token_is_good_for_its_uses_and_its_time(ctx):
    row, secret = await create_token(max_uses=2, name="rack 4")
    assert (await EnrolmentToken.select().first())["digest"] == digest(secret)
    assert [await spend_token(row.id, ctx.clock()) for _ in range(3)] == [True, True, False]
    late, _ = await create_token()
    assert not await spend_token(late.id, ctx.clock() + timedelta(hours=25))
    assert await spend_token("", ctx.clock())


def applications(ctx, *handlers):
    """Handlers behind the guard, as the whole assembly has them."""
    return Litestar(
        list(handlers),
        guards=[Guard(ctx).admit],
        exception_handlers=HANDLERS,
        openapi_config=None,
        logging_config=None,
    )


async def answer(app, key="", method="POST", path="/"):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
        return await client.request(method, path, headers=headers)


async def test_a_token_opens_enrolment_routes_only(ctx, connect):
    @post("/", opt={"roles": ENROL})
    async def enrol(request: Req) -> dict[str, str]:
        return {"role": request.user.role, "key_id": request.user.key_id, "actor_type": request.user.actor_type}

    app = applications(ctx, enrol)
    row, secret = await create_token()
    expected = {"role": "enrolment", "key_id": row.id, "actor_type": "Agent"}
    assert (await answer(app, secret)).json() == expected
    assert (await answer(app, f"{secret}.{'a' * 64}")).json() == expected
    assert await status(connect, secret) == 401
    await spend_token(row.id, ctx.clock())
    assert (await answer(app, secret)).status_code == 401


async def test_a_route_without_roles_is_for_nobody(ctx):
    @post("/")
    async def forgotten() -> None: ...

    _, key = await create_key("ada", Role.ADMIN)
    assert (await answer(applications(ctx, forgotten), key)).status_code == 403


def test_agents_see_what_is_theirs_and_people_see_everything():
    agent = Principal("ag-1", Role.AGENT, agent_id="ag-1")
    for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER):
        assert visible(Principal("ada", role), Target) is None
    assert visible(agent, Target).args == ("ag-1",)
    assert visible(agent, Agent).sql == "item.id = {}"
    assert visible(agent, Team).sql == "1 = 0"
    assert visible(Principal("x", Role.ENROLMENT), Agent).sql == "1 = 0"


async def test_only_the_agent_itself_acts_as_an_agent(ctx, agent):
    strict = Settings()
    itself = Principal(agent, Role.AGENT, agent_id=agent)
    assert await agent_caller(itself, agent, strict)
    admin, viewer = Principal("ada", Role.ADMIN), Principal("vi", Role.VIEWER)
    assert not await agent_caller(admin, agent, strict, reading=True)
    for caller, reading in ((admin, False), (viewer, True), (Principal("b", Role.AGENT, agent_id="ag-2"), True)):
        with pytest.raises(Refused, match="own key") as refused:
            await agent_caller(caller, agent, strict, reading=reading)
        assert refused.value.status == 403


async def test_where_no_keys_are_asked_for_everybody_acts_as_any_agent(database):
    assert await agent_caller(EVERYBODY, "ag-1", Settings())


async def test_a_shared_key_stands_in_for_an_agent_until_it_uses_its_own(connect, ctx, agent):
    shared, loose = Principal("api-key-user", Role.ADMIN), Settings(agent_keys="optional")
    _, key = await create_key("web", Role.AGENT, agent_id=agent)
    assert await agent_caller(shared, agent, loose)
    assert await status(connect, key) == 200
    with pytest.raises(Refused):
        await agent_caller(shared, agent, loose)
    assert not await agent_caller(shared, agent, loose, reading=True)


async def test_an_admin_makes_lists_rotates_and_ends_keys(client, connect):
    made = await client.post(KEYS, json={"name": "bo", "role": "Viewer", "expires_at": "2099-01-01T00:00:00Z"})
    assert made.status_code == 201
    body = made.json()
    assert body.keys() == {"id", "name", "role", "prefix", "created_at", "expires_at", "key"}
    assert await status(connect, body["key"]) == 200
    rotated = await client.post(f"{KEYS}/{body['id']}/rotate")
    assert (rotated.status_code, rotated.json()["name"]) == (200, "bo")
    listed = (await client.get(KEYS, params={"role": "viewer"})).json()
    assert [row["id"] for row in listed["data"]] == [body["id"], rotated.json()["id"]]
    assert "key" not in listed["data"][0]
    assert (await client.delete(f"{KEYS}/{body['id']}")).status_code == 204
    assert await status(connect, body["key"]) == 401
    assert (await client.delete(f"{KEYS}/{body['id']}")).status_code == 404
    assert (await client.get(KEYS, params={"role": "viewer"})).json()["total"] == 1
    events = await AuditEvent.select().where(AuditEvent.resource_type == "api_key").order_by(AuditEvent.number)
    assert [event["action"] for event in events] == ["key_created", "key_rotated", "key_deleted"]
    assert {event["resource_id"] for event in events} == {body["id"]}
    assert json.loads(events[1]["details"]) == {"new_key": rotated.json()["id"]}


async def test_the_keys_are_walked_like_any_list(client):
    for number in range(4):
        await create_key(f"k{number}", Role.VIEWER)
    first = (await client.get(KEYS, params={"page_size": 3, "sort": "name"})).json()
    rest = await client.get(KEYS, params={"page_size": 3, "sort": "name", "cursor": first["next_cursor"]})
    assert [row["name"] for row in rest.json()["data"]] == ["k2", "k3"]


async def test_a_key_may_rotate_itself_and_no_other(connect):
    row, key = await create_key("vi", Role.VIEWER)
    other, _ = await create_key("bo", Role.VIEWER)
    async with connect(key) as client:
        assert (await client.post(f"{KEYS}/{other.id}/rotate")).status_code == 403
        assert (await client.post(f"{KEYS}/{row.id}/rotate")).status_code == 200


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["name", "role"]),
        ({"name": "x", "role": "agent"}, ["role"]),
        ({"name": "x", "role": "admin", "expires_at": "2001-01-01T00:00:00Z"}, ["expires_at"]),
    ],
)
async def test_a_key_that_cannot_be_is_refused(client, body, fields):
    answer = await client.post(KEYS, json=body)
    assert (answer.status_code, [each["field"] for each in answer.json()["details"]]) == (400, fields)
