"""What the server offers this agent: certificates to make keys for, and certificates to deploy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certctl_core.errors import RejectedError
from certctl_core.job import JobState
from certctl_sdk import tracing

from certctl_agent.csr import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One WorkItem of the API."""

    id: str
    type: str
    status: str
    certificate_id: str
    common_name: str = ""
    sans: tuple[str, ...] = ()
    target_id: str = ""
    target_type: str = ""
    target_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Credentials of the target may be in it."""
    expected_fingerprint: str = ""
    key_algorithm: str = ""
    key_size: int = 0
    traceparent: str = ""
    """The trace that the work belongs to, which reports about it name as well."""

    @property
    def wants_csr(self) -> bool:
        """Whether a key and a CSR are asked for; else the certificate is to be deployed."""
        return self.status == JobState.AWAITING_CSR

    @property
    def order(self) -> Order:
        """The key and names to ask for."""
        return Order(
            job_id=self.id,
            certificate_id=self.certificate_id,
            common_name=self.common_name,
            sans=self.sans,
            key_algorithm=self.key_algorithm or "ECDSA",
            key_size=self.key_size,
        )


def read(raw: Mapping[str, Any]) -> Item:
    """Return the item that the server sent.

    Raises:
        RejectedError: it lacks what every item has, or says it in the wrong type.
    """
    texts = {name: _text(raw, name) for name in _TEXTS}
    for name in ("id", "type", "status", "certificate_id"):
        if not texts[name]:
            raise RejectedError(f"the server offered work without {name}")
    sans, config, size = raw.get("sans") or [], raw.get("target_config") or {}, raw.get("key_size") or 0
    if not isinstance(sans, list) or not isinstance(config, dict) or not isinstance(size, int):
        raise RejectedError(
            f"the server offered job {texts['id']} with sans, target_config or key_size of a wrong type"
        )
    trace = tracing.read(_text(raw, tracing.HEADER))
    return Item(**texts, sans=tuple(map(str, sans)), target_config=config, key_size=size, traceparent=trace)


_TEXTS = (
    "id",
    "type",
    "status",
    "certificate_id",
    "common_name",
    "target_id",
    "target_type",
    "expected_fingerprint",
    "key_algorithm",
)


def _text(raw: Mapping[str, Any], name: str) -> str:
    found = raw.get(name)
    if found is not None and not isinstance(found, str):
        raise RejectedError(f"the server offered work whose {name} is not text")
    return found or ""
