"""observe -> decide -> act -> one status write.

The only place where decisions meet the cluster. `decide` is pure and belongs to the kind (job/, later endpoint/); what
is here is the same for all kinds.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_operator.config import OperatorConfig
from finetune_operator.metrics import Metrics
from finetune_operator.ports import Clock, Cluster, Door, Key, ProgressSource
from finetune_operator.workqueue import WorkQueue


class Reconciler:
    """Brings one object at a time closer to what it should be."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        config: OperatorConfig,
        progress: ProgressSource,
        clock: Clock,
        metrics: Metrics,
        door: Callable[[], Door | None],
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._progress = progress
        self._clock = clock
        self._metrics = metrics
        self._door = door

    async def reconcile(self, key: Key) -> float | None:
        """Look at one object and do what it needs. Seconds until the next look, None where an event will tell.

        Raises the errors of the ports: the caller waits and tries again.
        """
        raise NotImplementedError


async def run_workers(*, queue: WorkQueue[Key], workers: int) -> None:
    """Work on the queue until cancelled."""
    await queue.run(workers=workers)
