from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certctl_core import plugins
from certctl_core.errors import MisconfiguredError
from certctl_sdk import profile_file
from certctl_sdk.http import httpx
from certctl_server import db, files, host_keys, reserved, start, welcome
from certctl_server.auth.keys import Keyring, authenticate, authenticate_token
from certctl_server.auth.roles import Role
from certctl_server.connectors.config import unseal
from certctl_server.db import session
from certctl_server.policies.rules import rule_of
from certctl_server.sealing import Cipher, place
from certctl_server.settings import Settings
from certctl_server.start import Running

NOBODYS = Keyring(())
OF_RULE = ("id", "name", "type", "config", "severity")
ROWS = {"team": "t-unassigned", "owner": "o-unassigned", "renewal_policy": "rp-default", "issuer": "iss-local"}


def now():
    return datetime.now(UTC)


def embedded(directory, **more):
    return Settings(data_dir=directory / "data", **more)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


async def whose(key):
    return await authenticate(key, NOBODYS, now())


async def test_a_first_start_makes_the_rows_that_clients_count_on(tmp_path):
    async with start.ground(embedded(tmp_path)):
        rules = {row["id"]: row for row in await db.fetch(db.Sql("SELECT * FROM policy_rule"))}
        assert sorted(rules) == ["pr-allowed-environments", "pr-min-renewal-window", "pr-require-owner"]
        assert {row["severity"] for row in rules.values()} == {"Warning"}
        assert all(rule_of(*(row[name] for name in OF_RULE)).terms for row in rules.values())
        for table, row_id in ROWS.items():
            assert [row["id"] for row in await db.fetch(db.Sql(f"SELECT id FROM {table}"))] == [row_id]
        [policy] = await db.fetch(db.Sql("SELECT * FROM renewal_policy"))
        assert (policy["renewal_window_days"], policy["max_retries"], policy["retry_interval_seconds"]) == (30, 3, 3600)
        assert json.loads(policy["alert_thresholds_days"]) == [30, 14, 7, 0]
        [issuer] = await db.fetch(db.Sql("SELECT * FROM issuer"))
        assert (issuer["type"], issuer["config"], issuer["enabled"]) == ("GenericCA", "{}", True)


async def test_a_row_that_was_deleted_does_not_come_back_at_the_next_start(tmp_path):
    async with start.ground(embedded(tmp_path)):
        await db.fetch(db.Sql("DELETE FROM renewal_policy"))
    async with start.ground(embedded(tmp_path)):
        assert await db.fetch(db.Sql("SELECT id FROM renewal_policy")) == []


