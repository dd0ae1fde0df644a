"""Networks in which certificates are looked for."""
