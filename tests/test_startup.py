"""Help is there at once: what it does not need is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("asyncpg", "cryptography", "httpx", "litestar", "piccolo", "pydantic", "rich")
SHOW_AND_TELL = """
import sys
from certctl_sdk.cli import main
sys.argv[1:] = {arguments!r}
try:
    main(prog_name="certctl")
finally:
    print(*sorted({{name.partition(".")[0] for name in sys.modules}}), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["version", "--help"]], ids=["all commands", "one command"])
def test_help_imports_neither_server_nor_http_nor_cryptography(arguments):
    program = SHOW_AND_TELL.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: certctl" in done.stdout
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)
