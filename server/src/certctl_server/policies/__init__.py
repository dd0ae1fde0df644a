"""Policies: rules that certificates are held against, and where they break them."""
