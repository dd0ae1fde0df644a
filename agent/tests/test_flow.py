from __future__ import annotations

import base64
import re
import signal
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

ENDED = {"Completed", "Failed", "Cancelled"}


def all_ended(plane):
    return plane.deployments() and all(job["status"] in ENDED for job in plane.jobs.values())


def leaf_of(service):
    return service.cert.read_text()


def assert_nothing_secret_was_sent(plane, state):
    sent = b"\n".join(path.encode() + raw for _, path, raw in plane.seen)
    assert b"PRIVATE KEY" not in sent
    for file in state.glob("keys/**/*.key*"):
        key = load_pem_private_key(file.read_bytes(), None)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        scalar = key.private_numbers().private_value.to_bytes(32, "big")
        for secret in (der, scalar):
            assert secret not in sent
            assert secret.hex().encode() not in sent.lower()
            assert base64.b64encode(secret)[4:-4] not in re.sub(rb"\\n|\s", b"", sent)


def test_an_ordered_certificate_is_served_proved_and_reported(plane, agent, service, deployable):
    plane.order("mc-web", "web.example", "10.0.0.7")
    agent.start()
    plane.until(lambda: all_ended(plane))

    [deployment] = plane.deployments()
    assert deployment["status"] == "Completed", agent.said
    assert [report["status"] for report in deployment["reports"]] == ["Running", "Completed"]
    [(job_id, verification)] = plane.verifications
    assert (job_id, verification["verified"]) == (deployment["id"], True)
    assert verification["actual_fingerprint"] == deployment["expected_fingerprint"]
    assert leaf_of(service) == plane.certificates["mc-web"]
    assert service.fits()
    assert_nothing_secret_was_sent(plane, agent.state)


def test_the_first_call_is_a_heartbeat_that_says_what_this_agent_can(plane, agent):
    agent.start()
    plane.until(lambda: any("/work" in path for _, path, _ in plane.seen))
    assert plane.seen[0][1] == "/api/v1/agents/ag-1/heartbeat"
    assert plane.seen[1][1] == "/api/v1/agents/ag-1/work?wait=25"
    beat = plane.beats[0]
    assert set(beat["capabilities"]) >= {"verify", "rollback", "boot_id"}
    assert all(
        beat[name] for name in ("version", "hostname", "os", "architecture", "ip_address", "boot_id", "local_time")
    )


def test_keys_are_kept_from_everybody_else(plane, agent, deployable):
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    keys = agent.state / "keys"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, keys / "pending")] == [0o700, 0o700]
    assert sorted(path.name for path in keys.iterdir()) == ["mc-web.key", "pending"]
    assert stat.S_IMODE((keys / "mc-web.key").stat().st_mode) == 0o600
    assert not list((keys / "pending").iterdir())


def test_a_renewal_keeps_the_key_before_it_once(plane, agent, service, deployable):
    agent.start()
    for _ in range(3):
        before = (agent.state / "keys/mc-web.key").read_text() if plane.jobs else None
        plane.order("mc-web", "web.example")
        plane.until(lambda: all_ended(plane))
    keys = agent.state / "keys"
    assert sorted(path.name for path in keys.glob("mc-web*")) == ["mc-web.key", "mc-web.key.previous"]
    assert (keys / "mc-web.key.previous").read_text() == before
    assert leaf_of(service) == plane.certificates["mc-web"]


KILLED = {
    "key stored, CSR not taken": (r"POST .*/csr ", "before"),
    "CSR taken, answer lost": (r"POST .*/csr ", "after"),
    "deployment offered": (r"POST .*/status .*Running", "before"),
    "deployment begun": (r"POST .*/status .*Running", "after"),
    "certificate asked for": (r"GET .*/certificates/", "after"),
    "deployed and seen, not verified": (r"POST .*/verify ", "before"),
    "verified": (r"POST .*/verify ", "after"),
    "not reported": (r"POST .*/status .*Completed", "before"),
    "reported, answer lost": (r"POST .*/status .*Completed", "after"),
}


@pytest.mark.parametrize("at", KILLED.values(), ids=KILLED)
@pytest.mark.parametrize("renewal", [False, True], ids=["first", "renewal"])
def test_a_kill_at_any_point_leaves_a_pair_that_fits_and_a_job_that_ends(
    plane, agent, service, deployable, at, renewal
):
    agent.start()
    if renewal:
        plane.order("mc-web", "web.example")
        plane.until(lambda: all_ended(plane))
    plane.at = (*at, agent.kill)
    plane.order("mc-web", "web.example")
    assert agent.ended() == -signal.SIGKILL
    assert service.fits(), service.misfits

    agent.start()
    plane.until(lambda: all_ended(plane))
    assert [job["status"] for job in plane.deployments()] == ["Completed"] * (1 + renewal), agent.said
    assert service.fits(), service.misfits
    assert leaf_of(service) == plane.certificates["mc-web"]
    assert plane.faults == []
    assert_nothing_secret_was_sent(plane, agent.state)


