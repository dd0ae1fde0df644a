from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint, version
from pathlib import Path

import click
import pytest
from certctl_sdk import cli, profile_file
from certctl_sdk.cli import brought, output
from click.testing import CliRunner

KEY = "cck_12345678_secret"
CERT = {"id": "mc-1", "common_name": "web.example.com", "status": "Active", "expires_at": "2030-01-01T00:00:00Z"}
PROGRAM = str(Path(sys.executable).with_name("certctl"))


@pytest.fixture
def certctl(server, tmp_path):
    """Call the command as beside an embedded server."""
    client = profile_file.ClientFile(url=server.url, api_key=KEY)
    (tmp_path / profile_file.NAME).write_text(profile_file.write(client))

    def call(*arguments):
        return CliRunner().invoke(cli.main, arguments, env={"CERTCTL_DATA_DIR": str(tmp_path)})

    return call


def sent(server, number=-1):
    (method, path, query, body), _ = server.asked[number]
    return method, path, query, json.loads(body) if body else None


def listing(*rows, total=None):
    return 200, {"data": list(rows), "total": len(rows) if total is None else total, "page": 1, "per_page": 50}


def test_a_list_is_aligned_text_where_nobody_watches(certctl, server):
    server.answers["GET", "/api/v1/certificates"] = listing(CERT, {**CERT, "id": "mc-22"}, total=9)
    done = certctl("certs", "list", "--status", "active", "--page", "1", "--per-page", "2", "--env", "production")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "ID     COMMON NAME      STATUS  EXPIRES AT            ISSUER ID",
        "mc-1   web.example.com  Active  2030-01-01T00:00:00Z  -",
        "mc-22  web.example.com  Active  2030-01-01T00:00:00Z  -",
    ]
    assert "2 of 9" in done.stderr
    assert sent(server)[2] == {"status": "active", "page": "1", "per_page": "2", "environment": "production"}


def test_json_lists_keep_only_data_and_total(certctl, server):
    server.answers["GET", "/api/v1/jobs"] = listing({"id": "job-1"})
    assert json.loads(certctl("--format", "json", "jobs", "list").stdout) == {"data": [{"id": "job-1"}], "total": 1}


def test_a_refusal_is_one_line_on_standard_error_and_status_1(certctl, server):
    server.answers["GET", "/api/v1/agents/a"] = (404, {"message": "Agent not found"})
    done = certctl("agents", "get", "a")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == 'error: API error (HTTP 404): {"message": "Agent not found"}\n'


def test_a_server_that_is_away_is_one_line_too(certctl):
    done = certctl("--server", "http://127.0.0.1:1", "status")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: http://127.0.0.1:1 did not answer")


def test_options_before_the_command_choose_server_and_key(certctl, server):
    server.answers["GET", "/api/v1/teams/t"] = (200, {"id": "t"})
    assert certctl("--server", server.url, "--api-key", "mine", "--format", "table", "teams", "get", "t").exit_code == 0
    assert server.asked[-1][1]["Authorization"] == "Bearer mine"


def test_the_key_is_not_sent_in_the_clear_without_a_word(certctl, server):
    done = certctl("--server", "http://certctl.invalid", "--api-key", "mine", "status")
    assert "your key crosses the network unencrypted" in done.stderr
    assert "mine" not in done.stderr


