"""What is wanted, written down in YAML: read, compared with what a server has, and brought about through its API."""