async def test_the_data_directory_is_its_owners_alone(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    async with start.ground(embedded(tmp_path)):
        assert mode(tmp_path / "data") == 0o700


async def test_two_servers_never_share_a_data_directory(tmp_path):
    async with start.ground(embedded(tmp_path)):
        with pytest.raises(MisconfiguredError, match=rf"process {os.getpid()}\) holds"):
            async with start.ground(embedded(tmp_path)):
                pass


async def test_two_servers_never_share_a_database_file_either(tmp_path):
    url = {"url": f"sqlite://{tmp_path}/shared.db"}
    async with start.ground(Settings(data_dir=tmp_path / "a", database=url)):
        with pytest.raises(MisconfiguredError, match=r"shared\.db\.lock"):
            async with start.ground(Settings(data_dir=tmp_path / "b", database=url)):
                pass


async def test_a_lock_ends_with_its_holder(tmp_path):
    with files.held(tmp_path / "lock"):
        pass
    with files.held(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


async def test_keys_are_handed_over_once_in_files_where_nobody_watches(tmp_path):
    settings = embedded(tmp_path)
    async with start.ground(settings):
        handed = await start.hand_over(settings, "", terminal=False)
        assert handed == start.Handed(
            admin_key_file=settings.data_dir / "admin-key", token_file=settings.data_dir / "enrol-token"
        )
        assert {mode(settings.data_dir / name) for name in ("admin-key", "enrol-token", "client.toml")} == {0o600}
        admin = await whose((settings.data_dir / "admin-key").read_text().strip())
        local = await whose(profile_file.read(settings.data_dir).api_key)
        assert (admin.role, admin.name, local.role, local.name) == (Role.ADMIN, "admin", Role.ADMIN, "local")
        assert await authenticate_token((settings.data_dir / "enrol-token").read_text().strip(), now())
        (settings.data_dir / "admin-key").unlink()
        assert await start.hand_over(settings, "", terminal=False) is None
        assert not (settings.data_dir / "admin-key").exists()


async def test_on_a_terminal_keys_are_shown_and_not_written(tmp_path):
    settings = embedded(tmp_path)
    async with start.ground(settings):
        handed = await start.hand_over(settings, "ab" * 32, terminal=True)
        assert handed.token.endswith("." + "ab" * 32)
        assert (await whose(handed.admin_key)).role == Role.ADMIN
        assert await authenticate_token(handed.token, now())
    assert not (settings.data_dir / "admin-key").exists()
    assert not (settings.data_dir / "enrol-token").exists()
    assert handed.admin_key not in repr(handed)


async def test_an_admin_key_of_the_environment_spares_the_first_one(tmp_path):
    settings = embedded(tmp_path, auth={"secret": "given"})
    async with start.ground(settings):
        handed = await start.hand_over(settings, "", terminal=True)
        assert handed.admin_key == ""
        assert [row["name"] for row in await db.fetch(db.Sql("SELECT name FROM api_key"))] == ["local"]


async def test_keys_that_could_not_be_written_are_not_in_the_database(tmp_path):
    settings = embedded(tmp_path)
    async with start.ground(settings):
        (settings.data_dir / "enrol-token").mkdir()
        with pytest.raises(OSError, match="enrol-token"):
            await start.hand_over(settings, "", terminal=False)
        assert await db.fetch(db.Sql("SELECT id FROM api_key")) == []
        assert not (settings.data_dir / "admin-key").exists()
        (settings.data_dir / "enrol-token").rmdir()
        assert await start.hand_over(settings, "", terminal=False)


async def test_client_toml_follows_the_address_and_keeps_its_key(tmp_path):
    settings = embedded(tmp_path)
    files.prepare(settings.data_dir)
    files.replace(settings.data_dir / "client.toml", 'api_key = "kept"\n', mode=0o600)
    start.write_client(settings, "https://localhost:9", settings.data_dir / "server-ca.pem")
    found = profile_file.read(settings.data_dir)
    assert (found.url, found.api_key) == ("https://localhost:9", "kept")
    assert found.ca_file == str(settings.data_dir / "server-ca.pem")


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", "auto", "http://127.0.0.1:9"),
        ("::1", "auto", "http://[::1]:9"),
        ("0.0.0.0", "auto", "https://localhost:9"),
        ("0.0.0.0", "off", "http://localhost:9"),
        ("certctl.example", "auto", "https://certctl.example:9"),
    ],
)
def test_local_clients_are_told_an_address_that_they_can_check(host, tls, url):
    assert start.local_url(Settings(server={"host": host, "tls_mode": tls}), 9) == url


async def let_go():
    """Close the database that the fixture opened, for a server to open it; return where it is."""
    engine = session.engine()
    url = f"sqlite://{engine.path}" if db.dialect() == "sqlite" else engine.config["dsn"]
    await db.close()
    return url


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_shared_database_does_not_start_while_nobody_could_log_in(database, tmp_path):
    scaled = {"data_dir": tmp_path / "data", "database": {"url": await let_go()}, "config_encryption_key": "ab" * 32}
    with pytest.raises(MisconfiguredError, match="nobody could log in"):
        async with start.ground(Settings(**scaled)):
            pass
    async with start.connected(Settings(**scaled)):
        key = await host_keys.create("rescue", "admin")
    async with start.ground(Settings(**scaled)):
        assert (await whose(key)).role == Role.ADMIN
        assert await start.hand_over(Settings(**scaled), "", terminal=True) is None
        [key_row] = await db.fetch(db.Sql("SELECT id FROM api_key"))
        await host_keys.revoke(key_row["id"])
        with pytest.raises(MisconfiguredError, match="no valid key"):
            await host_keys.revoke(key_row["id"])
        assert ["ended" in line for line in await host_keys.listed()] == [False, True]
    async with start.ground(Settings(**scaled, auth={"secret": "given"})):
        pass


