"""Every benchmark, one after the other; options go to each. Ends with the worst of their exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("first", "engine", "totals", "audit", "api")


def main(arguments: list[str]) -> int:
    """Run them all, also when one misses a goal."""
    here = Path(__file__).parent
    return max(
        subprocess.run([sys.executable, here / f"{name}.py", *arguments], check=False).returncode for name in NAMES
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
