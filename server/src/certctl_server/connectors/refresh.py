"""At start: what the stored rows are worth with the connectors that are installed now."""

from __future__ import annotations

import logging

from certctl_server.connectors.service import refresh
from certctl_server.context import Context
from certctl_server.issuers.service import ISSUERS
from certctl_server.notices.service import NOTIFIERS
from certctl_server.targets.service import TARGETS

log = logging.getLogger(__name__)


async def refresh_all(ctx: Context) -> int:
    """Bring status and warnings of all configured rows up to date; return how many changed.

    A row whose connector was installed, removed or exchanged meanwhile is another row than it was.
    """
    changed = {family.name: await refresh(family, ctx) for family in (ISSUERS, TARGETS, NOTIFIERS)}
    if total := sum(changed.values()):
        log.info("connectors changed since the last start", extra={"rows": changed})
    return total
