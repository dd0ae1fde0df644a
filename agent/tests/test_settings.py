from __future__ import annotations

import logging
import os
from datetime import timedelta

import pytest
from certctl_agent import allowed, durations, identity, logs, settings
from certctl_agent.identity import Identity
from certctl_core.errors import MisconfiguredError

NEEDED = {"CERTCTL_AGENT_ID": "ag-1", "CERTCTL_API_KEY": "k"}


@pytest.fixture
def environ(tmp_path):
    return {**NEEDED, "CERTCTL_DATA_DIR": str(tmp_path)}


DURATIONS = {"30s": 30, "1h30m": 5400, "500ms": 0.5, "1.5h": 5400, "0": 0, "2us": 0.000002}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items(), ids=DURATIONS)
def test_durations_are_read_as_go_writes_them(text, seconds):
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "1d", "-1s", "1h30"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(text)


def test_a_flag_wins_over_a_variable_and_that_over_enrolment(environ, tmp_path):
    identity.save(tmp_path, Identity(id="ag-9", api_key="k9", server="https://enrolled.example"))
    assert settings.read({"CERTCTL_DATA_DIR": str(tmp_path)}, {}).server_url == "https://enrolled.example"
    environ["CERTCTL_SERVER_URL"] = "https://variable.example/"
    assert settings.read(environ, {}).server_url == "https://variable.example"
    found = settings.read(environ, {"CERTCTL_SERVER_URL": "https://flag.example"})
    assert (found.server_url, found.agent_id) == ("https://flag.example", "ag-1")


def test_without_a_word_the_server_on_this_machine_is_meant(environ, tmp_path):
    assert settings.read(environ, {}).server_url == "http://127.0.0.1:8080"
    (tmp_path / "client.toml").write_text('url = "https://127.0.0.1:8443"\nca_file = "/ca.pem"\napi_key = "admin"\n')
    found = settings.read(environ, {})
    assert (found.server_url, str(found.ca_file), found.api_key) == ("https://127.0.0.1:8443", "/ca.pem", "k")


BAD = {
    "CERTCTL_VERIFY_TIMEOUT": "10",
    "CERTCTL_VERIFY_DEPLOYMENT": "maybe",
    "CERTCTL_LOG_LEVEL": "loud",
    "CERTCTL_LOG_FORMAT": "xml",
    "CERTCTL_SERVER_URL": "certctl.example:8443",
}


@pytest.mark.parametrize(("variable", "value"), BAD.items(), ids=BAD)
def test_a_value_that_does_not_parse_stops_the_start_by_name(environ, variable, value):
    with pytest.raises(MisconfiguredError, match=variable):
        settings.read({**environ, variable: value}, {})


@pytest.mark.parametrize("url", ["http://192.0.2.1:8080", "http://certctl.example", "http://localhost.example"])
def test_plain_http_to_another_machine_is_refused(environ, url):
    with pytest.raises(MisconfiguredError, match="unencrypted"):
        settings.read({**environ, "CERTCTL_SERVER_URL": url}, {})


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9"])
def test_plain_http_to_this_machine_is_fine(environ, url):
    assert settings.read({**environ, "CERTCTL_SERVER_URL": url}, {}).server_url == url


def test_a_key_may_come_from_a_file_and_is_never_shown(environ, tmp_path):
    file = tmp_path / "key"
    file.write_text("from-file\n")
    del environ["CERTCTL_API_KEY"]
    found = settings.read({**environ, "CERTCTL_API_KEY_FILE": str(file)}, {})
    assert found.api_key == "from-file"
    assert "from-file" not in repr(found)
    with pytest.raises(MisconfiguredError, match="CERTCTL_API_KEY_FILE"):
        settings.read({**environ, "CERTCTL_API_KEY_FILE": str(tmp_path / "none")}, {})


def test_agent_toml_says_what_is_allowed(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(allowed.write_text(["/etc/nginx/ssl"], {"reload": ("nginx", "-s", 'a "b"')}, ["/srv/tls"]))
    found = allowed.read(file)
    assert [str(each) for each in found.allowed.directories] == ["/etc/nginx/ssl"]
    assert found.allowed.commands == {"reload": ("nginx", "-s", 'a "b"')}
    assert [str(each) for each in found.discovery_directories] == ["/srv/tls"]


def test_an_agent_toml_that_others_may_write_is_refused(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("directories = []")
    file.chmod(0o664)
    with pytest.raises(MisconfiguredError, match="chmod go-w"):
        allowed.read(file)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777], ids=["group", "others", "sticky"])
def test_an_agent_toml_in_a_directory_that_others_may_write_to_is_refused(tmp_path, mode):
    directory = tmp_path / "etc"
    directory.mkdir()
    (directory / "agent.toml").write_text("directories = []\n")
    (directory / "agent.toml").chmod(0o600)
    directory.chmod(mode)
    with pytest.raises(MisconfiguredError, match=r"etc can be written by others"):
        allowed.read(directory / "agent.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("given", ["file", "directory"])
def test_an_agent_toml_of_another_user_is_refused(tmp_path, given):
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    (directory / "agent.toml").write_text("directories = []\n")
    os.chown(directory if given == "directory" else directory / "agent.toml", 12345, 12345)
    with pytest.raises(MisconfiguredError, match="belongs neither to root nor to this user"):
        allowed.read(directory / "agent.toml")


def test_a_pipe_in_place_of_agent_toml_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "agent.toml", 0o600)
    with pytest.raises(MisconfiguredError, match="no plain file"):
        allowed.read(tmp_path / "agent.toml")


def test_without_agent_toml_nothing_is_allowed(tmp_path):
    assert allowed.read(tmp_path / "agent.toml") == allowed.AgentToml()


MEANT_OTHERWISE = {
    "relative directory": 'directories = ["tls"]',
    "upwards": 'directories = ["/etc/../root"]',
    "text": 'directories = "/etc"',
    "command line": '[commands]\nreload = "nginx -s reload"',
    "empty command": "[commands]\nreload = []",
    "commands list": "commands = []",
    "unknown key": "directory = []",
    "unknown table key": "[discovery]\ndirs = []",
    "no toml": "directories = [",
}


@pytest.mark.parametrize("text", MEANT_OTHERWISE.values(), ids=MEANT_OTHERWISE)
def test_an_agent_toml_that_cannot_be_meant_is_refused(tmp_path, text):
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(MisconfiguredError, match=r"agent\.toml"):
        allowed.read(file)


@pytest.mark.parametrize("form", [logs.JsonLines(), logs.Text()], ids=["json", "text"])
def test_log_lines_cannot_be_broken_by_what_a_peer_wrote(form):
    record = logging.makeLogRecord({"msg": "deployed", "levelname": "INFO", "said": "x\nforged line\x1b[2J"})
    line = form.format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "deployed" in line
