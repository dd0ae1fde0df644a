"""Who this agent is to the server: what enrolment left in ``agent.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from certctl_core.errors import MisconfiguredError

from certctl_agent import private


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The agent's id and its own credential."""

    id: str
    api_key: str = field(repr=False)
    server: str = ""
    """Empty: where the ``client.toml`` of this machine says."""
    ca_file: str = ""
    """Roots for the server's certificate; empty: those of the system."""
    config: str = ""
    """The ``agent.toml`` that was shown at enrolment."""


def path(state_dir: Path) -> Path:
    """Where the identity of an agent with this state directory lies."""
    return state_dir / "agent.json"


def load(state_dir: Path) -> Identity | None:
    """Return the identity, None before enrolment.

    Raises:
        MisconfiguredError: the file is not one that enrolment writes.
    """
    found = private.read_object(path(state_dir))
    if not found:
        return None
    try:
        return Identity(**{key: str(value) for key, value in found.items()})
    except TypeError as exc:
        raise MisconfiguredError(f"{path(state_dir)} is not what enrolment writes: {exc}") from exc


def save(state_dir: Path, identity: Identity) -> None:
    """Keep ``identity``, readable by us alone."""
    kept = {name: value for name in Identity.__slots__ if (value := getattr(identity, name))}
    private.write(path(state_dir), json.dumps(kept, indent=2) + "\n")
