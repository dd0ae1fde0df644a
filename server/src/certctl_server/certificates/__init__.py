"""What this is all about."""
