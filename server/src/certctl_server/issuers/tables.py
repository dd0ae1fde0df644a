"""The CAs that sign."""

from piccolo.columns import Text

from certctl_server.connectors.tables import Tested


class Issuer(Tested):
    """One configured CA. ``limits`` is JSON."""

    limits = Text(null=True, default=None)