ACTIONS = {
    ("certs", "renew", "mc-1"): ("certificates/mc-1/renew", {"force": False}),
    ("certs", "renew", "mc-1", "--force"): ("certificates/mc-1/renew", {"force": True}),
    ("certs", "revoke", "mc-1", "--reason", "superseded"): ("certificates/mc-1/revoke", {"reason": "superseded"}),
    ("certs", "revoke", "mc-1"): ("certificates/mc-1/revoke", {"reason": "unspecified"}),
    ("certs", "deploy", "mc-1", "--target", "t"): ("certificates/mc-1/deploy", {"target_id": "t"}),
    ("discovered", "claim", "dc-1", "--cert", "mc-1"): (
        "discovered-certificates/dc-1/claim",
        {"managed_certificate_id": "mc-1"},
    ),
    ("discovered", "claim", "dc-1", "--owner", "o", "--team", "t", "--issuer", "i"): (
        "discovered-certificates/dc-1/claim",
        {"create": True, "owner_id": "o", "team_id": "t", "issuer_id": "i"},
    ),
    ("discovered", "dismiss", "dc-1", "--reason", "lab"): ("discovered-certificates/dc-1/dismiss", {"reason": "lab"}),
    ("network-scans", "create", "nst-1", "--cidr", "192.0.2.0/24", "--cidr", "10.0.0.1", "--port", "8443"): (
        "network-scan-targets",
        {"id": "nst-1", "name": "nst-1", "cidrs": ["192.0.2.0/24", "10.0.0.1"], "ports": [8443]},
    ),
    ("network-scans", "scan", "nst-1"): ("network-scan-targets/nst-1/scan", {}),
    ("jobs", "cancel", "job-1"): ("jobs/job-1/cancel", {}),
    ("jobs", "retry", "job-1"): ("jobs/job-1/retry", {}),
    ("jobs", "approve", "job-1"): ("jobs/job-1/approve", {}),
    ("jobs", "reject", "job-1", "--reason", "too early"): ("jobs/job-1/reject", {"reason": "too early"}),
    ("issuers", "test", "iss-1"): ("issuers/iss-1/test", {}),
    ("targets", "test", "t"): ("targets/t/test", {}),
    ("notifiers", "test", "nt-1"): ("notifiers/nt-1/test", {}),
    ("notifiers", "create", "nt-1", "--type", "Webhook", "--event", "Revocation", "--set", "url=https://h.example"): (
        "notifiers",
        {
            "id": "nt-1",
            "name": "nt-1",
            "type": "Webhook",
            "events": ["Revocation"],
            "config": {"url": "https://h.example"},
        },
    ),
    ("agents", "tokens", "create", "--max-uses", "3"): ("agents/tokens", {"max_uses": 3}),
    ("keys", "create", "ci", "--role", "viewer"): ("auth/keys", {"name": "ci", "role": "viewer"}),
    ("teams", "create", "t-web", "--email", "w@x.example"): (
        "teams",
        {"id": "t-web", "name": "t-web", "email": "w@x.example"},
    ),
    ("owners", "create", "o-a", "--team", "t", "--name", "A"): ("owners", {"id": "o-a", "name": "A", "team_id": "t"}),
    ("profiles", "create", "p", "--set", "max_ttl_seconds=60", "--set", "description=1 day"): (
        "profiles",
        {"id": "p", "name": "p", "max_ttl_seconds": 60, "description": "1 day"},
    ),
    ("agent-groups", "create", "edge", "--os", "linux", "--set", "max_concurrent_deployments=3"): (
        "agent-groups",
        {"id": "edge", "name": "edge", "match_os": "linux", "max_concurrent_deployments": 3},
    ),
    (
        "policies",
        "create",
        "pr-1",
        "--type",
        "AllowedIssuers",
        "--severity",
        "Error",
        "--set",
        'allowed_issuer_ids=["i"]',
    ): (
        "policies",
        {
            "id": "pr-1",
            "name": "pr-1",
            "type": "AllowedIssuers",
            "severity": "Error",
            "config": {"allowed_issuer_ids": ["i"]},
        },
    ),
    ("renewal-policies", "create", "rp", "--config", '{"auto_renew": false}'): (
        "renewal-policies",
        {"id": "rp", "name": "rp", "auto_renew": False},
    ),
    ("issuers", "create", "iss-2", "--type", "GenericCA", "--set", "validity_days=30"): (
        "issuers",
        {"id": "iss-2", "name": "iss-2", "type": "GenericCA", "config": {"validity_days": 30}},
    ),
    ("targets", "create", "n", "--type", "NGINX", "--agent", "ag-1", "--set", "cert_path=/c=d"): (
        "targets",
        {"id": "n", "name": "n", "type": "NGINX", "agent_id": "ag-1", "config": {"cert_path": "/c=d"}},
    ),
}


