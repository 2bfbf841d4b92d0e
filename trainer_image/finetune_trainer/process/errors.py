"""How a stage says that it cannot go on: a reason, a message for a person, an exit code for the operator."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Any

from finetune_api.panics import as_exception
from finetune_api.results import ExitCode

log = logging.getLogger(__name__)
# What the kernel says when a write cannot succeed by trying again at once.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class StageError(Exception):
    """The stage ends here.

    `reason` is CamelCase, for a condition. `message` names the thing, the reason and the way out. `checkpoint_step` is
    where the next attempt goes on, where there is a checkpoint; `diverged_at` the step of LossNotFinite.
    """

    def __init__(
        self,
        *,
        reason: str,
        message: str,
        exit_code: ExitCode,
        checkpoint_step: int | None = None,
        diverged_at: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code
        self.checkpoint_step = checkpoint_step
        self.diverged_at = diverged_at

    def to_dict(self) -> dict[str, Any]:
        """For another process, JSON-ready."""
        return {**vars(self), "exit_code": int(self.exit_code)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> StageError:
        """What `to_dict` said."""
        return cls(**{**document, "exit_code": ExitCode(document["exit_code"])})


def as_stage_error(caught: BaseException, *, writing: str) -> StageError:
    """Whatever ended a stage, in its words. `writing` is what it would have written, for a full disk.

    What nobody foresaw goes into the log with its traceback. Raises what `as_exception` does.
    """
    error = as_exception(caught)
    if isinstance(error, StageError):
        return error
    if (failure := from_write_failure(writing, error)) is not None:
        return failure
    log.error("the stage failed", exc_info=error)
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return StageError(
        reason="OutOfMemory" if out_of_memory else "InternalError",
        message=f"{type(error).__name__}: {error}",
        exit_code=ExitCode.INTERNAL_ERROR,
    )


def bad_data(reason: str, message: str) -> StageError:
    """The examples cannot be used (exit 65)."""
    return StageError(reason=reason, message=message, exit_code=ExitCode.BAD_DATA)


def not_found(message: str, *, reason: str = "InputNotFound") -> StageError:
    """Something that the run names is not there, or may not be read (exit 66)."""
    return StageError(reason=reason, message=message, exit_code=ExitCode.INPUT_NOT_FOUND)


def bad_configuration(reason: str, message: str) -> StageError:
    """The run asks for what cannot be done (exit 78)."""
    return StageError(reason=reason, message=message, exit_code=ExitCode.BAD_CONFIGURATION)


def not_finite(what: str, *, step: int) -> StageError:
    """Training diverged (exit 70). `what` says of what it is seen."""
    return StageError(
        reason="LossNotFinite",
        message=f"the {what} at step {step}; lower training.learningRate or check the data",
        exit_code=ExitCode.INTERNAL_ERROR,
        diverged_at=step,
    )


def from_write_failure(what: str, error: BaseException) -> StageError | None:
    """A full disk or a missing permission as the error of exit code 73; None when `error` is something else.

    Libraries with native code (safetensors, Arrow) hand the system's words on as text, so the text is read as well.
    """
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        detail = error.strerror or str(error)
    elif "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
        detail = str(error)
    else:
        return None
    return StageError(
        reason="CannotWrite",
        message=f"{what} could not be written: {detail}; free space or correct the permissions of the artifact store",
        exit_code=ExitCode.CANNOT_WRITE,
    )
