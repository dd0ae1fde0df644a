"""A server becomes what files say, and nothing else: ``certctl plan`` and ``certctl apply`` against the real thing."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EVERYTHING = """
teams:
  t-web: {name: Web}
  t-ops:
owners:
  - {id: o-ada, name: Ada, team_id: t-web, email: ada@example.com}
profiles:
  prof-short:
    allowed_key_algorithms: [ecdsa, {algorithm: RSA, min_size: 3072}]
    max_ttl_hours: 48
agent_groups:
  edge: {match_os: linux, match_ip_cidr: 192.0.2.0/24}
renewal-policies:
  rp-night:
    certificate_profile_id: prof-short
    agent_group_id: edge
    alert_thresholds_days: [7, 30, 7]
    rollout: {waves: [10, 100]}
    maintenance_windows: [{days: [Fri], start: 22:00, end: 04:00, timezone: Europe/Berlin}]
policies:
  pr-ours: {type: alloweddomains, severity: warning, config: {allowed_domains: ["*.Example.com"]}}
issuers:
  iss-lab: {type: local, enabled: no}
notifiers:
  nt-hook: {type: webhook, events: [revocation], config: {url: !env HOOK, secret: s3cret-of-the-hook}}
network-scan-targets:
  nst-dmz: {cidrs: [192.0.2.7/24, 198.51.100.1/32], ports: [443, 8443, 443]}