@pytest.mark.parametrize(("command", "expected"), ACTIONS.items(), ids=map(" ".join, ACTIONS))
def test_a_command_sends_what_it_says(certctl, server, command, expected):
    path, body = expected
    server.answers["POST", f"/api/v1/{path}"] = (200, {"job_id": "job-7", "token": "secret.pin", "key": "cck_x"})
    done = certctl(*command)
    assert done.exit_code == 0, done.output
    assert sent(server) == ("POST", f"/api/v1/{path}", {}, body)


def test_jobs_are_retried_in_bulk(certctl, server):
    totals = {"total_matched": 3, "total_retried": 1, "total_skipped": 1, "total_failed": 1}
    found = {**totals, "errors": [{"job_id": "j-2", "error": "Job not found"}]}
    server.answers["POST", "/api/v1/jobs/bulk-retry"] = (200, found)
    done = certctl("jobs", "retry", "--status", "Failed", "--cert", "mc-1", "--dry-run")
    body = {"filter": {"status": "Failed", "certificate_id": "mc-1"}, "dry_run": True}
    assert sent(server) == ("POST", "/api/v1/jobs/bulk-retry", {}, body)
    assert done.stdout.strip() == "3 match: 1 tried again, 1 left alone, 1 not possible; j-2: Job not found"
    certctl("jobs", "retry", "j-1", "j-2")
    assert sent(server)[3] == {"job_ids": ["j-1", "j-2"]}
    assert certctl("jobs", "retry").exit_code == 2


def bulk(verb):
    totals = {"total_matched": 4, f"total_{verb}": 1, "total_skipped": 2, "total_failed": 1}
    errors = [{"certificate_id": "mc-9", "error": "Certificate not found"}]
    return 200, {**totals, "errors": errors, "reasons": {"Certificate not found": 1, "A renewal is under way": 2}}


