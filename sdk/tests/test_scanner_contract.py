"""The contract, kept by a plain scanner of files, and noticed when it is broken."""

import asyncio
import logging
import os
import re
import ssl
import time
from pathlib import Path

import pytest
from certctl_core.config import ConnectorConfig
from certctl_core.scanner import Finding, Scanner
from certctl_sdk.testing.scanner_contract import FileScannerContract
from cryptography import x509
from pydantic import ConfigDict, Field, SecretStr

BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n")


class DiskConfig(ConnectorConfig):
    directory: Path = Field(description="Where to look")


class Disk(Scanner):
    kind = "disk"
    Config = DiskConfig

    async def scan(self, request, run):
        for path in self.files():
            for finding in self.read(path):
                yield finding
            await asyncio.sleep(0)

    def files(self):
        for folder, _, names in os.walk(self.config.directory):
            yield from (Path(folder, name) for name in names)

    def read(self, path):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1_000_000 or path.suffix == ".key":
            return
        for block in BLOCK.findall(path.read_bytes()):
            try:
                der = ssl.PEM_cert_to_DER_cert(block.decode())
                x509.load_der_x509_certificate(der)
            except ValueError:
                continue
            yield Finding(cert_pem=ssl.DER_cert_to_PEM_cert(der), source_path=str(path), source_format="PEM")


class Suite(FileScannerContract):
    connector = Disk

    @pytest.fixture
    def options(self, tmp_path):
        return {"directory": str(tmp_path)}


class TestContract(Suite):
    pass


class Hoarder(Disk):
    """Reads everything before it says anything."""

    async def scan(self, request, run):
        for finding in [finding for path in self.files() for finding in self.read(path)]:
            yield finding
            await asyncio.sleep(0)


class Copier(Disk):
    """Hands on what the file holds, key included."""

    def read(self, path):
        for _ in super().read(path):
            yield Finding(cert_pem=path.read_text(), source_path=str(path), source_format="PEM")


class Logger(Disk):
    """Logs what it reads."""

    def read(self, path):
        for finding in super().read(path):
            logging.getLogger("disk").debug("read %s", path.read_text())
            yield finding


class Fragile(Disk):
    """Ends at the first file that it cannot read."""

    def read(self, path):
        path.read_bytes().decode()
        yield from super().read(path)


class Swallower(Disk):
    """Reads whole files, however long."""

    def read(self, path):
        if path.is_file():
            path.read_bytes()
        yield from super().read(path)


class Waiter(Disk):
    """Opens whatever has the right name."""

    def read(self, path):
        if not path.is_symlink() and path.suffix == ".pem" and path.exists() and not path.is_socket():
            path.open("rb").close()
        yield from super().read(path)


class Follower(Disk):
    """Walks through links for as long as the system lets it."""

    def files(self):
        for folder, _, names in os.walk(self.config.directory, followlinks=True):
            yield from (Path(folder, name) for name in names)


class FirstOnly(Disk):
    """Takes a bundle for one certificate."""

    def read(self, path):
        yield from list(super().read(path))[:1]


class Stutterer(Disk):
    """Tells everything twice."""

    def read(self, path):
        yield from (finding for finding in super().read(path) for _ in range(2))


class Once(Disk):
    """Remembers in the instance what it told."""

    def read(self, path):
        told = self.__dict__.setdefault("told", set())
        yield from (finding for finding in super().read(path) if not (finding in told or told.add(finding)))


class Deaf(Disk):
    """Takes a cancellation for one more oddity."""

    async def scan(self, request, run):
        for path in self.files():
            for finding in self.read(path):
                try:
                    yield finding
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue


class Blocker(Disk):
    """Gives the loop no chance between two files."""

    async def scan(self, request, run):
        for path in self.files():
            for finding in self.read(path):
                time.sleep(0.2)
                yield finding


class Lax(Disk):
    """Takes any option, and tells the secret among them."""

    class Config(DiskConfig):
        model_config = ConfigDict(extra="allow")
        token: SecretStr = Field(SecretStr(""), description="A token")


BAD = {
    Hoarder: "test_memory_stays_bounded_however_much_is_found",
    Copier: "test_no_key_is_told_though_it_lies_beside",
    Logger: "test_no_key_is_told_though_it_lies_beside",
    Fragile: "test_an_odd_file_hides_no_other",
    Swallower: "test_a_huge_file_is_not_read",
    Waiter: "test_a_pipe_stops_nothing",
    Follower: "test_links_in_circles_end_and_double_nothing",
    FirstOnly: "test_a_bundle_gives_all_its_certificates",
    Stutterer: "test_everything_planted_is_found_as_it_is_and_once",
    Once: "test_scans_at_once_and_one_after_the_other_find_the_same",
    Deaf: "test_a_cancelled_scan_ends_at_once_and_the_next_one_is_whole",
    Lax: "test_the_class_loads_and_its_options_are_strict",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_the_contract_rejects(rejections, bad):
    assert BAD[bad] in rejections[bad.__name__]
