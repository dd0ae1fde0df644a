"""The CAs that sign."""
