"""Load by wrk: https://github.com/wg/wrk, a Debian package."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the API; ``path`` is what follows ``/api/v1/``."""

    path: str
    method: str = "GET"
    key: str = ""
    """Whose; empty: whoever asks for all that have none."""
    body: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a load."""

    answers: int
    rate: float
    """Answers a second."""
    p99_ms: float


def find() -> str:
    """Return where wrk is; raise FileNotFoundError if it is not installed."""
    if found := shutil.which("wrk"):
        return found
    raise FileNotFoundError("wrk is not installed")


def load(urls: Sequence[str], key: str, asked: Iterable[Asked], *, connections: int, seconds: int) -> Load:
    """Ask these over and over, from all connections at once, which are shared by the servers at ``urls``.

    Raises:
        RuntimeError: something was not answered, or not with success.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.writelines(f"{each.method}\t/api/v1/{each.path}\t{each.key or key}\t{each.body}\n" for each in asked)
        file.flush()
        options = ["-t1", f"-c{connections // len(urls)}", f"-d{seconds}", "-s", str(SCRIPT)]
        options.append(f"--timeout={PATIENCE_SECONDS:.0f}s")
        processes = [
            subprocess.Popen(
                [find(), *options, url, "--", file.name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            for url in urls
        ]
        told = [json.loads(process.communicate(timeout=seconds + PATIENCE_SECONDS)[1]) for process in processes]
    if broken := sum(each["broken"] for each in told):
        raise RuntimeError(f"{broken} requests failed")
    rate = sum(each["answers"] / each["seconds"] for each in told)
    return Load(sum(each["answers"] for each in told), rate, max(each["p99_ms"] for each in told))
