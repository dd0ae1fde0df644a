"""Rows that the environment makes: api.md 6 reserves their ids."""

from __future__ import annotations

import json
from datetime import datetime

from certctl_core.plugins import Plugins

from certctl_server import db
from certctl_server.connectors.config import seal, unseal
from certctl_server.notices.service import EVENTS
from certctl_server.sealing import Cipher, place
from certctl_server.settings import Settings

WEBHOOK = "nt-webhook"
STORED = db.Sql("SELECT config FROM notifier WHERE id = $1")
PUT = db.Sql(
    "INSERT INTO notifier (id, name, type, config, events, status, created_at, updated_at)"
    " VALUES ($1, $1, 'Webhook', $2, $3, 'ready', $4, $4)"
    " ON CONFLICT (id) DO UPDATE SET config = excluded.config, config_version = notifier.config_version + 1,"
    " updated_at = excluded.updated_at"
)


async def put_webhook(settings: Settings, plugins: Plugins, cipher: Cipher, now: datetime) -> None:
    """Have the notifier ``nt-webhook`` as CERTCTL_WEBHOOK_URL and _SECRET say; nothing if they say nothing."""
    url, secret = settings.webhook.url.get_secret_value(), settings.webhook.secret.get_secret_value()
    if not url:
        return
    wanted = {"url": url, **({"secret": secret} if secret else {})}
    where = place("notifier", WEBHOOK, "config")
    async with db.transaction():
        stored = await db.fetch(STORED, WEBHOOK)
        # What is sealed looks different each time: compare what it says, or every start would count as a change.
        if stored and unseal(json.loads(stored[0]["config"]), cipher, where) == wanted:
            return
        kind = plugins.notifiers.get("Webhook")
        sealed = seal(kind.Config if kind else None, wanted, cipher, where)
        await db.fetch(PUT, WEBHOOK, json.dumps(sealed), json.dumps(EVENTS), now)
