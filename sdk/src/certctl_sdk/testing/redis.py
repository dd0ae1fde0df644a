"""A private Redis on a free loopback port that keeps nothing on disk, gone when it is left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from types import TracebackType
from typing import Self

import pytest

SECONDS_TO_START = 10.0


class Redis:
    """One server, running while it is entered. It keeps its port over ``stop`` and ``start``, and forgets all else."""

    def __init__(self) -> None:
        self.port = 0
        """Where it listens on 127.0.0.1."""
        self._program = _program()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Let it run.

        Raises:
            RuntimeError: it does not answer.
        """
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(  # noqa: S603  # ours
            [self._program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def say(self, *words: str) -> bytes:
        """Return what it answers to a command, as it came over the wire."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as talk:
            parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            talk.sendall(f"*{len(words)}\r\n{parts}".encode())
            return talk.recv(65_536)

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return self.say("PING") == b"+PONG\r\n"
        except OSError:
            return False


def _program() -> str:
    """Find Redis; skip the test where it is missing, but not in CI."""
    if found := shutil.which("redis-server"):
        return found
    reason = "redis-server is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    return pytest.skip(reason)
