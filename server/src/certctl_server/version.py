"""Which build answers."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib.metadata import distribution
from typing import TypedDict

from litestar import get
from litestar.types import ControllerRouterHandler

from certctl_server.auth.roles import OPEN

DISTRIBUTION = "certctl-server"


class Build(TypedDict):
    """Which build answers; what is not known of it is empty."""

    version: str
    commit: str
    modified: bool
    build_time: str
    go_version: str
    """Empty; the original's clients look for it."""
    python_version: str


@get("/api/v1/version", opt={"roles": OPEN})
async def version() -> Build:
    """Return which build this is; what is not known of it is empty."""
    return build()


@cache
def build() -> Build:
    """Return the version, and the commit if it was installed from a repository (PEP 610)."""
    installed = distribution(DISTRIBUTION)
    source = json.loads(installed.read_text("direct_url.json") or "{}")
    return {
        "version": installed.version,
        "commit": source.get("vcs_info", {}).get("commit_id", ""),
        "modified": bool(source.get("dir_info", {}).get("editable")),
        "build_time": "",
        "go_version": "",
        "python_version": platform.python_version(),
    }


routes: list[ControllerRouterHandler] = [version]
