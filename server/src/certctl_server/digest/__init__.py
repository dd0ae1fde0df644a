"""A letter that says how the installation is."""
