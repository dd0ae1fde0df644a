"""The places that serve certificates."""
