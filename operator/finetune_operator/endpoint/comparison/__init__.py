"""A new version against the one in production, on held-out data, before any traffic."""
