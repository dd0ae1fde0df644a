"""Machines that are cut off: network namespaces of the test's own, one link each, and relays across it."""

import contextlib
import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
RELAY = Path(__file__).with_name("chaos_relay.py")


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


def possible():
    """Skip where namespaces cannot be made, but not in CI."""
    try:
        ip("netns", "add", f"certctl-{os.getpid()}-try")
        ip("netns", "del", f"certctl-{os.getpid()}-try")
    except (OSError, subprocess.CalledProcessError) as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no network namespace can be made: {exc}")
        pytest.skip(f"no network namespace can be made: {exc}")


def enter(namespace):
    """Move the calling thread; what it opens and starts from now on is there."""
    with namespace.open() as handle:
        if LIBC.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Network:
    """A namespace with a loopback of its own, and one link to the outside that can be cut."""

    def __init__(self, number):
        self.name = f"certctl-{os.getpid()}-{number}"
        self.outside = f"10.231.{number}.1"
        self._number = number
        self._inside = f"10.231.{number}.2"

    def __enter__(self):
        near, far = f"cc{self._number}a", f"cc{self._number}b"
        ip("netns", "add", self.name)
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
        ip("addr", "add", f"{self.outside}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", self.name, "addr", "add", f"{self._inside}/30", "dev", far)
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "link", "set", far, "up")
        return self

    def __exit__(self, *_):
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", f"cc{self._number}a")
        ip("netns", "del", self.name)

    def link(self, state):
        """Set the link ``up`` or ``down``, as seen from inside."""
        ip("-n", self.name, "link", "set", f"cc{self._number}b", state)

    @property
    def path(self):
        return Path("/run/netns") / self.name

    def inside(self, call):
        """Return what ``call`` does inside; processes that it starts stay there."""

        def there():
            enter(self.path)
            return call()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()


@contextlib.contextmanager
def relay(host, port, backends):
    """Pass connections on to one of ``backends``, by a process of the namespace that this is called in."""
    words = [sys.executable, str(RELAY), host, str(port), *backends]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
