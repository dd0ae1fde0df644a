"""Profiles and renewal policies: what certificates may be and when they are renewed."""