@pytest.mark.parametrize("wanted", [True, False], ids=["still wanted", "cancelled meanwhile"])
def test_a_kill_between_switch_and_proof_goes_back_to_what_was_proved(plane, agent, service, deployable, wanted):
    agent.start()
    plane.order("mc-web", "web.example")
    plane.until(lambda: all_ended(plane))
    proved = leaf_of(service)
    deployable.write_text(f"#!/bin/sh\nkill -9 {agent.process.pid}\nsleep 1\n")
    plane.order("mc-web", "web.example")
    assert agent.ended() == -signal.SIGKILL
    assert leaf_of(service) != proved

    deployable.write_text("#!/bin/sh\n:\n")
    if not wanted:
        plane.deployments()[-1]["status"] = "Cancelled"
    agent.start()
    beats = len(plane.beats)
    plane.until(lambda: all_ended(plane) and len(plane.beats) > beats)
    assert leaf_of(service) == (plane.certificates["mc-web"] if wanted else proved)
    assert service.fits()
    assert "cut short was taken back" in agent.said


def test_what_is_not_served_is_taken_back_and_reported_with_the_cause(plane, agent, service, deployable):
    agent.start()
    plane.order("mc-web", "web.example")
    plane.until(lambda: all_ended(plane))
    proved = leaf_of(service)
    service.pinned = service.context()
    plane.order("mc-web", "web.example")
    plane.until(lambda: all_ended(plane))

    failed = plane.deployments()[-1]
    assert failed["status"] == "Failed"
    assert failed["reports"][-1]["error_kind"] == "deployment"
    assert "serves another certificate" in failed["reports"][-1]["error"]
    assert plane.verifications[-1][1]["verified"] is False
    assert plane.verifications[-1][1]["actual_fingerprint"] == plane.deployments()[0]["expected_fingerprint"]
    assert leaf_of(service) == proved

    service.pinned = None
    plane.deploy_again(failed["id"])
    plane.until(lambda: all_ended(plane))
    assert failed["status"] == "Completed"
    assert leaf_of(service) == plane.certificates["mc-web"]


def test_a_target_that_does_not_look_is_looked_at_and_rolled_back(plane, agent, service, deployable):
    plane.targets["tgt-1"]["target_type"] = "Careless"
    agent.start()
    plane.order("mc-web", "web.example")
    plane.until(lambda: all_ended(plane))
    proved = leaf_of(service)
    service.pinned = service.context()
    plane.order("mc-web", "web.example")
    plane.until(lambda: all_ended(plane))
    assert [job["status"] for job in plane.deployments()] == ["Completed", "Failed"]
    assert leaf_of(service) == proved


def test_a_target_that_nobody_can_look_at_is_deployed_and_not_verified(plane, agent, service, deployable):
    del plane.targets["tgt-1"]["target_config"]["port"]
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    assert plane.deployments()[0]["status"] == "Completed"
    assert plane.verifications == []
    assert leaf_of(service) == plane.certificates["mc-web"]


REFUSALS = {
    "directory outside": ({"cert_path": "/etc/elsewhere/site.crt"}, "misconfigured", "agent.toml.*/etc/elsewhere"),
    "command outside": ({"reload_command": "rm -rf /"}, "misconfigured", "agent.toml.*rm -rf /"),
    "option missing": ({"check_command": None}, "misconfigured", "check_command"),
}


@pytest.mark.parametrize(("change", "kind", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_agent_toml_does_not_allow_is_refused_with_the_line_to_add(plane, agent, deployable, change, kind, words):
    options = plane.targets["tgt-1"]["target_config"]
    options.update(change)
    for name in [name for name, value in options.items() if value is None]:
        del options[name]
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    report = plane.deployments()[0]["reports"][-1]
    assert (report["status"], report["error_kind"]) == ("Failed", kind)
    assert re.search(words, report["error"])


def test_the_line_that_was_asked_for_needs_no_restart(plane, agent, service, deployable):
    agent.allow(service.cert.parent, check=["true"])
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    [deployment] = plane.deployments()
    assert "allows no command 'reload'" in deployment["reports"][-1]["error"]
    agent.allow(service.cert.parent, check=["true"], reload=[str(deployable)])
    plane.deploy_again(deployment["id"])
    plane.until(lambda: all_ended(plane))
    assert deployment["status"] == "Completed"


def test_a_connector_that_breaks_is_named_with_its_version(plane, agent, deployable):
    plane.targets["tgt-1"]["target_type"] = "Buggy"
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    error = plane.deployments()[0]["reports"][-1]["error"]
    assert error == "ZeroDivisionError in Buggy (agent-test-targets 1.0): oops"


def test_a_refused_csr_fails_its_job_with_the_words_of_the_server(plane, agent):
    plane.forced["POST .*/csr"] = 400, {"error": "Bad Request", "message": "the CSR lacks b.example"}
    job = plane.jobs[plane.order("mc-web", "web.example")]
    agent.start()
    plane.until(lambda: job["status"] == "Failed")
    assert job["reports"][-1]["error"] == "CSR rejected: the CSR lacks b.example"
    assert job["reports"][-1]["error_kind"] == "rejected"


def test_keys_are_of_the_kind_that_the_order_asks_for(plane, agent, deployable):
    plane.key_for_csr = {"key_algorithm": "RSA", "key_size": 2048}
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: all_ended(plane))
    assert x509.load_pem_x509_certificate(plane.certificates["mc-web"].encode()).public_key().key_size == 2048
    assert plane.deployments()[0]["status"] == "Completed"
