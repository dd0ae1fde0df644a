"""Channels to people, and what was sent through them."""

from piccolo.columns import BigInt, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.connectors.tables import Tested


class Notifier(Tested):
    """One configured channel. ``events`` is a JSON list of notification types."""

    events = Text(default="[]")


class Notification(Table):
    """One message through one channel; ``occurrence`` names what it is about, once per channel."""

    id = Varchar(length=128, primary_key=True)
    type = Varchar(length=32)
    certificate_id = Varchar(length=128, null=True, default=None)
    notifier_id = Varchar(length=128, null=True, default=None)
    channel = Varchar(length=32, default="")
    recipient = Varchar(length=255, default="")
    subject = Text(default="")
    message = Text(default="")
    severity = Varchar(length=16, default="")
    incident = Varchar(length=255, default="")
    occurrence = Varchar(length=255)
    status = Varchar(length=16)
    error = Text(default="")
    retry_count = BigInt(default=0)
    next_retry_at = Timestamptz(null=True, default=None)
    sent_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz()
