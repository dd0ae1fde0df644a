from __future__ import annotations

import os
import shutil

import pytest
from certctl_sdk.testing.nginx import Nginx

ENDED = {"Completed", "Failed", "Cancelled"}


@pytest.fixture
def nginx(tmp_path, plane, agent):
    """A real NGINX that already serves something, mapped to every certificate."""
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
        assert not os.environ.get("CI"), "nginx is missing"
        pytest.skip("nginx is not installed")
    nginx = Nginx(tmp_path / "nginx")
    first = plane.ca.bundle("web.example")
    nginx.cert.write_text(first.cert_pem)
    nginx.key.write_text(first.key_pem)
    agent.allow(nginx.cert.parent, check=list(nginx.check_command), reload=list(nginx.reload_command))
    plane.targets["tgt-1"] = {
        "target_type": "Files",
        "target_config": {
            "cert_path": str(nginx.cert), "key_path": str(nginx.key), "check_command": "check",
            "reload_command": "reload", "port": nginx.port,
        },
    }  # fmt: skip
    with nginx:
        yield nginx


def test_nginx_serves_what_was_ordered_over_several_renewals(plane, agent, nginx):
    agent.start()
    for _ in range(3):
        plane.order("mc-web", "web.example")
        plane.until(lambda: plane.deployments() and all(job["status"] in ENDED for job in plane.jobs.values()))
    assert [job["status"] for job in plane.deployments()] == ["Completed"] * 3, agent.said
    assert [found["verified"] for _, found in plane.verifications] == [True] * 3


def test_a_configuration_that_nginx_refuses_changes_nothing(plane, agent, nginx):
    before = nginx.cert.read_text()
    nginx.config.write_text(nginx.config.read_text() + "\nnonsense;\n")
    plane.order("mc-web", "web.example")
    agent.start()
    plane.until(lambda: plane.deployments() and all(job["status"] in ENDED for job in plane.jobs.values()))
    report = plane.deployments()[0]["reports"][-1]
    assert (report["status"], report["error_kind"]) == ("Failed", "deployment")
    assert "nonsense" in report["error"]
    assert nginx.cert.read_text() == before
