"""The certctl agent."""
