"""How the product starts, stops and starts again, with everything as it was left."""

import re
import signal
import stat
import time

import pytest
from certctl_sdk.testing.fake_ca import csr_pem

HANDED_OVER = ("admin-key", "enrol-token", "client.toml")
SECOND_START_SECONDS = 3.0
STOP_SECONDS = 10.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def server(stage):
    server = stage.server().start()
    yield server
    server.kill()


def role(server, key):
    """What ``key`` may do, or the status that refuses it."""
    with server.client(key) as client:
        answer = client.get("/api/v1/auth/check")
    return answer.json()["role"] if answer.status_code == 200 else answer.status_code


def handed(server, name):
    return (server.data_dir / name).read_text().strip()


def issue(server, name):
    """Get a certificate without an agent, for a CSR made here; return its id and its fingerprint."""
    certificate = server.order(name)["id"]
    server.post(f"certificates/{certificate}/renew", {"csr_pem": csr_pem(name)})
    row = server.until(f"certificates/{certificate}", lambda row: row.get("fingerprint"), "the certificate")
    return certificate, row["fingerprint"]


def test_a_first_start_stays_in_the_foreground_and_hands_its_keys_over_in_files(server):
    assert server.running
    for name in HANDED_OVER:
        assert stat.S_IMODE((server.data_dir / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    key, token = handed(server, "admin-key"), handed(server, "enrol-token")
    assert (role(server, key), role(server, key + "x")) == ("admin", 401)
    assert str(server.data_dir / "admin-key") in server.said
    for secret in (key, token, handed(server, "client.toml").partition('api_key = "')[2].strip('"')):
        assert secret
        assert secret not in server.said


def test_a_second_start_is_quick_and_finds_everything_as_it_was(server):
    key = handed(server, "admin-key")
    certificate, fingerprint = issue(server, "kept.example.com")
    root = server.root_pem(certificate)
    for name in ("admin-key", "enrol-token"):
        (server.data_dir / name).unlink()
    took = []
    while not took or (took[-1] >= SECOND_START_SECONDS and len(took) < 4):  # others may be at work on this machine
        assert server.end(signal.SIGTERM) == 0
        begin = time.monotonic()
        server.start()
        took.append(time.monotonic() - begin)
    assert min(took) < SECOND_START_SECONDS
    assert not (server.data_dir / "admin-key").exists()
    assert not (server.data_dir / "enrol-token").exists()
    assert role(server, key) == "admin"
    assert server.get(f"certificates/{certificate}")["fingerprint"] == fingerprint
    assert server.root_pem(issue(server, "later.example.com")[0]) == root


def test_the_first_key_is_shown_on_a_terminal_once_and_written_nowhere(stage, waiting):
    server = stage.server()
    server.start(terminal=True)
    waiting(lambda: "certs list" in server.said, "the last line of the welcome")
    lines = [line.strip() for line in ANSI.sub("", server.said).splitlines()]
    key = lines[lines.index("admin key, shown this once:") + 1]
    token = lines[lines.index("enrolment token for one agent, within 24 hours:") + 1]
    assert role(server, key) == "admin"
    for path, content in server.files().items():
        for secret in (key, token):
            assert secret.encode() not in content, path
    assert not (server.data_dir / "admin-key").exists()

    assert server.end(signal.SIGINT) == 0
    shown = len(server.said)
    server.start(terminal=True)
    waiting(lambda: "certs list" in server.said[shown:], "the last line of the welcome")
    assert "certctl is running" in server.said[shown:]
    assert "shown this once" not in server.said[shown:]
    assert role(server, key) == "admin"
    server.kill()


@pytest.mark.parametrize("running", [True, False], ids=["beside the server", "while it is stopped"])
def test_whoever_has_the_host_gets_back_in_when_every_key_is_lost(stage, server, running):
    for key in server.all("auth/keys")[::-1]:
        if key["name"] != "admin":
            server.call("DELETE", f"auth/keys/{key['id']}")
    [admin] = server.all("auth/keys")
    assert server.call("DELETE", f"auth/keys/{admin['id']}")[0] == 204
    assert role(server, handed(server, "admin-key")) == 401
    if not running:
        assert server.end(signal.SIGTERM) == 0
    key = stage.run(server, "certctl-server", "keys", "create", "--role", "admin").stdout.strip()
    if not running:
        server.start()
    assert role(server, key) == "admin"
    server.speak(key)
    made = [event for event in server.all("audit", action="key_created") if event["actor"] == "certctl-server"]
    assert [event["details"]["role"] for event in made] == ["admin"]


def test_a_server_that_was_killed_starts_again(server):
    certificate, fingerprint = issue(server, "survivor.example.com")
    server.end(signal.SIGKILL)
    server.start()
    assert server.get(f"certificates/{certificate}")["fingerprint"] == fingerprint


def test_an_agent_that_waits_for_work_does_not_hold_up_the_end(stage, server):
    agent = stage.agent(server).start()
    time.sleep(1)  # it is asking for work by now
    begin = time.monotonic()
    assert server.end(signal.SIGTERM) == 0
    assert time.monotonic() - begin < STOP_SECONDS
    assert agent.running
    begin = time.monotonic()
    assert agent.end(signal.SIGTERM) == 0
    assert time.monotonic() - begin < STOP_SECONDS


def test_a_second_server_on_the_same_data_says_who_holds_it(stage, server):
    refused = stage.run(server, "certctl", "up", "--port", "0", code=1)
    assert f"process {server.pid}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert server.ready()
