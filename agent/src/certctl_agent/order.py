"""Step 5 of docs/main-flow.md: a key for the job, safely on the disk, and only then the CSR for it."""

from __future__ import annotations

import logging

from certctl_core.errors import ConnectorError, TransientError
from certctl_sdk import tracing

from certctl_agent.api import AgentApi, Refused
from certctl_agent.keys import KeyRing
from certctl_agent.reports import insist, passes, told
from certctl_agent.threads import in_thread
from certctl_agent.work import Item

log = logging.getLogger(__name__)
OURS_TO_TELL = frozenset({401, 403, 410})
"""Answers that concern the agent and not the job: whoever polls deals with them."""


async def order(item: Item, api: AgentApi, keys: KeyRing) -> None:
    """Send the CSR of ``item``; the same item again sends the same one.

    Raises:
        TransientError: the server did not answer; it offers the item again.
        Refused: it does not know us.
    """
    try:
        csr_pem = await in_thread(lambda: keys.csr(item.order))
        await api.send_csr(item.certificate_id, csr_pem)
    except Refused as exc:
        if exc.status in OURS_TO_TELL:
            raise
        log.warning("csr refused", extra={"job": item.id, "certificate": item.certificate_id, "said": exc.said})
        await _fail(item, api, f"CSR rejected: {exc.said}", "transient" if passes(exc) else "rejected")
    except TransientError:
        raise
    except (ConnectorError, OSError) as exc:
        log.warning("no csr made", extra={"job": item.id, "certificate": item.certificate_id, "error": str(exc)})
        error, kind = told(exc)
        await _fail(item, api, f"no CSR could be made: {error}", "transient" if isinstance(exc, OSError) else kind)
    else:
        log.info("csr sent", extra={"job": item.id, "certificate": item.certificate_id})


async def _fail(item: Item, api: AgentApi, error: str, kind: str) -> None:
    tracing.fail(kind, error)
    await insist(lambda: api.report(item.id, "Failed", error=error, error_kind=kind))
