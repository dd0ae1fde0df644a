from __future__ import annotations

import os
import stat

import pytest
from certctl_sdk import profile_file
from certctl_sdk.api import certificates, teams
from certctl_sdk.client import Access, ApiError, AsyncClient, Client, Unreachable, access
from certctl_sdk.profile_file import ClientFile

KEY = "cck_12345678_secret"


@pytest.fixture
def client(server):
    with Client(Access(url=server.url, api_key=KEY)) as found:
        yield found


def test_a_call_carries_key_path_and_query(client, server):
    server.answers["GET", "/api/v1/teams/a%2Fb"] = (200, {"id": "a/b"})
    assert client.get("teams", "a/b", fields="id", page=None) == {"id": "a/b"}
    [((method, path, query, body), headers)] = server.asked
    assert (method, path, query, body) == ("GET", "/api/v1/teams/a%2Fb", {"fields": "id"}, "")
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_a_body_is_json_and_an_empty_answer_an_empty_object(client, server):
    server.answers["POST", "/api/v1/jobs/j/cancel"] = (200, b"")
    assert client.post("jobs", "j", "cancel") == {}
    [(asked, headers)] = server.asked
    assert asked[3] == "{}"
    assert headers["Content-Type"] == "application/json"


def test_put_and_delete_reach_the_resource(client, server):
    server.answers["PUT", "/api/v1/teams/t"] = (200, {"id": "t", "email": "x@y.example"})
    server.answers["DELETE", "/api/v1/teams/t"] = (204, b"")
    assert client.put("teams", "t", body={"email": "x@y.example"})["email"] == "x@y.example"
    assert client.delete("teams", "t") is None
    assert [asked[0] for asked, _ in server.asked] == ["PUT", "DELETE"]


@pytest.mark.parametrize("status", [302, 400, 404, 409, 503])
def test_a_refusal_says_the_status_and_the_words_of_the_server(client, server, status):
    server.answers["GET", "/api/v1/teams/t"] = (status, {"error": "Refused", "message": "because"})
    with pytest.raises(ApiError, match=f"HTTP {status}.*because") as caught:
        client.get("teams", "t")
    assert caught.value.status == status


def test_a_walk_through_a_list_follows_the_cursor_to_its_end(client, server):
    pages = {
        "": {"data": [{"id": 1}], "total": 3, "next_cursor": "two"},
        "two": {"data": [{"id": 2}], "total": 3, "next_cursor": "three"},
        "three": {"data": [{"id": 3}], "total": 3},
    }
    server.answers["GET", "/api/v1/teams"] = (200, lambda asked: pages[asked[2]["cursor"]])
    assert [row["id"] for row in client.every("teams", sort="name")] == [1, 2, 3]
    assert {asked[2]["sort"] for asked, _ in server.asked} == {"name"}


@pytest.mark.parametrize("said", [b"<html>", b"[]", b'{"data": 3}'], ids=["no JSON", "no object", "no list"])
def test_what_is_no_certctl_server_is_told_apart(client, server, said):
    server.answers["GET", "/api/v1/teams"] = (200, said)
    with pytest.raises(Unreachable):
        client.page("teams")


RENEWED = {"status": "renewal_triggered", "job_ids": ["j"]}
PARTS = {
    "": {"data": [{"id": "a"}], "total": 2, "next_cursor": "two"},
    "two": {"data": [{"id": "b"}], "total": 2},
}


def test_a_typed_call_is_sent_as_it_says(client, server):
    server.answers["POST", "/api/v1/certificates/mc%2F1/renew"] = (
        202,
        {"status": "renewal_triggered", "job_ids": ["j"]},
    )
    server.answers["DELETE", "/api/v1/teams/t"] = (204, b"")
    server.answers["GET", "/api/v1/teams"] = (200, lambda asked: PARTS[asked[2]["cursor"]])
    assert client.send(certificates.renew("mc/1", {"force": True}))["job_ids"] == ["j"]
    assert client.send(teams.delete("t")) is None
    assert [row["id"] for row in client.walk(teams.list({"fields": ["id", "name"], "sort_desc": True}))] == ["a", "b"]
    (renew, headers), _, (first, _), (second, _) = server.asked
    assert renew[3] == '{"force": true}'
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert first[2] == {"fields": "id,name", "sort_desc": "true", "cursor": "", "page_size": "500"}
    assert second[2]["cursor"] == "two"


