"""A real NGINX is deployed to, sabotaged at every step, and looked at by handshakes."""

import asyncio
import contextlib
import os
import re
import ssl
import stat
import subprocess
import threading

import pytest
from certctl_core.errors import DeploymentError, MisconfiguredError
from certctl_core.run import Allowed
from certctl_core.target import DeployRequest, RollbackRequest
from certctl_sdk.testing.fake_ca import FakeCA
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.nginx import Nginx
from certctl_target_nginx import NginxConfig, NginxTarget

NAMES = {"validate_command": "nginx-check", "reload_command": "nginx-reload"}
SECONDS_TO_BE_SEEN = 5


@pytest.fixture(scope="module")
def bundles():
    ca = FakeCA()
    return [ca.bundle(f"{n}.example") for n in range(3)]


def der(bundle):
    return ssl.PEM_cert_to_DER_cert(bundle.cert_pem)


@contextlib.contextmanager
def mounted(*arguments, on):
    """Mount over a directory for a while; only root may."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    subprocess.run(["mount", *arguments, str(on)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(on)], check=True)


@contextlib.contextmanager
def read_only(directory):
    with mounted("--bind", str(directory), on=directory):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
        yield


class Site:
    """An NGINX with plain files that were there before us, and targets in front of it."""

    def __init__(self, root, bundle):
        self.nginx = Nginx(root / "nginx", cert=root / "tls" / "site.crt", key=root / "private" / "site.key")
        self.nginx.cert.write_text(bundle.cert_pem + bundle.chain_pem)
        self.nginx.key.write_text(bundle.key_pem)
        self.nginx.key.chmod(0o640)

    def target(self, *, directories=None, check=None, reload=None, **options):
        commands = {
            "nginx-check": check or self.nginx.check_command,
            "nginx-reload": reload or self.nginx.reload_command,
        }
        directories = directories or [self.nginx.cert.parent, self.nginx.key.parent]
        options = {"cert_path": self.nginx.cert, "key_path": self.nginx.key, **NAMES, **options}
        return NginxTarget(NginxConfig(**options), FakeHost(allowed=Allowed(directories, commands)))

    def looks(self):
        """Every file that a service would find, with mode and owner, and every link."""
        found = {}
        for directory in (self.nginx.cert.parent, self.nginx.key.parent):
            for path in sorted(directory.rglob("*")):
                was = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(was.st_mode) else None
                found[path] = (was.st_mode, was.st_uid, was.st_gid, content, path.is_symlink() and path.readlink())
        return found

    def proof(self, bundle):
        """What the agent does: look for a while at what clients get."""

        async def look():
            end = asyncio.get_running_loop().time() + SECONDS_TO_BE_SEEN / 5
            while self.nginx.served() != der(bundle):
                if asyncio.get_running_loop().time() > end:
                    raise DeploymentError("verify", "the handshake shows another certificate")
                await asyncio.sleep(0.05)

        return look

    async def deploy(self, bundle, **options):
        request = DeployRequest(bundle=bundle, verify=self.proof(bundle))
        return await self.target(**options).deploy(request, FakeRun())

    async def refuses(self, bundle, error, told, **options):
        """A deployment that fails, is told in plain words, and leaves everything as it was."""
        was, served = self.looks(), self.nginx.served()
        with pytest.raises(error, match=told) as failed:
            await self.deploy(bundle, **options)
        assert not re.search(r"[Ee]rrno|\bE[A-Z]{3,}\b|None", str(failed.value))
        assert self.nginx.serves(served)
        assert self.looks() == was


@pytest.fixture
def site(tmp_path, bundles):
    site = Site(tmp_path, bundles[0])
    with site.nginx:
        yield site


@pytest.fixture(params=["plain files", "deployed"])
async def lived_in(site, bundles, request):
    if request.param == "deployed":
        await site.deploy(bundles[0])
    return site


async def test_what_is_deployed_is_served_with_its_chain_and_can_be_taken_back(site, bundles):
    was = site.looks()
    receipt = await site.deploy(bundles[1])
    assert site.nginx.serves(der(bundles[1]))
    shown = subprocess.run(
        ["openssl", "s_client", "-showcerts", "-connect", f"127.0.0.1:{site.nginx.port}"],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.count("BEGIN CERTIFICATE") == 2
    await site.target().rollback(RollbackRequest(receipt=receipt), FakeRun())
    assert site.nginx.serves(der(bundles[0]))
    assert site.looks() == was


@pytest.mark.parametrize("links", [True, False], ids=["links", "plain"])
async def test_thirty_rotations_cost_no_client_a_handshake(site, links):
    ca, seen, failures, over = FakeCA(), [], [], threading.Event()

    def connect():
        while not over.is_set():
            try:
                served = site.nginx.served()
            except OSError as exc:
                failures.append(exc)
            else:
                seen.append(served)

    client = threading.Thread(target=connect)
    client.start()
    try:
        deployed = [ca.bundle(f"{n}.example") for n in range(30)]
        for bundle in deployed:
            await site.deploy(bundle, use_links=links)
            handshakes = len(seen)
            while len(seen) < handshakes + 2:
                await asyncio.sleep(0.01)
    finally:
        over.set()
        client.join()
    assert not failures
    assert {der(bundle) for bundle in deployed} <= set(seen)
    assert len(seen) > 60


async def test_a_check_that_fails_is_told_with_what_it_said(lived_in, bundles):
    check = ("sh", "-c", "echo the certificate smells; exit 1")
    await lived_in.refuses(bundles[1], DeploymentError, "check failed: .*the certificate smells", check=check)


async def test_what_nginx_itself_refuses_is_told_in_its_words(lived_in, bundles):
    lived_in.nginx.site("b.example", lived_in.nginx.root / "missing.crt", lived_in.nginx.key)
    await lived_in.refuses(bundles[1], DeploymentError, r"(?s)check failed: .*cannot load certificate .*missing\.crt")


def once(root, command, site):
    """A reload that does something else the first time."""
    then = " ".join(site.nginx.reload_command)
    return "sh", "-c", f"[ -e {root}/once ] && exec {then}; touch {root}/once; {command}"


async def test_a_reload_that_fails_leaves_the_old_certificate_served(site, bundles, tmp_path):
    reload = once(tmp_path, "echo no master here; exit 3", site)
    await site.refuses(bundles[1], DeploymentError, "reload failed: .*ended with 3: no master here", reload=reload)


async def test_a_reload_that_always_fails_leaves_the_files_as_they_were(site, bundles):
    plain = {path: (path.read_bytes(), path.stat().st_mode) for path in (site.nginx.cert, site.nginx.key)}
    with pytest.raises(DeploymentError, match=r"reload failed: .*ended with 1") as failed:
        await site.deploy(bundles[1], reload=("false",))
    assert any(note.startswith("going back: reload failed") for note in failed.value.__notes__)
    assert {path: (path.read_bytes(), path.lstat().st_mode) for path in plain} == plain
    assert site.nginx.serves(der(bundles[0]))
    await site.deploy(bundles[1])
    assert site.nginx.serves(der(bundles[1]))


async def test_a_reload_that_does_nothing_is_found_out_by_the_handshake(lived_in, bundles):
    await lived_in.refuses(
        bundles[1], DeploymentError, "verify failed: the handshake shows another certificate", reload=("true",)
    )


async def test_a_reload_that_hangs_is_given_up_when_the_deployment_is_cancelled(lived_in, bundles, tmp_path):
    was = lived_in.looks()
    reload = once(tmp_path, "sleep 60", lived_in)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await lived_in.deploy(bundles[1], reload=reload)
    assert lived_in.looks() == was
    assert lived_in.nginx.serves(der(bundles[0]))


async def test_generations_on_a_read_only_mount_are_told(site, bundles):
    await site.deploy(bundles[0])
    with read_only(site.nginx.cert.parent / ".site.crt.certctl"):
        await site.refuses(
            bundles[1], DeploymentError, r"\.site\.crt\.certctl.* cannot be changed: .* mounted read-only"
        )
    await site.deploy(bundles[1])
    assert site.nginx.serves(der(bundles[1]))


@pytest.mark.parametrize("links", [True, False], ids=["links", "plain"])
async def test_a_read_only_directory_of_the_key_at_the_first_deployment_is_told(site, bundles, links):
    told = r"stage failed: .*/private/.* cannot be changed: .* mounted read-only"
    with read_only(site.nginx.key.parent):
        await site.refuses(bundles[1], DeploymentError, told, use_links=links)
    await site.deploy(bundles[1], use_links=links)
    assert site.nginx.serves(der(bundles[1]))


@pytest.fixture
def on_a_small_disk(tmp_path, bundles):
    """A site whose certificate lies on a disk of 2 MiB, and what fills that."""
    (tls := tmp_path / "tls").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", on=tls):
        site = Site(tmp_path, bundles[0])
        with site.nginx:
            yield site


def fill(directory):
    with contextlib.suppress(OSError), (directory / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


@pytest.mark.parametrize("links", [True, False], ids=["links", "plain"])
@pytest.mark.parametrize("before", ["plain files", "deployed"])
async def test_a_full_disk_is_told(on_a_small_disk, bundles, before, links):
    site = on_a_small_disk
    if before == "deployed":
        await site.deploy(bundles[0], use_links=links)
    fill(site.nginx.cert.parent)
    told = r"stage failed: .*/tls/.* cannot be written: no space is left on its disk"
    await site.refuses(bundles[1], DeploymentError, told, use_links=links)
    (site.nginx.cert.parent / "ballast").unlink()
    await site.deploy(bundles[1], use_links=links)
    assert site.nginx.serves(der(bundles[1]))


@pytest.mark.parametrize("links", [True, False], ids=["links", "plain"])
async def test_a_disk_that_fills_up_in_the_middle_does_not_bar_the_way_back(on_a_small_disk, bundles, links):
    site = on_a_small_disk
    was, ballast = site.looks(), site.nginx.cert.parent / "ballast"
    check = ("sh", "-c", f"cat /dev/zero >{ballast}; exit 1")
    with pytest.raises(DeploymentError, match="check failed"):
        await site.deploy(bundles[1], check=check, use_links=links)
    ballast.unlink()
    assert site.looks() == was
    assert site.nginx.serves(der(bundles[0]))


async def test_a_directory_that_is_not_there_is_told(lived_in, bundles):
    path = lived_in.nginx.key.parent / "gone" / "site.key"
    await lived_in.refuses(bundles[1], DeploymentError, "open failed: .*/private/gone is not there", key_path=path)


async def test_a_directory_that_is_not_allowed_is_told(lived_in, bundles):
    await lived_in.refuses(
        bundles[1],
        MisconfiguredError,
        "allows no files in .*/private: its owner may add that",
        directories=[lived_in.nginx.cert.parent],
    )


@pytest.mark.parametrize("which", NAMES)
async def test_a_command_that_is_not_allowed_is_told(lived_in, bundles, which):
    await lived_in.refuses(
        bundles[1],
        MisconfiguredError,
        "allows no command 'systemctl restart nginx'",
        **{which: "systemctl restart nginx"},
    )


async def test_a_dry_run_finds_what_would_fail_and_changes_nothing(lived_in, bundles):
    was, request = lived_in.looks(), DeployRequest(bundle=bundles[1])
    await lived_in.target().dry_run(request, FakeRun())
    with read_only(lived_in.nginx.key.parent), pytest.raises(DeploymentError, match="mounted read-only"):
        await lived_in.target().dry_run(request, FakeRun())
    assert lived_in.looks() == was
    await lived_in.target().check(FakeRun())


async def test_the_chain_file_serves_as_trusted_chain(tmp_path, bundles):
    tls = tmp_path / "tls"
    nginx = Nginx(tmp_path / "nginx", cert=tls / "site.crt", key=tls / "site.key", chain=tls / "chain.pem")
    allowed = Allowed([tls], {"nginx-check": nginx.check_command, "nginx-reload": ("true",)})
    config = NginxConfig(cert_path=nginx.cert, key_path=nginx.key, chain_path=tls / "chain.pem", **NAMES)
    await NginxTarget(config, FakeHost(allowed=allowed)).deploy(DeployRequest(bundle=bundles[0]), FakeRun())
    with nginx:
        assert nginx.serves(der(bundles[0]))
