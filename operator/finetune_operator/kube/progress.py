"""What training pods reported last (ports.ProgressSource): a cache that may be lost at any time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from finetune_api.finetunejob import TrainerStatus
from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.ports import Clock, Enqueue, Key, Progress

_JOBS = 10_000
"""Jobs whose reports are kept; beyond that, the one that reported longest ago is forgotten."""


@dataclass(kw_only=True)
class _Pace:
    """When a job was looked at last because of a report, and the look that is due."""

    looked_at: float = float("-inf")
    due: asyncio.TimerHandle | None = field(default=None)


class ProgressInbox:
    """The newest report of each job, by the job's UID.

    A report puts its job on the queue, but no job more often than every MINIMUM_INTERVAL_SECONDS: reports in between
    replace each other, and the last one is looked at when the interval is over.
    """

    def __init__(self, *, enqueue: Enqueue, clock: Clock) -> None:
        self._enqueue = enqueue
        self._clock = clock
        self.listening_since = clock()
        self._latest: OrderedDict[str, Progress] = OrderedDict()
        self._paces: dict[str, _Pace] = {}

    def report(self, *, key: Key, uid: str, status: TrainerStatus) -> None:
        """Take a report in. Call from the event loop."""
        self._latest[uid] = Progress(status=status, received=self._clock())
        self._latest.move_to_end(uid)
        pace = self._paces.setdefault(uid, _Pace())
        if pace.due is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, pace.looked_at + MINIMUM_INTERVAL_SECONDS - loop.time())
            pace.due = loop.call_later(wait, self._look, key, pace)
        if len(self._latest) > _JOBS:
            self.forget(uid=next(iter(self._latest)))

    def latest(self, *, uid: str) -> Progress | None:
        """The newest report about a job, or None."""
        return self._latest.get(uid)

    def forget(self, *, uid: str) -> None:
        """Drop what was reported about a job so far."""
        self._latest.pop(uid, None)
        pace = self._paces.pop(uid, None)
        if pace is not None and pace.due is not None:
            pace.due.cancel()

    def _look(self, key: Key, pace: _Pace) -> None:
        pace.due = None
        pace.looked_at = asyncio.get_running_loop().time()
        self._enqueue(key)
