import asyncio
import os
import stat
from datetime import timedelta

import pytest
from certctl_core.errors import DeploymentError, MisconfiguredError
from certctl_core.run import Allowed
from certctl_core.target import Bundle, DeployRequest, Endpoint
from certctl_sdk.pem_target import PemTarget, PemTargetConfig
from certctl_sdk.testing.fake_ca import FakeCA
from certctl_sdk.testing.fake_host import FakeHost, FakeRun


class ServiceTarget(PemTarget):
    """A target of a service that is content with everything."""

    kind, Config = "service", PemTargetConfig


@pytest.fixture
def make(tmp_path):
    (tls := tmp_path / "tls").mkdir()

    def make(**options):
        load = ("sh", "-c", f"cd {tmp_path}; if [ -e tls/site.crt ]; then touch loaded; else rm -f loaded; fi")
        allowed = Allowed([tls], {"check": ("true",), "reload": load})
        files = {"cert_path": tls / "site.crt", "key_path": tls / "site.key"}
        named = {"validate_command": "check", "reload_command": "reload"}
        return ServiceTarget(PemTargetConfig(**{**files, **named, **options}), FakeHost(allowed=allowed))

    return make


@pytest.fixture
def bundle():
    return FakeCA().bundle("a.example")


async def test_a_command_may_be_spelt_out(make, bundle):
    await make(validate_command="true").deploy(DeployRequest(bundle=bundle), FakeRun())


async def test_a_chain_file_for_a_certificate_without_chain_is_told(make, bundle, tmp_path):
    alone = Bundle(bundle.cert_pem, "", bundle.key_pem)
    with pytest.raises(MisconfiguredError, match="has no chain"):
        await make(chain_path=tmp_path / "tls" / "chain.pem").deploy(DeployRequest(bundle=alone), FakeRun())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_configured_modes_and_owners_win(make, bundle, tmp_path):
    target = make(cert_file_mode="0640", cert_file_group="12", key_file_mode="400", key_file_owner="12345")
    (tmp_path / "tls" / "site.key").write_text("old")
    await target.deploy(DeployRequest(bundle=bundle), FakeRun())
    cert, key = (tmp_path / "tls" / f"site.{name}" for name in ("crt", "key"))
    assert (stat.S_IMODE(cert.stat().st_mode), cert.stat().st_gid) == (0o640, 12)
    assert (stat.S_IMODE(key.stat().st_mode), key.stat().st_uid) == (0o400, 12345)


async def test_as_many_backups_stay_as_configured(make, tmp_path):
    for n in range(4):
        request = DeployRequest(bundle=FakeCA().bundle(f"{n}.example"))
        await make(backup_retention=1).deploy(request, FakeRun())
    assert len(list((tmp_path / "tls").glob(".site.crt.certctl/0*"))) == 2


async def test_a_deployment_cut_short_is_taken_back_at_the_start(make, bundle, tmp_path):
    assert not await make().recover(FakeRun())
    if (child := os.fork()) == 0:

        async def die():
            os._exit(1)

        with asyncio.Runner() as runner:
            runner.run(make().deploy(DeployRequest(bundle=bundle, verify=die), FakeRun()))
    os.waitpid(child, 0)
    assert (tmp_path / "loaded").exists()
    assert await make().recover(FakeRun())
    assert not list((tmp_path / "tls").iterdir())
    assert not (tmp_path / "loaded").exists()


class Proof:
    """Finds the old certificate ``misses`` times, or nothing at all."""

    def __init__(self, misses):
        self.misses, self.looks = misses, 0

    async def __call__(self):
        self.looks += 1
        if self.looks <= self.misses:
            raise DeploymentError("verify", "the old one is served")


@pytest.mark.parametrize(("misses", "looks"), [(0, 1), (2, 3), (9, 3)], ids=["at once", "at last", "never"])
async def test_the_proof_is_repeated_as_often_as_configured(make, bundle, misses, looks):
    target = make(post_deploy_verify_attempts=3, post_deploy_verify_backoff="1ms")
    proof = Proof(misses)
    if misses > 2:
        with pytest.raises(DeploymentError, match="the old one"):
            await target.deploy(DeployRequest(bundle=bundle, verify=proof), FakeRun())
    else:
        await target.deploy(DeployRequest(bundle=bundle, verify=proof), FakeRun())
    assert proof.looks == looks


async def test_a_proof_that_hangs_is_given_up(make, bundle, tmp_path):
    target = make(post_deploy_verify={"timeout": "50ms"})
    with pytest.raises(DeploymentError, match="took too long"):
        await target.deploy(DeployRequest(bundle=bundle, verify=asyncio.Event().wait), FakeRun())
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ()),
        ({"host": "a.example"}, (Endpoint(host="a.example", port=443),)),
        ({"address": "::1", "port": 8443}, (Endpoint(host="::1", port=8443),)),
        ({"target": "a", "post_deploy_verify": {"endpoint": "[::1]:44"}}, (Endpoint(host="::1", port=44),)),
        ({"hostname": "a", "post_deploy_verify": {"enabled": False}}, ()),
    ],
    ids=["none", "host", "address and port", "an endpoint of its own", "switched off"],
)
async def test_where_to_look_follows_from_the_options(make, options, expected):
    assert await make(**options).endpoints(FakeRun()) == expected


async def test_an_endpoint_that_is_none_is_told(make):
    with pytest.raises(MisconfiguredError, match="not host:port"):
        await make(post_deploy_verify={"endpoint": "443"}).endpoints(FakeRun())


@pytest.mark.parametrize(
    ("written", "meant"),
    [("10s", 10), ("1m30s", 90), ("500ms", 0.5), (10, 10), (10_000_000_000, 10)],
    ids=["seconds", "minutes", "milliseconds", "a number", "nanoseconds"],
)
def test_times_may_be_written_as_the_original_did(make, written, meant):
    assert make(post_deploy_verify_backoff=written).config.post_deploy_verify_backoff == timedelta(seconds=meant)