async def test_the_same_calls_are_awaited(server):
    server.answers["POST", "/api/v1/certificates/mc-1/renew"] = (202, RENEWED)
    server.answers["GET", "/api/v1/teams"] = (200, lambda asked: PARTS[asked[2]["cursor"]])
    server.answers["GET", "/api/v1/teams/t"] = (404, {"error": "Not Found", "message": "Team not found"})
    async with AsyncClient(Access(url=server.url, api_key=KEY)) as client:
        assert (await client.send(certificates.renew("mc-1")))["job_ids"] == ["j"]
        assert [row["id"] async for row in client.walk(teams.list())] == ["a", "b"]
        with pytest.raises(ApiError, match="HTTP 404"):
            await client.send(teams.get("t"))
    async with AsyncClient(Access(url="http://127.0.0.1:1")) as nobody:
        with pytest.raises(Unreachable, match="did not answer"):
            await nobody.send(teams.list())


def test_a_server_that_is_not_there_is_named():
    with (
        Client(Access(url="http://127.0.0.1:1")) as nobody,
        pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 did not"),
    ):
        nobody.get("teams")


def test_a_ca_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(Unreachable, match=r"none\.pem"):
        Client(Access(url="https://localhost:1", ca_file=str(tmp_path / "none.pem")))


@pytest.fixture
def left(tmp_path):
    """What a server of this machine left."""
    text = profile_file.write(ClientFile(url="https://localhost:8443", ca_file="/ca.pem", api_key=KEY))
    (tmp_path / profile_file.NAME).write_text(text)
    return {"CERTCTL_DATA_DIR": str(tmp_path)}


def test_beside_an_embedded_server_nothing_needs_to_be_said(left):
    assert access(left) == Access(url="https://localhost:8443", api_key=KEY, ca_file="/ca.pem")


@pytest.mark.parametrize(
    ("more", "given"),
    [({"CERTCTL_SERVER_URL": "https://other.example"}, {}), ({}, {"server": "https://other.example/"})],
    ids=["variable", "option"],
)
def test_the_local_key_is_sent_to_the_local_server_only(left, more, given):
    assert access({**left, **more}, **given) == Access(url="https://other.example")


def test_options_stand_before_variables_and_variables_before_the_file(left):
    environ = {**left, "CERTCTL_API_KEY": "from-variable", "CERTCTL_SERVER_CA_FILE": "/variable.pem"}
    assert access(environ).api_key == "from-variable"
    assert access(environ, api_key="given", ca_file="/given.pem") == Access(
        url="https://localhost:8443", api_key="given", ca_file="/given.pem"
    )


def test_a_key_may_come_from_a_file(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    environ = {"CERTCTL_DATA_DIR": str(tmp_path), "CERTCTL_API_KEY_FILE": str(tmp_path / "key")}
    assert access(environ).api_key == KEY
    with pytest.raises(Unreachable, match="key file"):
        access({**environ, "CERTCTL_API_KEY_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize("url", ["localhost:8443", "ftp://x", "https://"])
def test_what_is_no_address_is_refused(tmp_path, url):
    with pytest.raises(Unreachable, match="not an address"):
        access({"CERTCTL_DATA_DIR": str(tmp_path)}, server=url)


@pytest.mark.parametrize(
    ("url", "key", "clear"),
    [
        ("http://certctl.example", KEY, True),
        ("http://certctl.example", "", False),
        ("https://certctl.example", KEY, False),
        ("http://127.0.0.1:8080", KEY, False),
        ("http://localhost:8080", KEY, False),
        ("http://[::1]:8080", KEY, False),
    ],
)
def test_a_key_in_the_clear_is_noticed(url, key, clear):
    assert Access(url=url, api_key=key).in_the_clear is clear


@pytest.mark.parametrize("text", ["", "url = ", "= 3", "url = 'x'\n\xff"], ids=["empty", "cut", "nonsense", "bytes"])
def test_a_damaged_client_file_says_nothing(tmp_path, text):
    (tmp_path / profile_file.NAME).write_bytes(text.encode("latin-1"))
    assert profile_file.read(tmp_path).api_key == ""


def test_a_client_file_is_read_as_it_was_written(tmp_path):
    written = ClientFile(url='http://x/"\\', ca_file="/tmp/ä b", api_key=KEY)
    (tmp_path / profile_file.NAME).write_text(profile_file.write(written), encoding="utf-8")
    assert profile_file.read(tmp_path) == written
    assert KEY not in repr(written)


def test_the_data_directory_is_the_one_that_is_named(tmp_path, monkeypatch):
    assert profile_file.data_dir({"CERTCTL_DATA_DIR": str(tmp_path)}) == tmp_path
    monkeypatch.setattr(profile_file, "SYSTEM_DATA", tmp_path / "system")
    assert profile_file.data_dir({}) == tmp_path / "system"
    if os.geteuid():
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert profile_file.data_dir({"XDG_DATA_HOME": "/xdg"}) == profile_file.Path("/xdg/certctl")