@pytest.mark.parametrize(
    ("arguments", "verb", "body", "done"),
    [
        (("bulk-renew", "mc-1", "mc-9", "--dry-run"), "enqueued",
         {"certificate_ids": ["mc-1", "mc-9"], "dry_run": True}, "renewals ordered"),
        (("bulk-revoke", "--issuer", "i", "--status", "Active,Expiring", "--reason", "superseded"), "revoked",
         {"filter": {"issuer_id": "i", "status": "Active,Expiring"}, "reason": "superseded"}, "revoked"),
        (("bulk-reassign", "--owner", "o-1", "--to-owner", "o-2", "--to-team", "t-2"), "reassigned",
         {"filter": {"owner_id": "o-1"}, "owner_id": "o-2", "team_id": "t-2"}, "given away"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_certificates_are_renewed_revoked_and_given_away_in_bulk(certctl, server, arguments, verb, body, done):
    path = f"/api/v1/certificates/{arguments[0]}"
    server.answers["POST", path] = bulk(verb)
    said = certctl("certs", *arguments)
    assert said.exit_code == 0, said.output
    assert sent(server) == ("POST", path, {}, body)
    counted = f"4 match: 1 {done}, 2 left alone, 1 not possible"
    assert said.stdout.strip() == f"{counted}; Certificate not found: 1; A renewal is under way: 2"


@pytest.mark.parametrize(
    "arguments", [("bulk-renew",), ("bulk-revoke", "--reason", "superseded"), ("bulk-reassign", "--to-owner", "o")]
)
def test_a_bulk_action_on_everything_is_not_taken_for_meant(certctl, server, arguments):
    assert certctl("certs", *arguments).exit_code == 2
    assert server.asked == []


def test_a_network_is_changed_and_deleted(certctl, server):
    server.answers["PUT", "/api/v1/network-scan-targets/nst-1"] = (200, {"id": "nst-1"})
    server.answers["DELETE", "/api/v1/network-scan-targets/nst-1"] = (204, {})
    assert certctl("network-scans", "update", "nst-1", "--disabled", "--every", "12").exit_code == 0
    assert sent(server)[3] == {"enabled": False, "scan_interval_hours": 12}
    assert certctl("network-scans", "delete", "nst-1").exit_code == 0
    assert sent(server)[0] == "DELETE"


def test_an_order_needs_only_a_name(certctl, server):
    server.answers["POST", "/api/v1/certificates"] = (201, {**CERT, "job_id": "job-1"})
    done = certctl("certs", "create", "web.example.com", "--target", "nginx-1")
    assert sent(server)[3] == {
        "common_name": "web.example.com",
        "sans": [],
        "target_ids": ["nginx-1"],
        "issuer_id": "iss-local",
        "owner_id": "o-unassigned",
        "team_id": "t-unassigned",
    }
    assert "job-1" in done.stdout


def test_an_order_may_say_everything(certctl, server):
    server.answers["POST", "/api/v1/certificates"] = (201, CERT)
    more = (
        "--id",
        "mc-1",
        "--policy",
        "rp",
        "--profile",
        "p",
        "--env",
        "production",
        "--tag",
        "app=web",
        "--tag",
        "a=b=c",
    )
    assert certctl("certs", "create", "a.example", "b.example", "192.0.2.1", *more).exit_code == 0
    body = sent(server)[3]
    assert (body["common_name"], body["sans"]) == ("a.example", ["b.example", "192.0.2.1"])
    assert (body["id"], body["renewal_policy_id"], body["certificate_profile_id"]) == ("mc-1", "rp", "p")
    assert (body["environment"], body["tags"]) == ("production", {"app": "web", "a": "b=c"})


def test_the_only_agent_need_not_be_named(certctl, server):
    server.answers["GET", "/api/v1/agents"] = listing({"id": "ag-7"})
    server.answers["POST", "/api/v1/targets"] = (201, {"id": "n"})
    assert certctl("targets", "create", "n", "--type", "NGINX").exit_code == 0
    assert sent(server)[3]["agent_id"] == "ag-7"


@pytest.mark.parametrize("agents", [0, 2])
def test_of_several_agents_one_is_named(certctl, server, agents):
    server.answers["GET", "/api/v1/agents"] = listing(*({"id": str(number)} for number in range(agents)))
    done = certctl("targets", "create", "n", "--type", "NGINX")
    assert done.exit_code == 2
    assert f"there are {agents} agents" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "novalue"), "takes key=value"),
        (("--config", "{"), "is no JSON"),
        (("--config", "[1]"), "a JSON object"),
        (("--config", "@/none"), "is no JSON"),
    ],
)
def test_options_that_cannot_be_read_are_told_before_anything_is_sent(certctl, server, arguments, said):
    done = certctl("issuers", "create", "i", "--type", "GenericCA", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert server.asked == []


def test_a_configuration_may_come_from_a_file(certctl, server, tmp_path):
    (tmp_path / "config.json").write_text('{"url": "https://ca.example"}')
    server.answers["POST", "/api/v1/issuers"] = (201, {"id": "i"})
    path = f"@{tmp_path}/config.json"
    assert certctl("issuers", "create", "i", "--type", "GenericCA", "--config", path, "--set", "a=true").exit_code == 0
    assert sent(server)[3]["config"] == {"url": "https://ca.example", "a": True}


def test_tokens_and_keys_are_shown_alone_so_that_scripts_can_use_them(certctl, server):
    server.answers["POST", "/api/v1/agents/tokens"] = (201, {"id": "et-1", "token": "secret.pin"})
    server.answers["POST", "/api/v1/auth/keys"] = (201, {"id": "key-1", "key": "cck_x"})
    assert certctl("agents", "tokens", "create").stdout == "secret.pin\n"
    server.answers["POST", "/api/v1/auth/keys/key-1/rotate"] = (200, {"id": "key-2", "key": "cck_y"})
    assert certctl("keys", "create", "me", "--role", "admin").stdout == "cck_x\n"
    assert certctl("keys", "rotate", "key-1").stdout == "cck_y\n"


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("agents", "tokens", "delete"), "agents/tokens"),
        (("keys", "revoke"), "auth/keys"),
        (("keys", "delete"), "auth/keys"),
    ],
)
def test_what_lets_in_can_be_ended(certctl, server, command, path):
    server.answers["DELETE", f"/api/v1/{path}/x"] = (204, b"")
    assert certctl(*command, "x").stdout == "x is ended\n"


