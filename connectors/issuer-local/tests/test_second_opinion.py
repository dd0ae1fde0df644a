"""What OpenSSL and zlint think of the certificates. Both are real programs, and neither is ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from certctl_core.names import SanKind, normalise_sans

SOURCES = "RFC3279,RFC5280,RFC5480,RFC5891,RFC8813"
NAMES = {
    "dns": ["www.example.com"],
    "wildcard": ["*.example.com"],
    "ip": ["192.0.2.1", "2001:db8::1"],
    "email": ["someone@example.com"],
    "uri": ["https://www.example.com/things"],
    "mixed": ["www.example.com", "192.0.2.1", "someone@example.com", "spiffe://prod.example.com/web", "bücher.example"],
}
WISHES = {
    "server": {},
    "named": {"common_name": "www.example.com"},
    "client": {"ekus": ("clientAuth",), "no_rev_avail": True},
    "both": {"ekus": ("serverAuth", "clientAuth"), "common_name": "www.example.com"},
    "mail": {"ekus": ("emailProtection",)},
    "code": {"ekus": ("codeSigning",), "common_name": "Example Ltd"},
    "time": {"ekus": ("timeStamping",), "common_name": "Example clock"},
}


def program(name, *elsewhere):
    found = next((str(p) for p in elsewhere if p and Path(p).exists()), None) or shutil.which(name)
    if not found:
        missing = f"{name} is not installed here"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return found


@pytest.fixture
def zlint():
    """Return what names the faults that zlint finds in a certificate."""
    zlint = program("zlint", os.environ.get("CERTCTL_ZLINT"), Path.home() / "go" / "bin" / "zlint")

    def faults(path):
        told = subprocess.run([zlint, "-includeSources", SOURCES, path], capture_output=True, check=True).stdout
        lints = {name: lint["result"] for name, lint in json.loads(told).items()}
        assert "pass" in lints.values()
        return {name: result for name, result in lints.items() if result in {"warn", "error", "fatal"}}

    return faults


@pytest.fixture
def openssl():
    """Return what says whether OpenSSL accepts a certificate under a root, with more to ask of it."""
    openssl = program("openssl")

    def verify(leaf, root, *asked):
        command = [openssl, "verify", "-x509_strict", *asked, "-CAfile", root, leaf]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode == 0 or done.stdout + done.stderr

    return verify


@pytest.fixture
def files(tmp_path):
    """Return what writes leaf and root of an outcome to files."""

    def files(outcome):
        (tmp_path / "leaf.pem").write_text(outcome.issued.cert_pem)
        (tmp_path / "root.pem").write_text(outcome.issued.chain_pem)
        return tmp_path / "leaf.pem", tmp_path / "root.pem"

    return files


@pytest.mark.parametrize("key", ["p256", "p384", "rsa", "ed25519"])
@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
async def test_zlint_finds_no_fault(zlint, issue, order, files, names, wishes, key):
    points = ("http://pki.example.com/ca.crl",)
    leaf, root = files(await issue(order(*names, key=key, **wishes), crl_distribution_point_urls=points))
    assert (zlint(leaf), zlint(root)) == ({}, {})


@pytest.mark.parametrize("key", ["p256", "p384", "rsa", "ed25519"])
@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
async def test_openssl_follows_the_path_strictly(openssl, issue, order, files, names, wishes, key):
    assert openssl(*files(await issue(order(*names, key=key, **wishes)))) is True


async def test_openssl_finds_the_names_and_the_purpose(openssl, issue, order, files):
    paths = files(await issue(order(*NAMES["mixed"], ekus=("serverAuth",))))
    flag = {SanKind.DNS: "-verify_hostname", SanKind.IP: "-verify_ip", SanKind.EMAIL: "-verify_email"}
    asked = [part for san in normalise_sans(NAMES["mixed"]) if san.kind in flag for part in (flag[san.kind], san.value)]
    assert openssl(*paths, "-purpose", "sslserver", *asked) is True
    assert "hostname mismatch" in openssl(*paths, "-verify_hostname", "other.example.com")
    assert "unsuitable certificate purpose" in openssl(*paths, "-purpose", "sslclient")


async def test_the_lint_would_tell(zlint, tmp_path):
    bad = tmp_path / "bad.pem"
    wrong = ["-subj", "/CN=x", "-addext", "basicConstraints=CA:FALSE", "-addext", "keyUsage=keyCertSign"]
    make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", os.devnull, "-out", bad, *wrong]
    subprocess.run([program("openssl"), *make], capture_output=True, check=True)
    assert zlint(bad)["e_ext_key_usage_cert_sign_without_ca"] == "error"
