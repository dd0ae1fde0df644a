"""The daemons on the machines, their work and their reports."""
