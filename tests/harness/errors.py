"""What the harness raises. Every message names the thing, the reason and the way out."""

from __future__ import annotations


class HarnessError(Exception):
    """Something of the test environment did not work."""


class MissingPrerequisite(HarnessError):
    """This machine lacks something that cannot be installed from here; layers that need it are skipped, saying so."""


class Timeout(HarnessError):
    """A bounded wait ended without the thing that was waited for."""
