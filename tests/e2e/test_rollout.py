"""Waves over three real NGINX: the first is proved before the rest is sent, and is put back if it fails."""

import socket
import ssl
from hashlib import sha256

import pytest

NAME = "waves.example.com"


def shown(nginx):
    """The fingerprint of what an NGINX serves now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        return sha256(connection.getpeercert(binary_form=True)).hexdigest()


class Sites:
    """Three sites of one machine that serve one certificate; two of them are the first wave."""

    def __init__(self, stage):
        self.server, self.nginx = stage.server().start(), [stage.nginx() for _ in range(3)]
        agent, commands = stage.agent(self.server, CERTCTL_VERIFY_DELAY="50ms"), {}
        for number, nginx in enumerate(self.nginx):
            commands |= {f"check_{number}": nginx.check_command, f"reload_{number}": nginx.reload_command}
        agent.allow(*(nginx.cert.parent.parent for nginx in self.nginx), **commands)
        agent.start()
        self.targets = [
            self.server.target(agent, nginx, validate_command=f"check-{number}", reload_command=f"reload-{number}")
            for number, nginx in enumerate(self.nginx)
        ]
        waves = {"waves": [50, 100], "soak_seconds": 2, "max_failures": 0}
        self.server.post("renewal-policies", {"id": "rp-waves", "name": "waves", "rollout": waves})
        self.certificate = self.server.order(NAME, *self.targets, renewal_policy_id="rp-waves")["id"]
        self.server.served(self.certificate, 60)

    def shown(self):
        return [shown(nginx) for nginx in self.nginx]

    def renew(self):
        self.server.post(f"certificates/{self.certificate}/renew")

    def held(self, target):
        """Whether a target waits for its wave."""
        rows = self.server.get(f"certificates/{self.certificate}/deployments")["data"]
        return next(row["rollout"]["held"] for row in rows if row["id"] == target)

    def told(self, action):
        """What the trail has of the rollouts, newest first."""
        return self.server.get("audit", resource_id=self.certificate, action=action)["data"]


@pytest.fixture
def sites(stage):
    return Sites(stage)


def test_the_rest_is_sent_when_the_first_wave_is_served(sites, waiting):
    [old] = set(sites.shown())
    ended = len(sites.told("rollout_completed"))
    sites.renew()
    waiting(lambda: old not in sites.shown()[:2], "the first wave to be served", 60)
    assert (sites.shown()[2], sites.held(sites.targets[2])) == (old, True)
    waiting(lambda: len(sites.told("rollout_completed")) > ended, "the end of the rollout", 60)
    sites.server.served(sites.certificate)
    [new] = set(sites.shown())
    assert new != old


def test_a_wave_that_fails_is_put_back_and_nothing_further_is_sent(sites, waiting):
    [old] = set(sites.shown())
    _, broken, last = sites.targets
    sites.server.put(f"targets/{broken}", {"config": {"reload_command": "no-such-command"}})
    sites.renew()
    waiting(lambda: sites.told("rollout_halted"), "the rollout to be halted", 60)
    waiting(lambda: set(sites.shown()) == {old}, "the first wave to have what it had", 60)
    [halted] = sites.told("rollout_halted")
    assert halted["details"]["failed"] == [broken]
    assert sites.held(last)
    assert "halted in wave 1" in sites.server.get(f"certificates/{sites.certificate}")["last_error"]
    sites.server.put(f"targets/{broken}", {"config": {"reload_command": "reload-1"}})
    sites.server.post(f"certificates/{sites.certificate}/deploy")
    sites.server.served(sites.certificate, 60)
    assert old not in sites.shown()
