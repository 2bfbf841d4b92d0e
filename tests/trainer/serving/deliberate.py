"""The trainer's command with a model that takes its time, so that tests can come in between two tokens.

The small models of the tests end a whole answer in the time that a client needs to hang up.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from finetune_trainer.__main__ import main
from finetune_trainer.serving.engine import Engine

STEP_SECONDS = 0.005


def install() -> None:
    """Each round takes so much longer."""
    run_round = Engine._round

    def deliberate(*work: Any) -> None:
        time.sleep(STEP_SECONDS)
        run_round(*work)

    Engine._round = staticmethod(deliberate)  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(main())
