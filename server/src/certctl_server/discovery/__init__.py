"""Certificates that nobody told us about."""
