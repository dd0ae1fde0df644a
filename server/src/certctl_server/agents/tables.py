"""The daemons on the machines."""

from piccolo.columns import BigInt, Text, Timestamptz, Varchar

from certctl_server.resource import Resource


class Agent(Resource):
    """One daemon. ``capabilities`` is a JSON list, NULL for an agent that sends none."""

    hostname = Varchar(length=255, default="")
    status = Varchar(length=16, default="")
    last_heartbeat_at = Timestamptz(null=True, default=None)
    registered_at = Timestamptz()
    os = Varchar(length=64, default="")
    architecture = Varchar(length=64, default="")
    ip_address = Varchar(length=64, default="")
    version = Varchar(length=64, default="")
    capabilities = Text(null=True, default=None)
    clock_offset_ms = BigInt(null=True, default=None)
    boot_id = Varchar(length=128, default="")
    retired_at = Timestamptz(null=True, default=None)
    retired_reason = Varchar(length=255, default="")
