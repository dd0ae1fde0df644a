"""``python -m certctl_agent``."""

from certctl_agent.cli import cli

cli()
