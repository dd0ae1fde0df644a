"""Remember which files are being replaced, so that a crash in the middle is put right at the next start.

How to go back lies beside the files themselves (``certctl_sdk.generations``); here stands only where to look,
and the command that makes the service read them again. No secret of a target's options is kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from certctl_core.config import ConnectorConfig
from certctl_core.errors import ConnectorError
from certctl_core.run import Allowed
from certctl_sdk.commands import named
from certctl_sdk.commands import run as run_command
from certctl_sdk.files import recover_files

from certctl_agent import private
from certctl_agent.work import Item

log = logging.getLogger(__name__)

FILE_NAMES = ("_file", "_filename")


class Unfinished:
    """The deployments under way, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = private.read_object(path)

    @contextlib.asynccontextmanager
    async def deployment(self, item: Item, config: ConnectorConfig) -> AsyncIterator[None]:
        """Note the deployment meanwhile; it stays noted if it could not go back."""
        paths = list(map(str, _candidates(config)))
        self._found[item.id] = {"paths": paths, "reload": str(getattr(config, "reload_command", None) or "")}
        self._write()
        try:
            yield
        except BaseException as exc:
            if not getattr(exc, "__notes__", None):
                self._end(item.id)
            raise
        self._end(item.id)

    async def recover(self, allowed: Allowed) -> None:
        """Put back what a crash cut short. What cannot be put back now is told, and tried at the next start."""
        for job_id, noted in list(self._found.items()):
            try:
                for path in map(Path, noted["paths"]):
                    if await recover_files([path], allowed, reload=partial(_reload, noted["reload"], allowed)):
                        log.warning("deployment cut short was taken back", extra={"job": job_id, "path": str(path)})
            except ConnectorError as exc:
                log.error("deployment cut short cannot be taken back", extra={"job": job_id, "error": str(exc)})
            else:
                self._end(job_id)

    def _end(self, job_id: str) -> None:
        self._found.pop(job_id, None)
        self._write()

    def _write(self) -> None:
        private.write(self._path, json.dumps(self._found))


async def _reload(command: str, allowed: Allowed) -> None:
    if command:
        await run_command(named(command, allowed), step="reload")


def _candidates(config: ConnectorConfig) -> Iterator[Path]:
    """The paths that may be the first of a deployment: those in the options, and file names in their directories."""
    options = dict(config)
    paths = [value for value in options.values() if isinstance(value, Path)]
    files = [value for name, value in options.items() if isinstance(value, str) and name.endswith(FILE_NAMES)]
    yield from (path for path in paths if path.is_absolute())
    yield from (path / file for path in paths for file in files if path.is_absolute() and "/" not in file)