---
kind: Certificate
id: mc-shop
common_name: Shop.Example.com
sans: [bücher.example.com, SHOP.example.com]
owner_id: o-ada
team_id: t-web
issuer_id: iss-local
renewal_policy_id: rp-night
tags: {service: shop}
""".replace("enabled: no", "enabled: false")
CERTCTL = str(Path(sys.executable).with_name("certctl"))
HOOK = "https://hooks.example.com/T0P-SECRET"


@pytest.fixture(scope="module")
def server(stage):
    return stage.server(CERTCTL_RATE_LIMIT_ENABLED="false").start()


@pytest.fixture
def certctl(stage, server):
    """Run the command; what came of it."""
    access = {"CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key, "HOOK": HOOK}
    return lambda *arguments, code=0: stage.run(server, "certctl", *arguments, code=code, **access)


@pytest.fixture
def file(tmp_path):
    """Write a file of this text; its path."""

    def write(text, name="wanted.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def writes(server):
    """How many calls were made that may change something."""
    return sum(each["method"] != "GET" for each in server.events("answered"))


def planned(certctl, *files, code=2):
    return json.loads(certctl("--format", "json", "plan", *files, code=code).stdout)


def test_everything_that_can_be_declared_comes_about_once(certctl, server, file):
    wanted = file(EVERYTHING)
    plan = planned(certctl, "-f", wanted)
    assert (plan["create"], plan["change"], plan["same"]) == (11, 0, 0)
    done = json.loads(certctl("--format", "json", "apply", "-f", wanted).stdout)["done"]
    told = [{name: each[name] for name in ("action", "kind", "id", "fields")} for each in plan["changes"]]
    assert sorted(told, key=str) == sorted(({name: each[name] for name in told[0]} for each in done), key=str)
    assert [note for each in done for note in each["notes"]] == []
    assert "no change: 11 as they are" in certctl("plan", "-f", wanted).stdout
    before = writes(server)
    assert "no change: 11 as they were" in certctl("apply", "-f", wanted).stdout
    assert writes(server) == before
    assert server.get("certificates/mc-shop")["sans"] == ["xn--bcher-kva.example.com", "shop.example.com"]
    assert server.get("issuers/iss-lab")["type"] == "GenericCA"


def test_a_plan_names_each_field_and_apply_changes_no_other(certctl, server, file):
    server.post("teams", {"id": "t-a", "name": "A", "description": "made by hand"})
    wanted = file("teams:\n  t-a:\n    name: B\n    email: b@example.com\n")
    certctl("apply", "-f", wanted)
    server.put("teams/t-a", {"name": "C", "description": "kept"})
    [change] = planned(certctl, "-f", wanted)["changes"]
    assert change["fields"] == [{"field": "name", "old": "C", "new": "B"}]
    assert (change["action"], change["line"], Path(change["file"]).name) == ("change", 3, "wanted.yaml")
    assert "    name: C -> B" in certctl("plan", "-f", wanted, code=2).stdout
    certctl("apply", "-f", wanted)
    row = server.get("teams/t-a")
    assert (row["name"], row["email"], row["description"]) == ("B", "b@example.com", "kept")


def test_null_clears_and_empty_lists_empty(certctl, server, file):
    server.post("profiles", {"id": "p-n", "name": "n", "required_san_patterns": ["a.*"], "description": "x"})
    wanted = file("profiles: {p-n: {description: null, required_san_patterns: []}}")
    fields = {each["field"]: each["new"] for each in planned(certctl, "-f", wanted)["changes"][0]["fields"]}
    assert fields == {"description": None, "required_san_patterns": []}
    certctl("apply", "-f", wanted)
    certctl("plan", "-f", wanted)
    row = server.get("profiles/p-n")
    assert (row["description"], row["required_san_patterns"]) == ("", [])


def test_secrets_are_never_shown_and_count_as_equal_unless_something_else_changes(certctl, server, file):
    text = (
        "notifiers:\n  nt-s: {type: Webhook, config: {url: !env HOOK, secret: NAME-OF-A-HORSE}, events: [Revocation]}\n"
    )
    shown = certctl("plan", "-f", file(text), code=2)
    made = certctl("--format", "json", "apply", "-f", file(text))
    certctl("plan", "-f", file(text.replace("HORSE", "CAMEL")))  # what the API hides cannot be compared
    again = certctl("plan", "--secrets", "-f", file(text.replace("HORSE", "CAMEL")), code=2)
    assert "config.secret: ******** -> ********" in again.stdout
    changed = certctl("plan", "-f", file(text.replace("[Revocation]", "[RenewalFailure]")), code=2)
    assert "config.secret: sent along" in changed.stdout
    for said in (shown, made, again, changed):
        assert not re.search("HORSE|CAMEL|T0P-SECRET", said.stdout + said.stderr)
    before = server.get("notifiers/nt-s")["updated_at"]
    certctl("apply", "--secrets", "-f", file(text.replace("HORSE", "CAMEL")))
    assert server.get("notifiers/nt-s")["updated_at"] > before
    assert server.get("notifiers/nt-s")["status"] == "ready"


FAULTY = """teams:
  t-x: {nam: X}
owners:
  - id: o-x
    team_id: t-nope
    email: nobody
certificates:
  mc-x:
    common_name: -bad-
    owner_id: o-unassigned
    team_id: 12
    issuer_id: iss-local
    tags: {a: 1}
  mc-y: {sans: [y.example.com]}
renewal-policies:
  rp-x: {renewal_window_days: 900, rollout: {waves: [0]}}
policies:
  pr-x: {type: AllowedDomains, config: {allowed: [x]}}
things: []
network-scan-targets:
  n: {cidrs: [a/b], name: a, name: b}
