"""The container's entry point: `python -m finetune_trainer` does the one stage that $FINETUNE_RUN_FILE orders.

`serve` says that the order must be one to serve a version; `fetch` only verifies that version's files and links them
for another server. `--run-file` names the file instead of the variable.

It ends with an exit code of `finetune_api.results.ExitCode` and a termination message of at most 4 KiB, whatever
happens short of SIGKILL.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from finetune_api.results import EvaluateResult, ExitCode, Failure, PrepareResult, TrainResult
from finetune_api.run import (
    DEFAULT_TERMINATION_LOG,
    RUN_FILE_VARIABLE,
    TERMINATION_LOG_VARIABLE,
    EvaluateRun,
    PrepareRun,
    ServeOrder,
    TrainRun,
    run_adapter,
)
from finetune_trainer.process import termination
from finetune_trainer.process.cores import limit_threads
from finetune_trainer.process.errors import StageError, as_stage_error, bad_configuration
from finetune_trainer.process.logs import set_up_logging

if TYPE_CHECKING:
    from finetune_trainer.serving.process import Wrap

log = logging.getLogger("finetune_trainer")

_REASON_LENGTH = 64
_MESSAGE_LENGTH = 3000


class _Stopped(BaseException):
    """SIGTERM. Not an Exception, so that no library's error handling takes it for one of its own."""


class _Arguments(argparse.ArgumentParser):
    """Wrong arguments are a bad configuration like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise StageError (78)."""
        raise bad_configuration("BadArguments", f"{message}; {self.format_usage().strip()}")


def main(arguments: Sequence[str] | None = None, *, wrap: Wrap | None = None) -> int:
    """Do the stage; the process's exit code. `wrap`: see `finetune_trainer.serving.process.serve`."""
    set_up_logging()
    try:
        parser = _Arguments(prog="finetune_trainer", description="Do the one stage that a run file orders.")
        parser.add_argument("command", nargs="?", choices=("serve", "fetch"), help="what the order must be for")
        parser.add_argument("--run-file", help=f"the run file (default: ${RUN_FILE_VARIABLE})")
        options = parser.parse_args(arguments)
        run = _read_run(options.run_file or os.environ.get(RUN_FILE_VARIABLE))
        if isinstance(run, ServeOrder):
            _serve(run, only_fetch=options.command == "fetch", wrap=wrap)
            return int(ExitCode.DONE)
        if options.command is not None:
            raise bad_configuration("BadRunFile", f"the order is to {run.stage}, not to {options.command}")
        if not isinstance(run, TrainRun):
            # Train handles SIGTERM itself: all its processes agree on a step and save.
            _stop_on_sigterm()
        log.info(
            "%s, attempt %d of job %s/%s", run.stage, run.identity.attempt, run.identity.namespace, run.identity.job
        )
        result = _do(run)
        if result is not None:
            _write_message(termination.message(result))
    except BaseException as error:
        failure, code = _failure(error)
        log.error("%s (exit %d): %s", failure.reason, code, failure.message)
        _write_message(termination.message(failure))
        return int(code)
    return int(ExitCode.DONE)


def _serve(order: ServeOrder, *, only_fetch: bool, wrap: Wrap | None) -> None:
    limit_threads(os.environ)
    if only_fetch:
        _stop_on_sigterm()
        from finetune_trainer.serving import artifact
        from finetune_trainer.store.storage import Storage

        log.info("verified: %s", artifact.link_files(order, storage=Storage(locations=order.locations)))
        return
    # Until the server has its own handler. An exception would not do: torch, half imported, aborts on it.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(ExitCode.DONE))
    from finetune_trainer.serving import process

    process.serve(order, wrap=wrap or process.unchanged)


def _read_run(name: str | None) -> PrepareRun | TrainRun | EvaluateRun | ServeOrder:
    if not name:
        raise bad_configuration(
            "BadRunFile", f"${RUN_FILE_VARIABLE} is not set; it names the file with the run's orders"
        )
    try:
        return run_adapter.validate_json(Path(name).read_bytes())
    except OSError as error:
        raise bad_configuration("BadRunFile", f"{name} cannot be read: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise bad_configuration(
            "BadRunFile",
            f"{name} is not an order that this image understands ({problems}); use an image of the operator's version",
        ) from error


def _do(run: PrepareRun | TrainRun | EvaluateRun) -> PrepareResult | TrainResult | EvaluateResult | None:
    """Dispatch. The stages are imported when needed: each brings libraries that take seconds to load."""
    match run:
        case TrainRun():
            from finetune_trainer.process import launch

            return launch.train(run)
        case PrepareRun():
            limit_threads(os.environ)
            from finetune_trainer.preparation import prepare

            return prepare.prepare(run)
        case EvaluateRun():
            limit_threads(os.environ)
            from finetune_trainer.evaluation import evaluate

            return evaluate.evaluate(run)


def _stop_on_sigterm() -> None:
    # As process 1 of a container we would not even die of it: the kernel gives process 1 no default handlers.
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    signal.signal(signal.SIGTERM, stop)


def _failure(error: BaseException) -> tuple[Failure, ExitCode]:
    if isinstance(error, _Stopped):
        error = StageError(
            reason="Stopped",
            message="stopped by SIGTERM; the next attempt starts this stage again",
            exit_code=ExitCode.STOPPED_AFTER_CHECKPOINT,
        )
    found = as_stage_error(error, writing="the stage's output")
    # A file's name may be no valid text, and an error's words hold it.
    text = found.message[:_MESSAGE_LENGTH].encode(errors="backslashreplace").decode()[:_MESSAGE_LENGTH]
    failure = Failure(reason=found.reason[:_REASON_LENGTH], message=text, checkpoint_step=found.checkpoint_step)
    return failure, found.exit_code


def _write_message(message: bytes) -> None:
    path = Path(os.environ.get(TERMINATION_LOG_VARIABLE) or DEFAULT_TERMINATION_LOG)
    try:
        path.write_bytes(message)
    except OSError as error:
        # The exit code still says what kind of end it was.
        log.error("the termination message could not be written to %s: %s", path, error)


if __name__ == "__main__":
    sys.exit(main())
