"""What is kept for connector instances."""

from piccolo.columns import BigInt, Boolean, Text, Timestamptz, Varchar
from piccolo.table import Table

from certctl_server.resource import Resource


class Configured(Resource):
    """A row that a connector is made from. ``config`` is JSON as clients sent it, its secrets sealed."""

    type = Varchar(length=64, default="")
    config = Text(default="{}")
    config_version = BigInt(default=1)
    config_warnings = Text(default="[]")
    enabled = Boolean(default=True)
    status = Varchar(length=16, default="")


class ConnectorMemory(Table):
    """``host.store``: values that an instance keeps, sealed. The real key is (connector_id, name)."""

    connector_id = Varchar(length=128, primary_key=True)
    name = Varchar(length=128)
    value = Text()


class Tested(Configured):
    """A configured row of the server's own connectors, which can be tested by a call."""

    last_tested_at = Timestamptz(null=True, default=None)
