import asyncio
import json

import msgspec
import pytest
from certctl_sdk.http import httpx
from certctl_server.audit.tables import AuditEvent
from certctl_server.auth.guard import Guard
from certctl_server.auth.keys import create_key
from certctl_server.auth.roles import Role
from certctl_server.crud import Crud, crud_routes
from certctl_server.errors import HANDLERS
from certctl_server.people.routes import TeamBody
from certctl_server.people.tables import Team
from litestar import Litestar
from litestar.di import Provide

TEAMS, OWNERS = "/api/v1/teams", "/api/v1/owners"


async def names(client):
    return [team["name"] for team in (await client.get(TEAMS, params={"sort": "name"})).json()["data"]]


async def test_an_id_that_a_client_gave_is_kept_and_is_good_once(client):
    made = await client.post(TEAMS, json={"id": "t-mine", "name": "x"})
    assert (made.status_code, made.json()["id"]) == (201, "t-mine")
    again = await client.post(TEAMS, json={"id": "t-mine", "name": "y"})
    assert (again.status_code, again.json()["error"]) == (409, "Conflict")
    assert await names(client) == ["x"]


async def test_a_name_is_taken_once(client):
    await client.post(TEAMS, json={"name": "x"})
    other = (await client.post(TEAMS, json={"name": "y"})).json()["id"]
    assert (await client.post(TEAMS, json={"name": "x"})).status_code == 409
    assert (await client.put(f"{TEAMS}/{other}", json={"name": "x"})).status_code == 409
    assert await names(client) == ["x", "y"]


async def test_what_was_refused_leaves_no_audit_row(client):
    await client.post(TEAMS, json={"name": "x"})
    await client.post(TEAMS, json={"name": "x"})
    assert await AuditEvent.count().where(AuditEvent.action == "team_created") == 1


async def test_what_was_read_can_be_put_back(client):
    team = (await client.post(TEAMS, json={"name": "x", "description": "y"})).json()
    path = f"{TEAMS}/{team['id']}"
    answer = await client.put(path, json={**team, "id": "t-other", "created_at": "0001-01-01T00:00:00Z"})
    assert "X-Certctl-Ignored-Fields" not in answer.headers
    assert answer.json() == {**team, "updated_at": answer.json()["updated_at"]}
    assert answer.json()["updated_at"] > team["updated_at"]


async def test_the_audit_row_says_what_was_changed_by_whom_in_which_request(client):
    made = (await client.post(TEAMS, json={"name": "x"})).json()
    answer = await client.put(f"{TEAMS}/{made['id']}", json={"description": "long"})
    [row] = await AuditEvent.select().where(AuditEvent.action == "team_updated")
    assert (row["actor"], row["actor_type"], row["resource_id"]) == ("ada", "User", made["id"])
    assert row["request_id"] == answer.headers["X-Request-Id"]
    assert json.loads(row["details"]) == {"changed": ["description"]}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_what_is_not_there_is_404_on_every_verb(client, method):
    answer = await client.request(method, f"{TEAMS}/t-9", json={} if method == "PUT" else None)
    assert (answer.status_code, answer.json()["message"]) == (404, "Team not found")


async def test_an_empty_change_changes_nothing_but_the_time(client):
    team = (await client.post(TEAMS, json={"name": "x"})).json()
    answer = await client.put(f"{TEAMS}/{team['id']}")
    assert (answer.status_code, answer.json()["name"]) == (200, "x")


async def test_of_two_creations_at_once_one_wins(client):
    answers = await asyncio.gather(*(client.post(TEAMS, json={"id": "t-1", "name": f"{n}"}) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


async def test_a_reference_and_its_deletion_at_once_leave_nothing_dangling(client):
    for n in range(6):
        await client.post(TEAMS, json={"id": f"t-{n}", "name": f"{n}"})
        owned, gone = await asyncio.gather(
            client.post(OWNERS, json={"id": f"o-{n}", "name": f"{n}", "team_id": f"t-{n}"}),
            client.delete(f"{TEAMS}/t-{n}"),
        )
        assert (owned.status_code, gone.status_code) in {(201, 409), (400, 204), (409, 204)}


class Extended(TeamBody):
    """Teams whose description is JSON, to see the hooks at work."""

    description: list[str] = msgspec.field(default_factory=list)


@pytest.fixture
async def hooked(ctx):
    """A client of teams with every hook, and what the hooks were told."""
    told = []

    def check(values, before):
        told.append(before and before["description"])
        if values.get("description") == ["bad"]:
            return {"description": "is bad"}
        if "description" in values:
            values["description"] = sorted(values["description"])
        return {}

    async def changed(given, id):
        assert given is ctx
        told.append(id)
        if id == "t-stop":
            raise RuntimeError

    crud = Crud(
        "/things",
        Team,
        Extended,
        "thing",
        "Thing",
        audit_name="thing",
        actions=("make_thing", "", "break_thing"),
        json=frozenset({"description"}),
        check=check,
        changed=changed,
        aliases={"words": "description"},
    )

    async def give():
        return ctx

    app = Litestar(
        [crud_routes(crud)],
        dependencies={"ctx": Provide(give)},
        guards=[Guard(ctx).admit],
        exception_handlers=HANDLERS,
        openapi_config=None,
        logging_config=None,
    )
    _, key = await create_key("ada", Role.OPERATOR)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://x", headers=headers
    ) as client:
        client.told = told
        yield client


async def test_hooks_check_complete_and_follow_a_change(hooked):
    made = (await hooked.post("/things", json={"id": "t-1", "name": "x", "words": ["b", "a"]})).json()
    assert made["description"] == ["a", "b"]
    assert (await hooked.put("/things/t-1", json={"description": ["c"]})).json()["description"] == ["c"]
    assert hooked.told == [None, "t-1", ["a", "b"], "t-1"]
    assert (await hooked.get("/things")).json()["data"][0]["description"] == ["c"]
    await hooked.delete("/things/t-1")
    rows = await AuditEvent.select(AuditEvent.action, AuditEvent.resource_type).order_by(AuditEvent.number)
    assert [tuple(row.values()) for row in rows] == [
        ("make_thing", "thing"),
        ("thing_updated", "thing"),
        ("break_thing", "thing"),
    ]


async def test_a_fault_that_a_hook_found_stands_beside_those_of_references(hooked):
    answer = await hooked.post("/things", json={"name": "x", "description": ["bad"]})
    assert answer.json()["details"] == [{"field": "description", "message": "is bad"}]


async def test_a_hook_that_fails_undoes_the_change(hooked):
    assert (await hooked.post("/things", json={"id": "t-stop", "name": "x"})).status_code == 500
    assert not await Team.exists()
    assert not await AuditEvent.exists()
