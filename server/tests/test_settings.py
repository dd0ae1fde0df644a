from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network

import pytest
from certctl_core.errors import MisconfiguredError
from certctl_server import settings
from certctl_server.settings import Server, read, unused, variables

DURATIONS = {"30s": 30, "1h30m": 5400, "24h": 86400, "1500ms": 1.5, "1.5m": 90}
WRONG = {
    "CERTCTL_SERVER_PORT": "http",
    "CERTCTL_SERVER_TLS_MODE": "perhaps",
    "CERTCTL_DATABASE_URL": "mysql://db/certctl",
    "CERTCTL_DATABASE_MAX_CONNS": "0",
    "CERTCTL_LOG_LEVEL": "loud",
    "CERTCTL_AUTH_TYPE": "jwt",
    "CERTCTL_API_KEYS_NAMED": "deploy:key:root",
    "CERTCTL_RATE_LIMIT_ENABLED": "maybe",
    "CERTCTL_SCHEDULER_RENEWAL_CHECK_INTERVAL": "59s",
    "CERTCTL_SCHEDULER_RETRY_INTERVAL": "5",
    "CERTCTL_JOB_LEASE": "0",
    "CERTCTL_KEYGEN_MODE": "browser",
    "CERTCTL_AGENT_KEYS": "shared",
    "CERTCTL_TRUSTED_PROXIES": "everyone",
    "CERTCTL_MAX_BODY_SIZE": "-1",
    "CERTCTL_CA_CERT_PATH": "/ca.pem",
}


def test_without_a_variable_the_documented_defaults_hold():
    found = read({})
    assert (found.server.host, found.server.port, found.server.tls) == ("127.0.0.1", 8080, "off")
    assert (found.max_body_size, found.database.max_conns) == (1_048_576, 25)
    assert (found.rate_limit.enabled, found.rate_limit.rps, found.rate_limit.burst) == (True, 50, 100)
    assert (found.auth.type, found.agent_keys, found.keygen_mode) == ("api-key", "required", "agent")
    assert (found.log.level, found.log.format) == ("info", "json")
    assert found.job.lease == timedelta(seconds=30)
    assert found.embedded


@pytest.mark.parametrize(("word", "meaning"), [("YES", True), ("1", True), ("off", False), ("False", False)])
def test_flags_are_words_in_any_case(word, meaning):
    assert read({"CERTCTL_RATE_LIMIT_ENABLED": word}).rate_limit.enabled is meaning


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items(), ids=DURATIONS)
def test_durations_are_written_as_in_go(text, seconds):
    assert read({"CERTCTL_JOB_AWAITING_CSR_TIMEOUT": text}).job.awaiting_csr_timeout.total_seconds() == seconds


def test_lists_are_split_at_commas_and_blanks_removed():
    found = read({"CERTCTL_CORS_ORIGINS": "https://a, https://b,", "CERTCTL_TRUSTED_PROXIES": "10.0.0.0/8, ::1"})
    assert found.cors_origins == ("https://a", "https://b")
    assert found.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))


def test_named_keys_are_operators_unless_they_say_admin():
    found = read({"CERTCTL_API_KEYS_NAMED": "ci:one, ops:two:admin, ci:three"}).auth.named_keys
    assert [(each.name, each.key, each.role) for each in found] == [
        ("ci", "one", "operator"),
        ("ops", "two", "admin"),
        ("ci", "three", "operator"),
    ]


def test_several_admin_keys_may_be_given_while_one_replaces_the_other():
    assert read({"CERTCTL_AUTH_SECRET": "new, old"}).auth.secrets == ("new", "old")


@pytest.mark.parametrize(("variable", "value"), WRONG.items(), ids=WRONG)
def test_a_value_that_does_not_parse_stops_the_start_and_names_its_variable(variable, value):
    with pytest.raises(MisconfiguredError, match=variable):
        read({variable: value})


def test_all_faults_are_told_at_once():
    with pytest.raises(MisconfiguredError) as caught:
        read({"CERTCTL_SERVER_PORT": "x", "CERTCTL_LOG_LEVEL": "x", "CERTCTL_MAX_BODY_SIZE": "x"})
    for variable in ("CERTCTL_SERVER_PORT", "CERTCTL_LOG_LEVEL", "CERTCTL_MAX_BODY_SIZE"):
        assert str(caught.value).count(variable) == 1


