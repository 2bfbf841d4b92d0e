"""How commands end."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of `finetune`. Jobs end with the first, second and fourth."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REJECTED = 3
    INTERRUPTED = 130
    """Ctrl-C, as shells know it: 128 + SIGINT."""


EXIT_STATUS_OF_PHASE = {
    "Succeeded": ExitStatus.DONE,
    "Failed": ExitStatus.FAILED,
    "Superseded": ExitStatus.FAILED,
    "Rejected": ExitStatus.REJECTED,
    "RolledBack": ExitStatus.REJECTED,
}


class CommandError(Exception):
    """The command cannot do what it was asked. `str()` names the thing, the reason and the way out."""

    def __init__(self, message: str, *, status: ExitStatus = ExitStatus.BAD_INPUT) -> None:
        super().__init__(message)
        self.status = status
