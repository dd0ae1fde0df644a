"""The tests every scanner must pass: ``FileScannerContract`` if it looks into files, else ``ScannerContract``."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
from certctl_core.scanner import Finding, Scanner, ScanRequest

from certctl_sdk.testing.fake_ca import FakeCA, csr_pem
from certctl_sdk.testing.fake_host import FakeHost, FakeRun
from certctl_sdk.testing.strictness import assert_loads, assert_strict

Make = Callable[[], Scanner]
SECONDS = 20.0
STALL_SECONDS = 3.0
HUGE_BYTES = 64 * 1024 * 1024


class Plant(Protocol):
    """Puts a certificate, and its key, where a scan must find the certificate."""

    def __call__(self, cert_pem: str, key_pem: str | None = None) -> object:
        """Plant one more; it may be called many times."""


@pytest.mark.asyncio
class ScannerContract:
    """Everything planted is found, as it is and once; no key is told; memory stays bounded; a scan can be cancelled.

    Set ``connector``, override ``options`` and ``plant``, and ``make`` where a scanner needs more than its options.
    """

    connector: ClassVar[type[Scanner]]

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """A complete configuration, as an operator would store it; it leads to a place that is empty at first."""
        raise NotImplementedError("override the options fixture")

    @pytest.fixture
    def make(self, options: Mapping[str, Any]) -> Make:
        """Return what makes an instance."""
        return lambda: self.connector(self.connector.Config.model_validate(options), FakeHost())

    @pytest.fixture
    def plant(self) -> Plant:
        """Return what plants a certificate."""
        raise NotImplementedError("override the plant fixture")

    async def test_the_class_loads_and_its_options_are_strict(self, options: Mapping[str, Any]) -> None:
        assert_loads(self.connector)
        assert_strict(self.connector.Config, options)

    async def test_an_empty_place_yields_nothing(self, make: Make) -> None:
        assert await _scan(make()) == []

    async def test_everything_planted_is_found_as_it_is_and_once(self, make: Make, plant: Plant) -> None:
        ca = FakeCA()
        certs = [ca.bundle(name).cert_pem for name in ("a.example", "b.example", "c.example")]
        for cert in certs:
            plant(cert)
        findings = await _scan(make())
        assert sorted(map(_der, (f.cert_pem for f in findings))) == sorted(map(_der, certs))
        assert all(f.source_path and f.source_path.isprintable() and f.source_format for f in findings)

    async def test_no_key_is_told_though_it_lies_beside(
        self, make: Make, plant: Plant, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        bundle = FakeCA().bundle("a.example")
        plant(bundle.cert_pem, bundle.key_pem)
        [finding] = await _scan(make())
        told = f"{finding} {caplog.text}"
        secret = bundle.key_pem.splitlines()[1]
        assert "PRIVATE KEY" not in told
        assert secret not in told

    async def test_scans_at_once_and_one_after_the_other_find_the_same(self, make: Make, plant: Plant) -> None:
        ca = FakeCA()
        for number in range(5):
            plant(ca.bundle(f"{number}.example").cert_pem)
        scanner = make()
        first, *more = await asyncio.gather(*(_scan(scanner) for _ in range(3)))
        for findings in (*more, await _scan(scanner)):
            assert sorted(map(repr, findings)) == sorted(map(repr, first))
        assert len(first) == 5  # noqa: PLR2004

    async def test_memory_stays_bounded_however_much_is_found(self, make: Make, plant: Plant) -> None:
        ca, count = FakeCA(), 600
        csr = csr_pem(*(f"{number}.a-rather-long-name.example" for number in range(300)))
        size = sum(len(cert) for cert in (ca.sign(csr) for _ in range(count)) if plant(cert) or True)
        tracemalloc.start()
        try:
            found, scanner = 0, make()
            async for _ in scanner.scan(ScanRequest(), FakeRun()):
                found += 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found == count
        assert peak < size / 3, f"held {peak} bytes at once while finding {size}"

    async def test_a_cancelled_scan_ends_at_once_and_the_next_one_is_whole(self, make: Make, plant: Plant) -> None:
        ca, scanner, cancelled = FakeCA(), make(), asyncio.Event()
        for number in range(20):
            plant(ca.bundle(f"{number}.example").cert_pem)

        def cancel() -> None:
            if not task.done():
                cancelled.set()
                task.cancel()

        async def scan() -> None:
            async for _ in scanner.scan(ScanRequest(), FakeRun()):
                asyncio.get_running_loop().call_soon(cancel)

        task = asyncio.create_task(scan())
        await asyncio.wait([task], timeout=STALL_SECONDS)
        # One that never waits is done before anybody could cancel it.
        assert task.cancelled() if cancelled.is_set() else task.done(), "the scan went on after it was cancelled"
        assert len(await _scan(scanner)) == 20  # noqa: PLR2004


class FileScannerContract(ScannerContract):
    """As ``ScannerContract``, and no odd file hides another. Override ``options`` to search ``tmp_path``."""

    @pytest.fixture
    def plant(self, tmp_path: Path) -> Plant:
        """Return what writes a PEM file with a key file beside it, and the key into the same file as well."""
        count = iter(range(1_000_000))

        def write(cert_pem: str, key_pem: str | None = None) -> None:
            place = tmp_path / f"place-{next(count)}"
            place.mkdir()
            (place / "cert.pem").write_text(f"{cert_pem}{key_pem or ''}")
            if key_pem:
                (place / "cert.key").write_text(key_pem)

        return write

    @pytest.mark.parametrize("oddity", ["binary", "cut", "empty", "dead link", "ring", "socket", "closed", "not text"])
    async def test_an_odd_file_hides_no_other(self, make: Make, plant: Plant, tmp_path: Path, oddity: str) -> None:
        cert = FakeCA().bundle("a.example").cert_pem
        for name in ("0.pem", "m.pem", "zzz.pem"):
            _spoil(tmp_path / name, oddity, cert)
        plant(cert)
        (tmp_path / "n.pem").write_text(cert)
        assert len(await _scan(make())) == 2  # noqa: PLR2004

    async def test_a_bundle_gives_all_its_certificates(self, make: Make, plant: Plant) -> None:
        ca = FakeCA()
        plant(ca.bundle("a.example").cert_pem + ca.cert_pem)
        assert len(await _scan(make())) == 2  # noqa: PLR2004

    async def test_a_pipe_stops_nothing(self, make: Make, plant: Plant, tmp_path: Path) -> None:
        plant(FakeCA().bundle("a.example").cert_pem)
        os.mkfifo(tmp_path / "pipe.pem")
        # Whoever opens the pipe would wait for ever; this lets it go, late.
        rescue = threading.Timer(STALL_SECONDS, lambda: os.close(os.open(tmp_path / "pipe.pem", os.O_RDWR)))
        rescue.start()
        try:
            began = time.monotonic()
            assert len(await _scan(make())) == 1
            assert time.monotonic() - began < STALL_SECONDS, "the scan waited for a pipe"
        finally:
            rescue.cancel()
            rescue.join()

    async def test_a_huge_file_is_not_read(self, make: Make, plant: Plant, tmp_path: Path) -> None:
        plant(FakeCA().bundle("a.example").cert_pem)
        with (tmp_path / "huge.pem").open("wb") as huge:
            huge.truncate(HUGE_BYTES)
        tracemalloc.start()
        try:
            assert len(await _scan(make())) == 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < HUGE_BYTES / 4, f"held {peak} bytes of a file that is no certificate"

    async def test_links_in_circles_end_and_double_nothing(self, make: Make, plant: Plant, tmp_path: Path) -> None:
        plant(FakeCA().bundle("a.example").cert_pem)
        (tmp_path / "place-0" / "up").symlink_to("..")
        assert len(await _scan(make())) == 1


def _spoil(path: Path, oddity: str, cert_pem: str) -> None:
    match oddity:
        case "binary":
            path.write_bytes(bytes(range(256)) * 64)
        case "cut":
            path.write_text(cert_pem[: len(cert_pem) // 2])
        case "empty":
            path.touch()
        case "dead link":
            path.symlink_to("nowhere")
        case "ring":
            path.symlink_to(path.name)
        case "socket":
            os.mknod(path, 0o140600)
        case "closed":
            path.mkdir(mode=0)
        case _:
            path.write_bytes(b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n-----END CERTIFICATE-----\n")


async def _scan(scanner: Scanner) -> list[Finding]:
    async with asyncio.timeout(SECONDS):
        return [finding async for finding in scanner.scan(ScanRequest(), FakeRun())]


def _der(cert_pem: str) -> bytes:
    """ValueError unless ``cert_pem`` is one certificate and nothing else."""
    der = ssl.PEM_cert_to_DER_cert(cert_pem)
    assert cert_pem.split() == ssl.DER_cert_to_PEM_cert(der).split(), "more than one certificate in a finding"
    return der
