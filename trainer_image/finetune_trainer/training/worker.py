"""One training process, started by `launch`: `python -m finetune_trainer.training.worker`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from finetune_api.results import ExitCode
from finetune_api.run import RUN_FILE_VARIABLE, TrainRun, run_adapter
from finetune_trainer.process.errors import as_stage_error
from finetune_trainer.process.launch import announce, die_with_parent, write_outcome
from finetune_trainer.process.logs import set_up_logging


def main() -> int:
    """Train; the exit status of this process. What happened is left for the launcher."""
    die_with_parent()
    set_up_logging()
    run = run_adapter.validate_json(Path(os.environ[RUN_FILE_VARIABLE]).read_bytes())
    assert isinstance(run, TrainRun)
    try:
        from finetune_trainer.training import train

        announce(environment=os.environ)
        result = train.work(run)
    except BaseException as error:
        failure = as_stage_error(error, writing="the run's output")
        write_outcome(environment=os.environ, outcome=failure.to_dict())
        stopped = failure.exit_code == ExitCode.STOPPED_AFTER_CHECKPOINT
        return int(ExitCode.DONE if stopped else failure.exit_code)  # torchrun would call a calm stop a failure
    write_outcome(environment=os.environ, outcome={"exit_code": 0, "result": result.to_dict()})
    return int(ExitCode.DONE)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may wait for peers that are gone
