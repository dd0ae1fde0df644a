"""Where a job stands in its lane: smaller goes first, and each is a range of its own in the index of due jobs."""

FREE = -1
"""Takes no room in the issuer's budget: an order that is under way at the CA, or a revocation."""
URGENT = 0
"""A person waits for it, or the certificate has come so close to its end that its policy warns of it."""
NORMAL = 5
"""The routine."""
LEVELS = (FREE, URGENT, NORMAL)
