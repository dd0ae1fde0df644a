"""The agent of the original, call by call as it speaks on the wire: it knows nothing of capabilities or waiting."""

import ssl
import subprocess
import time
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

SHARED = "one-key-that-a-whole-fleet-shares"
NAME, ADDRESS = "old.example.com", "127.0.0.1"
DELAY_SECONDS = 2
END = "-----END CERTIFICATE-----\n"


class OldAgent:
    """Does what its work items say, in its own way."""

    def __init__(self, http, agent_id, key_dir):
        self._http, self._id, self._key_dir = http, agent_id, key_dir
        self.saw_served = True

    def call(self, method, path, body=None):
        headers = {"Content-Type": "application/json", "User-Agent": "Go-http-client/1.1"}
        return self._http.request(method, f"/api/v1/{path}", json=body, headers=headers)

    def _own(self, method, path, body, status):
        answer = self.call(method, f"agents/{self._id}/{path}", body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def beat(self):
        said = {"version": "1.0.0", "hostname": "old", "os": "linux", "architecture": "amd64", "ip_address": ""}
        self._own("POST", "heartbeat", said, 200)

    def poll(self):
        """Do everything that is offered, one after the other; return what it was."""
        answer = self._own("GET", "work", None, 200)
        assert answer["count"] == len(answer["jobs"])
        for item in answer["jobs"]:
            if item["status"] == "AwaitingCSR":
                self._send_csr(item)
            elif item["type"] == "Deployment":
                self._deploy(item)
        return answer["jobs"]

    def _send_csr(self, item):
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        path = self._key_dir / f"{item['certificate_id']}.key"
        path.write_bytes(text)  # over the live one, before anybody agreed
        path.chmod(0o600)
        assert item["common_name"]
        names = [x509.RFC822Name(san) if "@" in san else x509.DNSName(san) for san in item["sans"]]
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, item["common_name"])]))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, SHA256())
        )
        body = {"csr_pem": csr.public_bytes(Encoding.PEM).decode(), "certificate_id": item["certificate_id"]}
        self._own("POST", "csr", body, 202)

    def _deploy(self, item):
        job, config = f"jobs/{item['id']}", item["target_config"]
        assert item["target_type"] == "NGINX"
        self._own("POST", f"{job}/status", {"status": "Running"}, 200)
        pem = self._own("GET", f"certificates/{item['certificate_id']}", None, 200)["certificate_pem"]
        leaf, _, chain = pem.partition(END)
        assert chain.startswith("-----BEGIN CERTIFICATE-----")
        Path(config["cert_path"]).write_text(leaf + END + chain)
        for command in ("validate_command", "reload_command"):
            subprocess.run([config[command]], check=True)  # one word, no shell
        self._verify(item, sha256(ssl.PEM_cert_to_DER_cert(leaf + END)).hexdigest(), config)
        self._own("POST", f"{job}/status", {"status": "Completed"}, 200)

    def _verify(self, item, expected, config):
        actual = "00" * 32
        end = time.monotonic() + DELAY_SECONDS
        while self.saw_served and actual != expected and time.monotonic() < end:
            shown = ssl.get_server_certificate((config["host"], int(config["port"])), timeout=10)
            actual = sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest()
        body = {
            "target_id": item["target_id"],
            "expected_fingerprint": expected,
            "actual_fingerprint": actual,
            "verified": expected == actual,
            "error": "",
        }
        answer = self.call("POST", f"jobs/{item['id']}/verify", body)
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def server(stage):
    server = stage.server(CERTCTL_AGENT_KEYS="optional", CERTCTL_AUTH_SECRET=SHARED, CERTCTL_RATE_LIMIT_ENABLED="false")
    return server.start(key=SHARED)


@pytest.fixture(params=["shared key", "own key"])
def agent(server, request, tmp_path):
    agent_id = f"agent-{server.get('agents')['total'] + 1}"
    made = server.post("agents", {"id": agent_id, "name": agent_id, "hostname": "old"})
    assert made["id"] == agent_id
    key = SHARED if request.param == "shared key" else made["api_key"]
    (key_dir := tmp_path / "keys").mkdir(mode=0o700)
    with server.client(key) as http:
        agent = OldAgent(http, agent_id, key_dir)
        agent.id, agent.key_dir = agent_id, key_dir
        agent.beat()
        assert agent.poll() == []
        yield agent


