"""The trail of a running server leaves it, and is checked with nothing but a file and the server's key."""

import random

import pytest


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(stage, request):
    """A server that runs."""
    url = request.getfixturevalue("postgres").create("audit") if request.param == "postgres" else ""
    return stage.server(database_url=url).start()


@pytest.fixture(scope="module")
def certctl(stage, server):
    """Run the command on the server's machine; what it says."""
    access = {"CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key}
    return lambda *arguments, code=0: stage.run(server, "certctl", "audit", *arguments, code=code, **access)


@pytest.fixture(scope="module")
def key(certctl, waiting):
    """Whose signatures are good, once there are some."""

    def signed():
        said = certctl("verify").stdout
        return "checkpoints: 0" not in said and said

    [line] = [line for line in waiting(signed, "a checkpoint").splitlines() if line.startswith("signed by: ")]
    return line.removeprefix("signed by: ")


def test_an_export_is_verified_and_one_byte_of_it_is_not(certctl, server, key, tmp_path):
    server.post("teams", {"id": "t-one", "name": "one"})
    file, team = tmp_path / "audit.ndjson", b'"resource_id":"t-one"'
    certctl("export", file)
    assert team in file.read_bytes()
    assert "FAULT" not in certctl("verify", "--key", key, file).stdout
    file.write_bytes(file.read_bytes().replace(team, b'"resource_id":"t-two"'))
    assert "FAULT" in certctl("verify", "--key", key, file, code=1).stdout
    assert certctl("export", file, code=1).stderr.endswith("File exists\n")


def cut(lines):
    """All that is signed or sealed from some row on, and the trailer of the whole."""
    last = max(n for n, line in enumerate(lines) if b'"sequence":' in line and b'"trailer"' not in line)
    return lines[: last // 2] + lines[last + 1 :]


DEEDS = {
    "a row deleted": lambda lines: lines[:2] + lines[3:],
    "two swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "the sealed end cut off": cut,
    "the end of the file cut off": lambda lines: lines[: len(lines) // 2],
    "the trailer cut off": lambda lines: lines[:-1],
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_not_as_it_was_is_found(certctl, server, key, tmp_path, deed):
    file, changed = tmp_path / "audit.ndjson", tmp_path / "changed.ndjson"
    for _ in range(3):
        server.get("teams")
    certctl("export", file)
    changed.write_bytes(b"".join(DEEDS[deed](file.read_bytes().splitlines(keepends=True))))
    assert "FAULT" not in certctl("verify", "--key", key, file).stdout
    assert "FAULT" in certctl("verify", "--key", key, changed, code=1).stdout


def test_any_byte_of_any_row_is_found(certctl, server, key, tmp_path):
    file, changed, chance = tmp_path / "audit.ndjson", tmp_path / "changed.ndjson", random.Random(5)
    certctl("export", file)
    raw = file.read_bytes()
    for at in chance.sample(range(len(raw)), 8):
        changed.write_bytes(raw[:at] + bytes([raw[at] ^ chance.choice([1, 2, 16, 128])]) + raw[at + 1 :])
        assert "FAULT" in certctl("verify", "--key", key, changed, code=1).stdout, raw[at - 40 : at + 40]


def test_what_was_archived_and_what_is_left_are_one_trail(certctl, server, key, tmp_path):
    before = int(certctl("verify").stdout.split("sealed rows: ")[1].split(",")[0])
    said = certctl("archive", "--before", "2100-01-01", tmp_path).stdout
    [archive] = tmp_path.glob("audit-*.ndjson")
    assert str(archive) in said
    server.post("teams", {"name": "two"})
    left = int(certctl("verify").stdout.split("sealed rows: ")[1].split(",")[0])
    assert left < before
    certctl("export", tmp_path / "rest.ndjson")
    found = certctl("verify", "--key", key, archive, tmp_path / "rest.ndjson").stdout
    assert int(found.split("sealed rows: ")[1].split(",")[0]) >= before
    assert "are in older archives" in certctl("verify", "--key", key, tmp_path / "rest.ndjson").stdout


def test_a_list_for_reading_is_written_to_standard_output(certctl, server):
    server.post("teams", {"id": "t-csv", "name": "csv"})
    lines = certctl("export", "--format", "csv", "--action", "team_created", "--resource-id", "t-csv").stdout
    assert [line.split(",")[5] for line in lines.splitlines()] == ["resource_id", "t-csv"]
