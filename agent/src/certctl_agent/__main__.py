"""``python -m certctl_agent``."""

from certctl_agent.main import main

main()
