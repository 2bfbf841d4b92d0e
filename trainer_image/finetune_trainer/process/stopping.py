"""SIGTERM: remember it, finish the step, and let all processes save together."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from finetune_api.results import ExitCode

log = logging.getLogger(__name__)
GRACE_VARIABLE = "FINETUNE_TERMINATION_GRACE_SECONDS"
_DEFAULT_GRACE_SECONDS = 120.0
_RESERVE_SECONDS = 5.0


class StopSignal:
    """Whether this process was asked to stop. Further signals change nothing."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        """SIGTERM came."""
        return self._asked.is_set()

    def listen(self) -> None:
        """From now on SIGTERM is remembered instead of obeyed. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            return
        self._asked.set()
        grace = float(os.environ.get(GRACE_VARIABLE, _DEFAULT_GRACE_SECONDS))
        # What hangs (a peer that is gone, a stuck disk) must not outlive the grace period: a later SIGKILL would leave
        # no word about why.
        timer = threading.Timer(max(1.0, grace - _RESERVE_SECONDS), _give_up)
        timer.daemon = True
        timer.start()


def _give_up() -> None:
    log.error("not stopped within the grace period; leaving without a further checkpoint")
    os._exit(int(ExitCode.STOPPED_AFTER_CHECKPOINT))
