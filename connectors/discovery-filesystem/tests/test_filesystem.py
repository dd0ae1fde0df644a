import asyncio
import logging
import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certctl_discovery_filesystem as module
import pytest
from certctl_core.config import read
from certctl_core.errors import MisconfiguredError
from certctl_core.scanner import ScanRequest
from certctl_discovery_filesystem import FilesystemConfig, FilesystemScanner
from certctl_sdk.testing.fake_ca import FakeCA
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.scanner_contract import FileScannerContract

CA = FakeCA()
BUNDLE = CA.bundle("a.example")
PEM, KEY = BUNDLE.cert_pem, BUNDLE.key_pem
DER = ssl.PEM_cert_to_DER_cert(PEM)


def scanner(*directories, **options):
    return FilesystemScanner(FilesystemConfig(directories=directories, **options), FakeHost())


async def scan(*directories, since=None, **options):
    findings = scanner(*directories, **options).scan(ScanRequest(since=since), FakeRun())
    return [finding async for finding in findings]


async def paths(*directories, **options):
    return sorted(Path(finding.source_path).name for finding in await scan(*directories, **options))


class TestContract(FileScannerContract):
    connector = FilesystemScanner

    @pytest.fixture
    def options(self, tmp_path):
        return {"directories": [str(tmp_path)]}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.pem", PEM.encode(), "PEM"),
        ("a.CRT", PEM.encode(), "PEM"),
        ("a.cer", PEM.encode(), "PEM"),
        ("a.cert", PEM.encode(), "PEM"),
        ("a.bak", PEM.encode(), "PEM"),
        ("a.conf", b"Bag Attributes\n" + PEM.replace("\n", "\r\n").encode(), "PEM"),
        ("a.txt", b"x" * 5000 + PEM.encode(), "PEM"),
        ("a", PEM.encode(), "PEM"),
        (".hidden", PEM.encode(), "PEM"),
        ("old.pem", PEM.replace("CERTIFICATE", "X509 CERTIFICATE").encode(), "PEM"),
        ("a.der", DER, "DER"),
        ("a.cer", DER, "DER"),
        ("a.key", PEM.encode(), None),
        ("a", b"hello " + PEM.encode(), None),
        ("a", DER, None),
        ("a.bin", DER, None),
        ("a.jks", b"\xfe\xed\0" + PEM.encode(), None),
        ("a.der", DER + b"\0", None),
        ("version-4.der", DER.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1), None),
        ("a.pem", PEM[:-40].encode(), None),
        ("a.pem", PEM.replace("MII", "M!I").encode(), None),
        ("a.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None),
        ("a.pem", b"", None),
        ("a.pem", KEY.encode(), None),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else value,
)
async def test_the_name_and_the_first_bytes_say_how_a_file_is_read(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    findings = await scan(tmp_path)
    assert [finding.source_format for finding in findings] == ([found] if found else [])
    assert all(ssl.PEM_cert_to_DER_cert(finding.cert_pem) == DER for finding in findings)
    assert all(finding.source_path == str(tmp_path / name) for finding in findings)


async def test_a_bundle_gives_each_certificate_once_and_never_its_key(tmp_path):
    (tmp_path / "bundle.pem").write_text(KEY + PEM + CA.cert_pem + PEM + KEY)
    found = [finding.cert_pem for finding in await scan(tmp_path)]
    assert found == [ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(pem)) for pem in (PEM, CA.cert_pem)]


async def test_a_certificate_in_two_files_is_found_in_both_and_behind_two_names_of_one_file_once(tmp_path):
    (tmp_path / "a.pem").write_text(PEM)
    (tmp_path / "b.pem").write_text(PEM)
    os.link(tmp_path / "a.pem", tmp_path / "hardlink.pem")
    assert len(await paths(tmp_path)) == 2


@pytest.fixture
def tree(tmp_path):
    """Laid out as /etc/ssl is: the certificates elsewhere, links under two names here, a bundle of all."""
    share, certs = tmp_path / "share", tmp_path / "certs"
    share.mkdir()
    certs.mkdir()
    (share / "a.crt").write_text(PEM)
    (certs / "a.pem").symlink_to(share / "a.crt")
    (certs / "1234abcd.0").symlink_to("a.pem")
    (certs / "gone.pem").symlink_to("nowhere")
    (certs / "self").symlink_to(".")
    (certs / "up").symlink_to("..")
    (share / "down").symlink_to(certs)
    (certs / "ca-certificates.crt").write_text(PEM)
    return certs


async def test_links_to_files_are_looked_behind_and_double_nothing(tree):
    assert await paths(tree) == ["a.crt", "ca-certificates.crt"]
    assert await paths(tree.parent) == ["a.crt", "ca-certificates.crt"]


async def test_what_lies_behind_a_link_is_told_under_its_real_path_whichever_link_came_first(tree):
    found = {finding.source_path for finding in await scan(tree)}
    assert found == {str(tree.parent / "share" / "a.crt"), str(tree / "ca-certificates.crt")}


