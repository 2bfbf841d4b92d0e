"""One training process, started by `launch`: `python -m finetune_trainer.worker`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from finetune_api.results import ExitCode
from finetune_api.run import RUN_FILE_VARIABLE, TrainRun, run_adapter
from finetune_trainer.errors import StageError, from_write_failure
from finetune_trainer.launch import announce, die_with_parent, write_outcome
from finetune_trainer.logs import set_up_logging


def main() -> int:
    """Train; the exit status of this process. What happened is left for the launcher."""
    die_with_parent()
    set_up_logging()
    run = run_adapter.validate_json(Path(os.environ[RUN_FILE_VARIABLE]).read_bytes())
    assert isinstance(run, TrainRun)
    try:
        from finetune_trainer import train

        announce(environment=os.environ)
        result = train.work(run)
    except Exception as error:
        failure = _as_stage_error(error)
        write_outcome(
            environment=os.environ,
            outcome={
                "exit_code": int(failure.exit_code),
                "reason": failure.reason,
                "message": failure.message,
                "checkpoint_step": failure.checkpoint_step,
            },
        )
        return int(failure.exit_code)
    write_outcome(environment=os.environ, outcome={"exit_code": 0, "result": result.to_dict()})
    return int(ExitCode.DONE)


def _as_stage_error(error: Exception) -> StageError:
    if isinstance(error, StageError):
        return error
    written = from_write_failure("the run's output", error)
    if written is not None:
        return written
    traceback.print_exception(error)
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return StageError(
        reason="OutOfMemory" if out_of_memory else "InternalError",
        message=f"{type(error).__name__}: {error}",
        exit_code=ExitCode.INTERNAL_ERROR,
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may wait for peers that are gone
