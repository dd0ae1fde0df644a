"""What the documents tell people to type works, all of it, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOLD = "At block"
BIN = Path(sys.executable).parent
FOUND = {
    "sans": [],
    "issuer_dn": "CN=somebody",
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": "2099-01-01T00:00:00Z",
    "key_algorithm": "ECDSA",
    "key_size": 256,
    "is_ca": False,
    "pem_data": "",
    "source_format": "PEM",
}

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        not all(map(shutil.which, ("bash", "curl", "openssl"))) and "CI" not in os.environ,
        reason="needs bash, curl and openssl",
    ),
]


@pytest.fixture(scope="module")
def server(stage):
    server = stage.server(CERTCTL_RATE_LIMIT_ENABLED="false").start()
    agent = server.post("agents", {"name": "lab", "hostname": "lab"})
    found = [
        {**FOUND, "common_name": name, "subject_dn": f"CN={name}", "serial_number": f"0{n}", "source_path": f"/{n}.pem"}
        | {"fingerprint_sha256": f"{n}" * 64}
        for n, name in enumerate(("a.example.com", "b.example.com"))
    ]
    report = {"directories": ["/"], "certificates": found, "scan_duration_ms": 1}
    with server.client(agent["api_key"]) as http:
        assert http.post(f"/api/v1/agents/{agent['id']}/discoveries", json=report).status_code == 202
    return server


def script(text):
    """Everything that is to be run, as one script, since blocks build on each other."""
    lines = ["set -eu -o pipefail"]
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        lines.append(f"echo '{TOLD} at line {line}'")
        lines.append(match[2] if match[1] == "sh" else f"python - <<'PYTHON'\n{match[2]}PYTHON\n")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ran(server, root, tmp_path_factory):
    """What came of each document's blocks."""
    found = {}
    for document in ("guide.md", "declared.md"):
        place = tmp_path_factory.mktemp("typed")
        environ = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(place),
            "CERTCTL_SERVER_URL": server.url,
            "CERTCTL_API_KEY": server.key,
        }
        command = ["bash", "-c", script((root / "docs" / document).read_text())]
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 150}
        found[document] = subprocess.run(command, env=environ, cwd=place, check=False, **options)
    return found


@pytest.mark.parametrize(("document", "blocks"), [("guide.md", 20), ("declared.md", 1)])
def test_every_block_of_a_document_runs(ran, document, blocks):
    done = ran[document]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert done.stdout.count(TOLD) == blocks


def test_what_the_guide_did_is_what_it_says(server, ran):
    """Revoked, put away, refused, claimed and declared."""
    states = {id: server.get(f"certificates/{id}") for id in ("mc-shop", "mc-mail", "mc-pay", "mc-cart")}
    assert {id: row["status"] for id, row in states.items()} == {
        "mc-shop": "Archived",
        "mc-mail": "Archived",
        "mc-pay": "Pending",
        "mc-cart": "Pending",
    }
    assert states["mc-shop"]["revocation_reason"] == "keyCompromise"
    assert [job["status"] for job in server.jobs("mc-refund")] == ["Cancelled"]
    assert [job["status"] for job in server.jobs("mc-pay")] == ["AwaitingCSR"]
    assert server.get("discovery-summary") == {"Unmanaged": 0, "Managed": 1, "Dismissed": 1}
    assert len([row for row in server.all("certificates") if row["common_name"] == "old.example.com"]) == 1
    assert server.get("certificates/mc-blog")["sans"] == ["blog.example.com"]