def test_members_of_a_group_are_listed_added_and_kept_out(certctl, server):
    path = "/api/v1/agent-groups/edge/members"
    server.answers["GET", path] = listing({"id": "ag-1", "membership_type": "dynamic"})
    server.answers["PUT", f"{path}/ag-1"] = (200, {})
    server.answers["DELETE", f"{path}/ag-1"] = (204, b"")
    assert certctl("agent-groups", "members", "edge").stdout.splitlines()[1].split()[0] == "ag-1"
    assert certctl("agent-groups", "include", "edge", "ag-1").stdout == "ag-1 is in edge\n"
    assert certctl("agent-groups", "exclude", "edge", "ag-1").stdout == "ag-1 is kept out of edge\n"
    assert certctl("agent-groups", "forget", "edge", "ag-1").stdout == "the criteria of edge decide about ag-1\n"
    sent = [json.loads(body) for (method, *_, body), _ in server.asked if method == "PUT"]
    assert sent == [{"membership_type": "include"}, {"membership_type": "exclude"}]


def test_a_rule_is_changed_deleted_and_its_violations_are_listed(certctl, server):
    path = "/api/v1/policies/pr-1"
    server.answers["PUT", path] = (200, {"id": "pr-1"})
    server.answers["DELETE", path] = (204, b"")
    server.answers["GET", f"{path}/violations"] = listing({"id": "pv-1", "certificate_id": "mc-1", "message": "m"})
    assert certctl("policies", "update", "pr-1", "--enabled", "false", "--set", "allowed=[]").exit_code == 0
    assert sent(server)[3] == {"enabled": False, "config": {"allowed": []}}
    assert certctl("policies", "update", "pr-1", "--severity", "Error", "--name", "new").exit_code == 0
    assert sent(server)[3] == {"severity": "Error", "name": "new"}
    assert certctl("policies", "update", "pr-1").exit_code == 2
    assert certctl("policies", "violations", "pr-1").stdout.splitlines()[1].split()[:2] == ["pv-1", "mc-1"]
    assert certctl("policies", "delete", "pr-1").stdout == "pr-1 is deleted\n"


