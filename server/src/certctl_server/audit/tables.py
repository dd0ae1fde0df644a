"""The audit trail: rows that the database refuses to change or delete."""

from piccolo.columns import BigInt, BigSerial, Text, Timestamptz, Varchar
from piccolo.table import Table


class AuditEvent(Table):
    """One thing that was done. ``details`` is JSON text; the last three are NULL until the row is sealed."""

    number = BigSerial(primary_key=True)
    id = Varchar(length=128)
    timestamp = Timestamptz()
    actor = Varchar(length=255, default="")
    actor_type = Varchar(length=16, default="")
    action = Varchar(length=64, default="")
    resource_type = Varchar(length=64, default="")
    resource_id = Varchar(length=255, default="")
    details = Text(default="{}")
    request_id = Varchar(length=64, default="")
    sequence = BigInt(null=True, default=None)
    previous_hash = Varchar(length=64, null=True, default=None)
    hash = Varchar(length=64, null=True, default=None)


class AuditCheckpoint(Table):
    """A signature over the chain up to ``sequence``."""

    sequence = BigInt(primary_key=True)
    hash = Varchar(length=64)
    signature = Text()
    created_at = Timestamptz()


class AuditArchive(Table):
    """Rows that left for a file. ``trailer`` is that file's last line's, signed."""

    last_sequence = BigInt(primary_key=True)
    first_sequence = BigInt()
    hash = Varchar(length=64)
    trailer = Text()
    file = Text()
    created_at = Timestamptz()