async def test_a_database_that_is_not_there_is_told_with_its_variable(tmp_path):
    settings = embedded(tmp_path, database={"url": f"sqlite://{tmp_path}/none/certctl.db"})
    with pytest.raises(MisconfiguredError, match="CERTCTL_DATABASE_URL"):
        async with start.connected(settings):
            pass


async def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    async with start.ground(embedded(tmp_path)):
        await db.fetch(db.Sql("INSERT INTO migration (name, ran_on) VALUES ('m9999_future', {now})"))
    with pytest.raises(MisconfiguredError, match="m9999_future by a newer version"):
        async with start.ground(embedded(tmp_path)):
            pass


def test_what_is_less_safe_than_it_could_be_is_said(caplog):
    unsafe = Settings(
        auth={"type": "none"},
        agent_keys="optional",
        server={"host": "0.0.0.0", "tls_mode": "off"},
    )
    start.warn(unsafe, {"CERTCTL_EST_ENABLED": "true"})
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for variable in ("AUTH_TYPE=none", "AGENT_KEYS=optional", "TLS_MODE=off"):
        assert any(variable in line for line in said)
    assert [record.variable for record in caplog.records if hasattr(record, "variable")] == ["CERTCTL_EST_ENABLED"]
    caplog.clear()
    start.warn(Settings(), {})
    assert caplog.records == []


async def test_the_webhook_of_the_environment_changes_only_when_it_changes(database):
    cipher, found = Cipher([b"k" * 32]), plugins.load()

    async def put(url):
        settings = Settings(webhook={"url": url, "secret": "hunter2"})
        await reserved.put_webhook(settings, found, cipher, now())
        return await db.fetch(db.Sql("SELECT * FROM notifier"))

    assert await put("") == []
    [row] = await put("https://hook.example/x")
    assert "hunter2" not in row["config"]
    opened = unseal(json.loads(row["config"]), cipher, place("notifier", "nt-webhook", "config"))
    assert opened == {"url": "https://hook.example/x", "secret": "hunter2"}
    assert await put("https://hook.example/x") == [row]
    [changed] = await put("https://hook.example/y")
    assert changed["config_version"] == row["config_version"] + 1


