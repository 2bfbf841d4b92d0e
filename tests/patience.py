"""Limits end what hangs, not what is slow."""

HANGS_S = 800
"""What has not ended after so many seconds never will: on a machine with many times its load it takes less. Shorter
than a test may take (`timeout` in pyproject.toml), so that what is waited for can be named."""

JOB_HANGS_S = 1500
"""The same of a job on the test cluster, several stages long."""
