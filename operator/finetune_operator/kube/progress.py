"""What training pods reported last: a cache that may be lost at any time, since reports are cumulative."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from finetune_api.finetunejob import TrainerStatus
from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.ports import Enqueue, Key

_JOBS = 20_000


@dataclass(kw_only=True)
class _Entry:
    status: TrainerStatus
    enqueued_at: float = float("-inf")
    timer: asyncio.TimerHandle | None = field(default=None)


class ProgressInbox:
    """The newest report of each job, by the job's UID.

    A report puts its job on the queue, but no job more often than every MINIMUM_INTERVAL_SECONDS: reports in between
    replace each other, and the last one is looked at when the interval is over.
    """

    def __init__(self, *, enqueue: Enqueue) -> None:
        self._enqueue = enqueue
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def report(self, *, key: Key, uid: str, status: TrainerStatus) -> None:
        """Take a report in. Call from the event loop."""
        entry = self._entries.setdefault(uid, _Entry(status=status))
        entry.status = status
        self._entries.move_to_end(uid)
        if len(self._entries) > _JOBS:
            self._discard(next(iter(self._entries)))
        if entry.timer is None:
            loop = asyncio.get_running_loop()
            wait = max(0.0, entry.enqueued_at + MINIMUM_INTERVAL_SECONDS - loop.time())
            entry.timer = loop.call_later(wait, self._look, key, entry)

    def latest(self, *, uid: str) -> TrainerStatus | None:
        """The newest report of a job, or None where none has come to this process."""
        entry = self._entries.get(uid)
        return entry.status if entry else None

    def forget(self, *, uid: str) -> None:
        """The job has ended: its reports are no longer of interest."""
        if uid in self._entries:
            self._discard(uid)

    def _look(self, key: Key, entry: _Entry) -> None:
        entry.timer = None
        entry.enqueued_at = asyncio.get_running_loop().time()
        self._enqueue(key)

    def _discard(self, uid: str) -> None:
        entry = self._entries.pop(uid)
        if entry.timer is not None:
            entry.timer.cancel()
