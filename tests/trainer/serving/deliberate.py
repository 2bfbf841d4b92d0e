"""The trainer's command with a model that takes its time, so that tests can come in between two tokens.

The small models of the tests end a whole answer in the time that a client needs to hang up.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from finetune_trainer.__main__ import main
from finetune_trainer.serving.engine import Ticket

STEP_SECONDS = 0.005


def install() -> None:
    """Each step of each answer takes so much longer."""
    step = Ticket.step

    def deliberate(ticket: Ticket[Any]) -> bool:
        time.sleep(STEP_SECONDS)
        return step(ticket)

    Ticket.step = deliberate  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(main())