"""
FAULTS = {
    (2, "teams.t-x.nam"),
    (5, "owners.o-x.team_id"),
    (6, "owners.o-x.email"),
    (9, "certificates.mc-x.common_name"),
    (11, "certificates.mc-x.team_id"),
    (13, "certificates.mc-x.tags.a"),
    (14, "certificates.mc-y.owner_id"),
    (14, "certificates.mc-y.team_id"),
    (14, "certificates.mc-y.issuer_id"),
    (16, "renewal-policies.rp-x.renewal_window_days"),
    (16, "renewal-policies.rp-x.rollout.waves[0]"),
    (18, "policies.pr-x.config.allowed"),
    (19, ""),
    (21, ""),
    (21, "network-scan-targets.n.cidrs"),
}


def test_every_fault_of_every_file_is_told_at_once_and_nothing_is_done(certctl, server, file):
    files = ["-f", file(FAULTY), "-f", file("a: [b\nc: d", "broken.yaml"), "-f", "none.yaml"]
    found = json.loads(certctl("--format", "json", "plan", *files, code=1).stdout)["faults"]
    by_file = {
        name: {(each["line"], each["field"]) for each in found if Path(each["file"]).name == name}
        for name in ("wanted.yaml", "broken.yaml", "none.yaml")
    }
    assert by_file == {"wanted.yaml": FAULTS, "broken.yaml": {(2, "")}, "none.yaml": {(0, "")}}
    before = writes(server)
    assert "wanted.yaml:2: teams.t-x.nam: is unknown; name may be meant" in certctl("apply", *files, code=1).stderr
    assert writes(server) == before


def test_what_stands_twice_and_names_of_others_are_faults(certctl, server, file):
    server.post("teams", {"id": "t-there", "name": "There"})
    text = "teams: {t-1: {name: There}, t-2: {name: Same}, t-3: {name: Same}}"
    more = "kind: team\nid: t-1\n---\nkind: owner\nteam_id: t-1\n"
    said = certctl("plan", "-f", file(text), "-f", file(more, "more.yaml"), code=1).stderr
    assert "teams.t-1.name: t-there has this name" in said
    assert "teams.t-3: " in said
    assert "has the name Same as well" in said
    assert "more.yaml:1: teams.t-1: " in said
    assert "has the id t-1 as well" in said
    assert "more.yaml:4: owners: each needs an id or a name" in said


def test_an_archived_certificate_is_a_fault(certctl, server, file):
    id = server.order("gone.example.com")["id"]
    server.call("DELETE", f"certificates/{id}")
    said = certctl("plan", "-f", file(f"certificates: {{{id}: {{environment: x}}}}"), code=1).stderr
    assert f"certificates.{id}: is archived" in said


def test_a_refusal_of_the_server_is_told_at_its_line_and_the_rest_is_done(certctl, server, file):
    rule = {"id": "pr-deny", "name": "deny", "type": "AllowedDomains", "severity": "Error"}
    server.post("policies", {**rule, "config": {"denied_domains": ["*.denied.example"]}})
    ours = "owner_id: o-unassigned, team_id: t-unassigned, issuer_id: iss-local"
    wanted = file(
        f"certificates:\n  mc-good: {{sans: [a.good.example], {ours}}}\n  mc-no: {{sans: [a.denied.example], {ours}}}\n"
    )
    said = certctl("apply", "-f", wanted, code=1)
    assert "+ certificates mc-good" in said.stdout
    assert re.search(r"wanted.yaml:3: certificates.mc-no", said.stderr)
    assert server.call("GET", "certificates/mc-no")[0] == 404
    server.call("DELETE", "policies/pr-deny")
    assert [each["id"] for each in planned(certctl, "-f", wanted)["changes"]] == ["mc-no"]


def test_objects_without_an_id_are_known_by_their_name(certctl, server, file):
    wanted = file("teams:\n  - {name: Nameless, email: a@example.com}\n")
    certctl("apply", "-f", wanted)
    certctl("plan", "-f", wanted)
    [row] = [each for each in server.all("teams") if each["name"] == "Nameless"]
    certctl("apply", "-f", file("teams: [{name: Nameless, email: b@example.com}]"))
    assert server.get(f"teams/{row['id']}")["email"] == "b@example.com"


def test_a_certificate_is_only_made_active_and_never_changed_to_be(certctl, server, file):
    text = """certificates:
      mc-elsewhere: {sans: [else.example.com], owner_id: o-unassigned, team_id: t-unassigned, issuer_id: iss-local,
        status: Active, serial_number: 0a0b, expires_at: 2030-01-01T00:00:00Z}"""
    certctl("apply", "-f", file(text))
    assert server.get("certificates/mc-elsewhere")["expires_at"].startswith("2030-01-01")
    certctl("plan", "-f", file(text))


def test_a_thousand_certificates_survive_a_kill_amid_and_nothing_is_done_twice(certctl, server, file, waiting):
    ours = "owner_id: o-unassigned, team_id: t-unassigned, issuer_id: iss-local, environment: production"
    lines = [f"  mc-t{n:04}: {{common_name: t{n}.many.example, {ours}}}" for n in range(1000)]
    wanted = file("\n".join(["certificates:", *lines]))
    environ = {**os.environ, "CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key}
    command = [CERTCTL, "apply", "-f", str(wanted)]
    first = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    count = lambda: server.get("certificates", environment="production", q="many.example", per_page=1)["total"]  # noqa: E731
    waiting(lambda: count() > 100, "a hundred certificates")
    first.send_signal(signal.SIGKILL)
    assert first.wait(10) == -signal.SIGKILL
    time.sleep(1)  # the calls that were under way
    made = count()
    assert 100 < made < 1000
    plan = planned(certctl, "-f", wanted)
    assert (plan["create"], plan["same"]) == (1000 - made, made)
    said = certctl("apply", "-f", wanted).stdout
    assert f"{1000 - made} created, 0 changed, {made} as they were" in said
    assert count() == 1000
    assert "no change: 1000" in certctl("plan", "-f", wanted).stdout
    orders = server.get("jobs", type="Issuance", per_page=1)["total"]
    certctl("apply", "-f", wanted)
    assert server.get("jobs", type="Issuance", per_page=1)["total"] == orders
    # Three pages for one certificate would be the longer way: it is asked for by its id.
    text = f"certificates: {{mc-t0001: {{environment: staging}}, mc-new: {{sans: [n.example], {ours}}}}}"
    found = [(each["id"], each["action"]) for each in planned(certctl, "-f", file(text))["changes"]]
    assert found == [("mc-t0001", "change"), ("mc-new", "create")]


def test_a_bar_for_who_watches_keeps_out_of_what_is_written(server, file):
    ours, theirs = pty.openpty()
    environ = {**os.environ, "CERTCTL_SERVER_URL": server.url, "CERTCTL_API_KEY": server.key, "TERM": "xterm"}
    command = [CERTCTL, "apply", "-f", str(file("teams: {t-bar: {name: Bar}}"))]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    assert done.stdout.decode().splitlines() == ["+ teams t-bar", "1 created, 0 changed, 0 as they were"]
    assert b"applying" in os.read(ours, 65536)
    os.close(ours)


@pytest.mark.parametrize(
    "arguments", [["plan"], ["plan", "--nope"], ["apply", "-f"], ["--format", "xml", "plan", "-f", "x"]], ids=" ".join
)
def test_a_wrong_call_is_a_fault_and_never_looks_like_a_plan(certctl, arguments):
    assert "Usage: certctl" in certctl(*arguments, code=1).stderr


def test_a_server_that_is_away_is_a_fault(stage, server, file):
    said = stage.run(server, "certctl", "--server", "http://127.0.0.1:1", "plan", "-f", file("teams: {}"), code=1)
    assert "did not answer" in said.stderr


def test_a_limit_on_calls_is_waited_for(stage, file):
    slow = stage.server(CERTCTL_RATE_LIMIT_RPS="40", CERTCTL_RATE_LIMIT_BURST="5").start()
    access = {"CERTCTL_SERVER_URL": slow.url, "CERTCTL_API_KEY": slow.key}
    wanted = file("teams:\n" + "".join(f"  t-{n}:\n" for n in range(60)))
    assert "60 created" in stage.run(slow, "certctl", "apply", "-f", wanted, **access).stdout