async def test_links_to_directories_are_entered_only_if_asked_for(tree, tmp_path):
    (tree.parent / "share" / "a.crt").rename(tmp_path / "share" / "b.crt")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "share").symlink_to(tmp_path / "share")
    assert await paths(alone) == []
    assert await paths(alone, follow_symlinks=True) == ["b.crt", "ca-certificates.crt"]
    assert len(await paths(tree.parent, follow_symlinks=True)) == 2


async def test_a_link_opens_neither_a_key_nor_what_is_excluded(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "a.pem").write_text(PEM)
    (tmp_path / "b.key").write_text(PEM)
    (tmp_path / "in" / "a.pem").symlink_to(tmp_path / "out" / "a.pem")
    (tmp_path / "in" / "b.pem").symlink_to(tmp_path / "b.key")
    assert await paths(tmp_path / "in", exclude=(tmp_path / "out",)) == []


async def test_a_directory_named_twice_or_within_another_is_walked_once(tree):
    assert len(await paths(tree.parent, tree, tree.parent)) == 2


async def test_a_directory_that_is_a_link_itself_is_walked(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    assert await paths(tmp_path / "link") == ["a.crt", "ca-certificates.crt"]


async def test_what_is_excluded_is_not_entered(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.pem").write_text(PEM)
    assert await paths(tmp_path, exclude=(tmp_path / "out",)) == ["in.pem"]


async def test_only_what_changed_is_read_again(tmp_path):
    (tmp_path / "a.pem").write_text(PEM)
    now = datetime.now(UTC)
    assert await scan(tmp_path, since=now - timedelta(minutes=1))
    assert not await scan(tmp_path, since=now + timedelta(minutes=1))


async def test_a_file_that_is_too_long_is_skipped_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "short.pem").write_text(PEM)
    (tmp_path / "long.pem").write_text(PEM + " " * len(PEM))
    assert await paths(tmp_path, max_file_bytes=len(PEM)) == ["short.pem"]
    [summary] = [record for record in caplog.records if record.message == "files scanned"]
    assert (summary.skipped, summary.files, summary.certificates, summary.unreadable) == (1, 1, 1, 0)


async def test_a_name_that_is_not_text_is_reported_in_escapes(tmp_path):
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\x1b[2J\n.pem", os.O_CREAT | os.O_WRONLY))
    next(tmp_path.iterdir()).write_text(PEM)
    [finding] = await scan(tmp_path)
    assert finding.source_path == f"{tmp_path}/\\xff\\x1b[2J\\n.pem"


async def test_a_tree_deeper_than_any_real_one_is_cut_and_harms_nothing(tmp_path):
    deep = tmp_path
    for _ in range(module.DEPTH + 5):
        deep /= "d"
        deep.mkdir()
    (deep / "deep.pem").write_text(PEM)
    (tmp_path / "a.pem").write_text(PEM)
    assert await paths(tmp_path) == ["a.pem"]


async def test_a_directory_that_is_missing_is_told_and_hides_no_other(tmp_path, caplog):
    (tmp_path / "a.pem").write_text(PEM)
    assert await paths(tmp_path / "gone", tmp_path) == ["a.pem"]
    assert any(record.path == str(tmp_path / "gone") for record in caplog.records)
    for call in (scan(tmp_path / "gone"), scanner(tmp_path, tmp_path / "gone").check(FakeRun())):
        with pytest.raises(MisconfiguredError, match="gone: No such file or directory"):
            await call
    await scanner(tmp_path).check(FakeRun())


@pytest.mark.parametrize("directories", [[], ["relative"], ["/a", "../b"]])
def test_directories_start_at_the_root(directories):
    assert read(FilesystemConfig, {"directories": directories}).faults


async def test_the_loop_is_never_held_up_and_no_descriptor_stays_open(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.pem").write_text(PEM)
    gaps, before = [], len(os.listdir("/proc/self/fd"))

    async def watch():
        last = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(0.001)
            now = asyncio.get_running_loop().time()
            gaps.append(now - last)
            last = now

    watcher = asyncio.create_task(watch())
    assert len(await scan(tmp_path)) == 3000
    watcher.cancel()
    # A busy machine may delay any one beat; a scan on the loop would delay all of them.
    assert sorted(gaps)[int(len(gaps) * 0.95)] < 0.05
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_scan_that_nobody_waits_for_lets_go_of_its_directories(tmp_path):
    for number in range(500):
        (tmp_path / f"{number}.pem").write_text(PEM)
    before = len(os.listdir("/proc/self/fd"))
    findings = scanner(tmp_path).scan(ScanRequest(), FakeRun())
    await anext(findings)
    assert len(os.listdir("/proc/self/fd")) > before
    await findings.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_walk_that_forgets_still_ends_and_misses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    (tmp_path / "links").mkdir()
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.pem").write_text(PEM)
        (tmp_path / "links" / f"{number}").symlink_to(tmp_path)
    async with asyncio.timeout(20):
        assert len(await scan(tmp_path, follow_symlinks=True)) >= 50


async def test_a_file_full_of_openings_is_read_in_one_pass(tmp_path):
    (tmp_path / "a.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 37_000)
    async with asyncio.timeout(5):
        assert not await scan(tmp_path)


def test_the_readme_lists_every_option():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name, field in FilesystemConfig.model_fields.items():
        assert re.search(rf"\| `{name}` \|.*\| {re.escape(field.description)}", readme), name
