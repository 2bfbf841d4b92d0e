"""What holds for the tests of all layers."""

from __future__ import annotations


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their parameter: a test's name must be the same in each process that collects it, and what
    makes bytes may put the time into them (gzip)."""
    return argname if isinstance(val, bytes) else None
