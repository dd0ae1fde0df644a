"""Which networks are scanned, and how."""

from piccolo.columns import BigInt, Boolean, Text, Timestamptz

from certctl_server.resource import Resource


class NetworkScanTarget(Resource):
    """Networks, the ports that are tried in them, and what the last scan found. ``cidrs`` and ``ports`` are JSON."""

    cidrs = Text(default="[]")
    ports = Text(default="[443]")
    enabled = Boolean(default=True)
    scan_interval_hours = BigInt(default=6)
    timeout_ms = BigInt(default=5000)
    last_scan_at = Timestamptz(null=True, default=None)
    last_scan_duration_ms = BigInt(null=True, default=None)
    last_scan_certs_found = BigInt(null=True, default=None)