KINDS = (
    "agent-groups",
    "issuers",
    "notifiers",
    "owners",
    "policies",
    "profiles",
    "renewal-policies",
    "targets",
    "teams",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_changed_and_deleted_alike(certctl, server, kind):
    server.answers["PUT", f"/api/v1/{kind}/x"] = (200, {"id": "x"})
    server.answers["DELETE", f"/api/v1/{kind}/x"] = (204, b"")
    assert certctl(kind, "update", "x", "--name", "new").exit_code == 0
    assert sent(server) == ("PUT", f"/api/v1/{kind}/x", {}, {"name": "new"})
    assert certctl(kind, "update", "x").exit_code == 2
    assert certctl(kind, "delete", "x").stdout == "x is deleted\n"


def test_deployments_are_listed_with_their_rollout(certctl, server):
    row = {"id": "tgt", "deployment_state": "pending", "rollout": {"status": "Halted", "held": True, "reason": "why"}}
    server.answers["GET", "/api/v1/certificates/mc-1/deployments"] = listing(row)
    said = certctl("certs", "deployments", "mc-1").stdout.splitlines()[1]
    assert said.split()[:2] == ["tgt", "pending"]
    assert "Halted" in said


def test_versions_are_listed(certctl, server):
    server.answers["GET", "/api/v1/certificates/mc-1/versions"] = listing({"id": "v", "version": 2})
    assert certctl("certs", "versions", "mc-1").stdout.splitlines()[1].split()[:2] == ["v", "2"]


def test_the_audit_trail_is_filtered_by_time(certctl, server):
    server.answers["GET", "/api/v1/audit"] = listing({"actor": "admin"})
    assert "admin" in certctl("audit", "list", "--since", "2030-01-01T00:00:00Z", "--actor", "admin").stdout
    assert sent(server)[2] == {"after": "2030-01-01T00:00:00Z", "actor": "admin"}


def test_connectors_that_failed_are_shown_beside_those_that_work(certctl, server):
    loaded = {"kind_of": "issuer", "kind": "GenericCA", "abilities": ["Revoker"]}
    failed = {"entry_point": "issuer-x", "error": "ImportError: no x"}
    server.answers["GET", "/api/v1/connectors"] = (200, {"loaded": [loaded], "failed": [failed]})
    said = certctl("connectors").stdout
    assert "GenericCA" in said
    assert "left out" in said
    assert "ImportError: no x" in said
    assert json.loads(certctl("--format", "json", "connectors").stdout)["failed"] == [failed]


@pytest.mark.parametrize("figures", [{"data": {"total_certificates": 7}}, {"total_certificates": 7}])
def test_status_shows_the_figures(certctl, server, figures):
    server.answers["GET", "/api/v1/health"] = (200, {"status": "healthy"})
    server.answers["GET", "/api/v1/stats/summary"] = (200, figures)
    assert certctl("status").stdout.split() == ["status", "healthy", "total_certificates", "7"]


@pytest.mark.parametrize(
    ("command", "path", "row"),
    [
        (("by-status",), "certificates-by-status", {"status": "Active", "count": 7}),
        (("expirations", "--days", "9"), "expiration-timeline", {"date": "2030-01-01", "count": 7}),
        (("issued", "--bucket", "week"), "issuance-rate", {"date": "2030-01-01", "issued_count": 7}),
        (
            ("jobs",),
            "job-trends",
            {"date": "2030-01-01", "completed_count": 1, "failed_count": 2, "success_rate": 33.33},
        ),
    ],
)
def test_figures_by_day_are_a_table(certctl, server, command, path, row):
    server.answers["GET", f"/api/v1/stats/{path}"] = (200, [row])
    heads, line = (re.split(r"\s{2,}", text) for text in certctl("stats", *command).stdout.splitlines())
    assert heads == [name.upper().replace("_", " ") for name in row]
    assert line == [str(value) for value in row.values()]
    assert json.loads(certctl("--format", "json", "stats", *command).stdout) == [row]
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert sent(server)[2] == {name.removeprefix("--"): value for name, value in given.items()}


def test_an_object_where_a_list_belongs_is_told(certctl, server):
    server.answers["GET", "/api/v1/stats/job-trends"] = (200, {"no": "list"})
    done = certctl("stats", "jobs")
    assert (done.exit_code, "other JSON than was asked for" in done.output) == (1, True)


HOSTILE = "evil\x1b]0;owned\x07\x9b31m\u202e.example\r\nnext"


def test_text_of_strangers_never_reaches_the_terminal_as_a_command(certctl, server):
    server.answers["GET", "/api/v1/teams"] = listing({"id": HOSTILE, "name": "[red]x[/red]"})
    server.answers["GET", "/api/v1/teams/t"] = (200, {"id": HOSTILE, "odd\x1b": [HOSTILE], "deep": {"x": HOSTILE}})
    server.answers["GET", "/api/v1/teams/u"] = (500, {"message": HOSTILE})
    server.answers["POST", "/api/v1/agents/tokens"] = (201, {"token": HOSTILE})
    for command in (["teams", "list"], ["teams", "get", "t"], ["teams", "get", "u"], ["agents", "tokens", "create"]):
        for form in ("table", "json"):
            done = certctl("--format", form, *command)
            assert all(c.isprintable() or c == "\n" for c in done.output), command


def on_a_terminal(*command, env):
    """What a person sees: the command's output on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env={**os.environ, **env})
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert child.wait(20) == 0, seen
    return seen.decode()


def test_on_a_terminal_a_name_is_no_markup(server, tmp_path):
    server.answers["GET", "/api/v1/teams"] = listing({"id": "t", "name": "[red]x[/red]", "email": HOSTILE})
    env = {"CERTCTL_DATA_DIR": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "120"}
    seen = on_a_terminal(PROGRAM, "--server", server.url, "teams", "list", env=env)
    assert "[red]x[/red]" in seen
    assert "\x1b]0;" not in seen
    assert "\u202e" not in seen


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), ("", "-"), ([], "-"), ({}, "-"), (True, "yes"), (False, "no"), (0, "0"), (["a", 1], "a, 1")],
)
def test_values_are_shown_as_people_write_them(value, shown):
    assert output.cell(value) == shown


def test_every_command_has_its_line_of_help():
    for name, (_, _, words) in cli.COMMANDS.items():
        command = cli.main.get_command(click.Context(cli.main), name)
        assert command.name == name
        assert (command.help or "").splitlines()[0] == words


@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_every_command_explains_itself(name):
    done = CliRunner().invoke(cli.main, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output


def test_an_export_goes_to_a_new_file(certctl, server, tmp_path):
    server.answers["GET", "/api/v1/audit/export"] = listing({"id": "audit-1"})
    file = tmp_path / "audit.json"
    options = ("--format", "json", "--actor", "ada", "--since", "2026-01-01T00:00:00Z", "--from", "x", "--to", "y")
    assert certctl("audit", "export", str(file), *options).exit_code == 0
    asked = {"format": "json", "actor": "ada", "after": "2026-01-01T00:00:00Z", "from": "x", "to": "y"}
    assert sent(server)[:3] == ("GET", "/api/v1/audit/export", asked)
    assert json.loads(file.read_text())["data"] == [{"id": "audit-1"}]
    again = certctl("audit", "export", str(file))
    assert (again.exit_code, "File exists" in again.stderr) == (1, True)


def test_an_export_that_is_refused_or_breaks_off_leaves_no_file(certctl, server, tmp_path):
    file = tmp_path / "audit.ndjson"
    server.answers["GET", "/api/v1/audit/export"] = (400, {"message": "from is no time"})
    assert "from is no time" in certctl("audit", "export", str(file)).stderr
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=break_off, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        done = certctl("--server", url, "audit", "export", str(file))
        thread.join()
    assert (done.exit_code, "did not answer to the end" in done.stderr) == (1, True)
    assert list(tmp_path.glob("audit*")) == []


def break_off(listening):
    """Answer one request, and not to its end."""
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")


def test_a_command_that_nobody_brings_is_told():
    done = CliRunner().invoke(cli.main, ["frobnicate"])
    assert done.exit_code == 2
    assert "No such command" in done.output


def test_a_broken_package_hurts_its_own_command_only(monkeypatch):
    broken = EntryPoint("broken", "no_such_module:command", brought.GROUP)
    monkeypatch.setattr(brought, "brought", lambda group: {"broken": broken} if group == brought.GROUP else {})
    runner = CliRunner()
    assert "which is broken" in runner.invoke(cli.main, ["--help"]).output
    assert "which is broken" in runner.invoke(cli.main, ["broken"]).output
    assert runner.invoke(cli.main, ["version"]).exit_code == 0


def test_version_is_that_of_the_package():
    assert CliRunner().invoke(cli.main, ["version"]).stdout == f"certctl {version('certctl-sdk')}\n"


def test_help_imports_nothing_that_takes_its_time():
    code = (
        "import sys; sys.argv = ['certctl', '--help']\n"
        "from certctl_sdk.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'httpx', 'pydantic', 'rich', 'cryptography', 'asyncio', 'litestar',"
        " 'piccolo', 'certctl_core'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_help_is_there_at_once():
    def seconds():
        began = time.perf_counter()
        subprocess.run([PROGRAM, "--help"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files")]
)
@pytest.mark.parametrize("name", ["certctl", "certctl-cli"])
def test_shells_complete_the_command_by_the_name_that_it_was_called(shell, words, name):
    program = str(Path(PROGRAM).with_name(name))
    script = subprocess.run([program, "completion", shell], capture_output=True, text=True, check=True).stdout
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    assert words in script
    assert variable in script
    ask = {"COMP_WORDS": f"{name} jobs app", "COMP_CWORD": "2", variable: "bash_complete"}
    found = subprocess.run([program], env={**os.environ, **ask}, capture_output=True, text=True, check=True).stdout
    assert found == "plain,approve\n"


def test_a_shell_that_nobody_knows_is_told(certctl):
    assert certctl("completion", "csh").exit_code == 2
