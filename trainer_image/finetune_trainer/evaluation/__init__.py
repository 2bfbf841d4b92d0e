"""Candidate and baseline on the same examples: the comparison with what is in production, and the report."""
