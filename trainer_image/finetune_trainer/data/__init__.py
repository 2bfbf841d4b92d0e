"""Rows: reading sources, what their fields mean, near-duplicates, splits, the snapshot."""