def test_the_next_commands_name_the_data_directory_only_if_they_must(tmp_path, monkeypatch):
    monkeypatch.setenv("CERTCTL_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("certctl", "certctl-agent"):
        (programs / name).touch()
    handed = start.Handed(token="secret.pin")
    here = welcome.commands(Running(Settings(data_dir=tmp_path), "http://x", handed), ".venv/bin/certctl")
    assert here[0][1] == ".venv/bin/certctl status"
    assert ".venv/bin/certctl-agent enroll --yes --token secret.pin" in [line for _, line in here]
    there = welcome.commands(Running(Settings(data_dir=tmp_path / "x y"), "http://x", None), "certctl")
    assert there[0][1] == f"CERTCTL_DATA_DIR='{tmp_path}/x y' certctl status"
    assert there[1][1].endswith("certctl agents tokens create")


def on_the_host(data_dir, *arguments):
    """`certctl-server` as root types it on the machine."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CERTCTL_")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("certctl-server")), *arguments],
        capture_output=True,
        text=True,
        env={**environ, "CERTCTL_DATA_DIR": str(data_dir)},
        check=False,
    )


def test_whoever_has_the_machine_gets_back_in(tmp_path):
    made = on_the_host(tmp_path, "keys", "create", "--role", "admin", "--name", "rescue")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("cck_")
    [_, line] = on_the_host(tmp_path, "keys", "list").stdout.splitlines()
    key_id, role, name, prefix, state, *_ = line.split()
    assert (role, name, state) == ("admin", "rescue", "valid")
    assert made.stdout.startswith(prefix)
    assert on_the_host(tmp_path, "keys", "revoke", key_id).returncode == 0
    assert "ended" in on_the_host(tmp_path, "keys", "list").stdout
    again = on_the_host(tmp_path, "keys", "revoke", key_id)
    assert (again.returncode, again.stderr) == (1, f"Error: no valid key is called {key_id}\n")


def test_the_schema_may_be_brought_up_to_date_before_the_start(tmp_path):
    assert "m0001_first" in on_the_host(tmp_path, "migrate").stdout
    assert "up to date" in on_the_host(tmp_path, "migrate").stdout


class Process:
    """`certctl up` as a person starts it."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.began = time.monotonic()
        self.url = f"http://127.0.0.1:{port}"
        programs = Path(sys.executable).parent
        self.child = subprocess.Popen(
            [str(programs / "certctl"), "up", "--port", str(port), "--data-dir", str(data_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("CERTCTL_")},
        )

    def ready(self, within: float) -> None:
        """Return once /ready answers."""
        while time.monotonic() - self.began < within:
            assert self.child.poll() is None, self.child.communicate()
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(f"not ready within {within} s")

    def processor_seconds(self) -> float:
        """What it took of the processor up to now, which does not depend on what else the machine does."""
        _, _, status = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(") ")
        return sum(map(int, status.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> tuple[str, str]:
        self.child.send_signal(signal.SIGTERM)
        out, err = self.child.communicate(timeout=35)
        assert self.child.returncode == 0, err
        return out, err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_up_starts_from_nothing_and_finds_everything_again(tmp_path):
    port = free_port()
    process = Process(tmp_path, port)
    try:
        process.ready(within=60)
        key = (tmp_path / "admin-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        made = httpx.post(f"{process.url}/api/v1/teams", json={"id": "t-kept", "name": "kept"}, headers=headers)
        assert made.status_code == 201, made.text
        page = httpx.get(process.url)
        assert page.headers["content-type"].startswith("text/html")
        assert key not in page.text
    finally:
        out, err = process.stop()
    assert f"certctl is running at {process.url}" in out
    assert key not in out + err

    process = Process(tmp_path, port)
    try:
        process.ready(within=60)
        assert process.processor_seconds() < 10
        assert httpx.get(f"{process.url}/api/v1/teams/t-kept", headers=headers).status_code == 200
        assert process.memory_mib() < 200
        assert profile_file.read(tmp_path).api_key
    finally:
        out, _ = process.stop()
    assert "admin key" not in out


def test_on_a_terminal_the_first_keys_are_shown_once(tmp_path):
    port = free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CERTCTL_")}
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [str(Path(sys.executable).with_name("certctl")), "up", "--port", str(port), "--data-dir", str(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(theirs)
    seen = b""
    try:
        while b"certs list" not in seen:
            assert select.select([ours], [], [], 30)[0], seen
            seen += os.read(ours, 65536)
    finally:
        child.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 35)[0]:
            try:
                os.read(ours, 65536)
            except OSError:
                break
        os.close(ours)
        assert child.wait(35) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
    [key] = re.findall(r"cck_[0-9a-f]{8}_[\w-]{43}", text)
    assert len(re.findall(r"enroll --yes --token [\w-]{43}\s", text)) == 1
    assert key != profile_file.read(tmp_path).api_key
    assert not (tmp_path / "admin-key").exists()
    assert not (tmp_path / "enrol-token").exists()