def script(path, arguments):
    path.write_text(f"#!/bin/sh\nexec {' '.join(arguments)}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def site(server, agent, stage, tmp_path):
    """An NGINX whose key is where this agent puts it: it deploys certificates and never a key."""
    nginx = stage.nginx()
    certificate = f"mc-{agent.id}"
    key = agent.key_dir / f"{certificate}.key"
    key.write_bytes(nginx.key.read_bytes())
    nginx.key.unlink()
    nginx.key.symlink_to(key)
    commands = {
        "validate_command": script(tmp_path / "check", nginx.check_command),
        "reload_command": script(tmp_path / "reload", nginx.reload_command),
    }
    target = server.target(agent, nginx, **commands)
    server.order(NAME, target, id=certificate, sans=[NAME, ADDRESS])
    return nginx, certificate


def until_done(agent, waiting):
    """Poll until there is nothing to do; return the types of what was done."""
    done = []

    def idle():
        items = agent.poll()
        done.extend(item["type"] for item in items)
        return not items

    waiting(idle, "the work to end")
    return done


def test_an_agent_without_capabilities_issues_deploys_and_proves(server, agent, site, waiting):
    nginx, certificate = site
    done = until_done(agent, waiting)
    row = server.served(certificate)
    assert done == ["Issuance", "Deployment"]
    waiting(lambda: sha256(nginx.served()).hexdigest() == row["fingerprint"], "NGINX to serve it to everybody")
    names = x509.load_der_x509_certificate(nginx.served()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == [NAME]
    assert names.value.get_values_for_type(x509.IPAddress) == [ip_address(ADDRESS)]

    server.post(f"certificates/{certificate}/renew")
    assert until_done(agent, waiting) == ["Renewal", "Deployment"]
    renewed = server.served(certificate)
    assert renewed["fingerprint"] != row["fingerprint"]
    waiting(lambda: sha256(nginx.served()).hexdigest() == renewed["fingerprint"], "NGINX to serve the renewed one")
    assert [job["status"] for job in server.jobs(certificate)] == ["Completed"] * 4


def test_what_it_saw_served_otherwise_is_a_mismatch_and_is_deployed_again(server, agent, site, waiting):
    _, certificate = site
    agent.saw_served = False
    until_done(agent, waiting)
    row = server.get(f"certificates/{certificate}")
    assert row["deployment_state"] == "mismatch"
    deployment, *again = server.jobs(certificate, type="Deployment")
    assert (deployment["status"], deployment["verification_status"]) == ("Completed", "failed")
    assert [job["status"] for job in again] == ["Pending"]


def test_a_report_of_discovered_certificates_is_taken(agent):
    found = {
        "common_name": "found.example.com",
        "sans": None,
        "serial_number": "abc",
        "issuer_dn": "CN=Someone",
        "subject_dn": "CN=found.example.com",
        "not_before": "2024-01-01T00:00:00Z",
        "not_after": "2034-01-01T00:00:00Z",
        "key_algorithm": "RSA",
        "key_size": 2048,
        "is_ca": False,
        "pem_data": "",
        "source_path": "/etc/ssl/found.crt",
        "source_format": "PEM",
        "fingerprint_sha256": "ab" * 32,
    }
    report = {"agent_id": agent.id, "directories": ["/etc/ssl"], "certificates": [found], "errors": [],
              "scan_duration_ms": 3}  # fmt: skip
    answer = agent.call("POST", f"agents/{agent.id}/discoveries", report)
    assert answer.status_code == 202, answer.text


def test_a_shared_key_is_refused_where_agents_need_their_own(stage):
    server = stage.server(CERTCTL_AUTH_SECRET=SHARED).start(key=SHARED)
    server.post("agents", {"id": "agent-1", "name": "agent-1", "hostname": "old"})
    status, _ = server.call("POST", "agents/agent-1/heartbeat", {"version": "1.0.0"})
    assert status == 403
    server.kill()
