import pytest
from certctl_server.audit.tables import AuditEvent

OWNERS, TEAMS = "/api/v1/owners", "/api/v1/teams"


@pytest.fixture
async def teams(client):
    for n in range(3):
        assert (await client.post(TEAMS, json={"id": f"t-{n}", "name": f"Team {n}"})).status_code == 201
    return client


async def test_an_owner_can_be_created_changed_listed_and_deleted(teams):
    made = await teams.post(OWNERS, json={"name": "Ops", "team_id": "t-1"})
    assert made.status_code == 201, made.text
    path = f"{OWNERS}/{made.json()['id']}"
    assert made.json()["id"].startswith("o-")
    changed = await teams.put(path, json={"name": "SRE"})
    assert (changed.status_code, changed.json()["name"], changed.json()["team_id"]) == (200, "SRE", "t-1")
    assert (await teams.get(OWNERS)).json() == {"data": [changed.json()], "total": 1, "page": 1, "per_page": 50}
    assert (await teams.delete(path)).status_code == 204
    assert (await teams.get(path)).status_code == 404
    actions = await AuditEvent.select(AuditEvent.action, AuditEvent.actor).where(AuditEvent.resource_type == "owner")
    assert actions == [{"action": f"owner_{done}", "actor": "ada"} for done in ("created", "updated", "deleted")]


async def test_owners_are_found_by_their_teams(teams):
    for n in range(3):
        await teams.post(OWNERS, json={"name": f"o{n}", "team_id": f"t-{n}"})
    page = (await teams.get(OWNERS, params={"team_id": "t-0,t-2"})).json()
    assert ([owner["name"] for owner in page["data"]], page["total"]) == (["o0", "o2"], 2)


async def test_an_email_of_a_team_is_there_when_it_has_one(client):
    made = (await client.post(TEAMS, json={"name": "x", "email": "a@example.com"})).json()
    assert made["email"] == "a@example.com"
    assert "email" not in (await client.put(f"{TEAMS}/{made['id']}", json={"email": None})).json()


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (OWNERS, {"name": "", "email": "nope"}, ["name", "team_id", "email"]),
        (OWNERS, {"name": "x", "team_id": "t-9"}, ["team_id"]),
        (OWNERS, {"name": "x" * 256, "team_id": "t-1"}, ["name"]),
        (OWNERS, {"name": "x", "team_id": "t-1", "email": "a@b\r\nBcc: c@d"}, ["email"]),
        (TEAMS, {"name": "x", "id": "../etc"}, ["id"]),
        (TEAMS, {"name": 7, "description": []}, ["name", "description"]),
    ],
)
async def test_what_people_cannot_be_is_refused_field_by_field(teams, path, body, fields):
    answer = await teams.post(path, json=body)
    assert (answer.status_code, [each["field"] for each in answer.json()["details"]]) == (400, fields)


async def test_a_team_with_owners_stays(teams):
    await teams.post(OWNERS, json={"name": "x", "team_id": "t-1"})
    answer = await teams.delete(f"{TEAMS}/t-1")
    assert (answer.status_code, answer.json()["message"]) == (409, "Team is in use: owner refers to it")
    assert (await teams.get(f"{TEAMS}/t-1")).status_code == 200


@pytest.mark.parametrize(("path", "id"), [(TEAMS, "t-unassigned"), (OWNERS, "o-unassigned")])
async def test_what_the_installation_needs_stays(teams, path, id):
    await teams.post(path, json={"id": id, "name": "Unassigned", "team_id": "t-1"})
    assert (await teams.delete(f"{path}/{id}")).status_code == 409