def test_a_secret_that_does_not_parse_is_not_repeated():
    with pytest.raises(MisconfiguredError) as caught:
        read({"CERTCTL_API_KEYS_NAMED": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_show_when_settings_are_printed():
    found = read(
        {
            "CERTCTL_AUTH_SECRET": "hunter2",
            "CERTCTL_API_KEYS_NAMED": "ci:hunter2",
            "CERTCTL_DATABASE_URL": "sqlite:///hunter2",
        }
    )
    assert "hunter2" not in repr(found)


def test_a_secret_may_come_from_a_file(tmp_path):
    (tmp_path / "secret").write_text("from-file\n")
    assert read({"CERTCTL_AUTH_SECRET_FILE": str(tmp_path / "secret")}).auth.secrets == ("from-file",)


def test_a_secret_file_that_is_missing_stops_the_start(tmp_path):
    with pytest.raises(MisconfiguredError, match=r"CERTCTL_AUTH_SECRET_FILE: .* cannot be read"):
        read({"CERTCTL_AUTH_SECRET_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("given", "tls"),
    [
        ({"host": "127.0.0.1"}, "off"),
        ({"host": "::1"}, "off"),
        ({"host": "localhost"}, "off"),
        ({"host": "0.0.0.0"}, "self"),
        ({"host": "certctl.example"}, "self"),
        ({"host": "0.0.0.0", "tls_mode": "off"}, "off"),
        ({"host": "127.0.0.1", "tls_mode": "SELF"}, "self"),
        ({"host": "127.0.0.1", "tls_cert_path": "/c", "tls_key_path": "/k"}, "files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_every_bind_off_loopback_speaks_tls_unless_told_otherwise(given, tls):
    assert Server(**given).tls == tls


@pytest.mark.parametrize(
    ("environ", "embedded"),
    [
        ({"CERTCTL_DATABASE_URL": "sqlite:///tmp/x.db"}, True),
        ({"CERTCTL_DATABASE_URL": "postgres://db/certctl"}, False),
    ],
    ids=["sqlite", "postgres"],
)
def test_one_process_is_embedded_only_without_a_database_server(environ, embedded):
    assert read(environ).embedded is embedded


def test_the_default_database_lies_in_the_data_directory(tmp_path):
    assert read({"CERTCTL_DATA_DIR": str(tmp_path / "a b")}).database_url == f"sqlite://{tmp_path}/a%20b/certctl.db"


def test_settings_made_by_hand_do_not_look_at_the_environment(monkeypatch):
    monkeypatch.setenv("CERTCTL_SERVER_PORT", "1234")
    assert Server().port == 8080


def test_variables_that_do_nothing_here_are_told():
    environ = {
        "CERTCTL_EST_ENABLED": "true",
        "CERTCTL_EGRES_ALLOW": "10.0.0.0/8",
        "CERTCTL_AUTH_SECRET_FILE": "/run/secret",
        "CERTCTL_SERVER_URL": "https://certctl.example",
        "PATH": "/bin",
    }
    assert unused(environ) == ["CERTCTL_EGRES_ALLOW", "CERTCTL_EST_ENABLED"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CERTCTL_KEYGEN_MODE", "server"), ("CERTCTL_BROKER_URL", "redis://broker")],
)
def test_what_is_not_built_yet_and_would_be_missed_stops_the_start(variable, value):
    with pytest.raises(MisconfiguredError, match=variable):
        read({variable: value})


@pytest.mark.parametrize("name", ["PKI_HTTP_PORT", "PKI_BASE_URL"])
def test_what_is_not_built_yet_is_told(name):
    environ = {f"CERTCTL_{name}": "1"}
    read(environ)
    assert unused(environ) == [f"CERTCTL_{name}"]


def test_only_secrets_come_from_files(tmp_path):
    (tmp_path / "given").write_text("1234")
    environ = {
        f"CERTCTL_{name}_FILE": str(tmp_path / "given")
        for name in ("SERVER_PORT", "DATA_DIR", "DATABASE_URL", "API_KEYS_NAMED", "CONFIG_ENCRYPTION_KEY", "API_KEY")
    }
    assert unused(environ) == ["CERTCTL_DATA_DIR_FILE", "CERTCTL_SERVER_PORT_FILE"]
    assert read({"CERTCTL_SERVER_PORT_FILE": environ["CERTCTL_SERVER_PORT_FILE"]}).server.port == 8080


def test_no_two_settings_share_a_variable():
    groups = [settings.Settings, *settings.GROUPS.values()]
    assert sum(len(group.variables()) for group in groups) == len(variables())
    assert all(name.startswith("CERTCTL_") for name in variables())
