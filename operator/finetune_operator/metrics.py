"""The Prometheus metrics of one operator process: its own, and those of each kind."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_operator.core.ports import Key
from finetune_operator.kinds import KINDS

ERRORS = ("Unavailable", "Conflict", "Refused", "Internal")

_SECOND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All metrics of one operator process, in `registry`."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._foreign: dict[Key, tuple[str, str]] = {}
        self.kinds = {row.kind: row.metrics(registry=registry) for row in KINDS}
        build = Gauge("finetune_build_info", "The running version.", ["version", "python"], registry=registry)
        build.labels(_version(), platform.python_version()).set(1)
        self.leader = Gauge("finetune_leader", "1 while this process leads.", registry=registry)
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_duration_seconds",
            "One look at one object.",
            ["kind"],
            buckets=_SECOND_BUCKETS,
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors_total", "Looks that ended early.", ["reason"], registry=registry
        )
        self.queue_depth = Gauge("finetune_workqueue_depth", "Objects that wait for a worker.", registry=registry)
        self.queue_oldest = Gauge(
            "finetune_workqueue_oldest_seconds", "How long the object that waits longest has.", registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "finetune_workqueue_wait_seconds", "From the event to a worker.", buckets=_SECOND_BUCKETS, registry=registry
        )
        self.queue_work_seconds = Histogram(
            "finetune_workqueue_work_seconds",
            "A worker's time on an object.",
            buckets=_SECOND_BUCKETS,
            registry=registry,
        )
        self.queue_retries = Counter("finetune_workqueue_retries_total", "Looks that are repeated.", registry=registry)
        self.foreign = Gauge(
            "finetune_foreign_instance_objects", "Objects met that are another operator's.", ["kind"], registry=registry
        )
        for reason in ERRORS:
            self.reconcile_errors.labels(reason)
        for kind in self.kinds:
            self.reconcile_seconds.labels(kind)
            self.foreign.labels(kind)

    def show_foreign(self, *, key: Key, found: tuple[str, str] | None) -> bool:
        """UID and instance of an object that is another operator's; None: it is not, or gone. Whether that is news."""
        before = self._foreign.pop(key, None)
        if found is not None:
            self._foreign[key] = found
        self.foreign.labels(key.kind).inc((found is not None) - (before is not None))
        return found != before

    def forget_all(self) -> None:
        """This process does not lead any more: what objects do is another's to show."""
        for metrics in self.kinds.values():
            metrics.forget_all()
        for key in list(self._foreign):
            self.show_foreign(key=key, found=None)
        self.queue_depth.set(0)
        self.queue_oldest.set_function(lambda: 0.0)

    # -- workqueue.QueueObserver ------------------------------------------------------------------------------------

    def depth(self, count: int) -> None:
        """Keys that wait for a worker now."""
        self.queue_depth.set(count)

    def waited(self, seconds: float) -> None:
        """A key was taken from the queue after this long."""
        self.queue_wait_seconds.observe(seconds)

    def worked(self, seconds: float) -> None:
        """A handler ended after this long."""
        self.queue_work_seconds.observe(seconds)

    def retried(self) -> None:
        """A handler raised, and its key will be tried again."""
        self.queue_retries.inc()


def _version() -> str:
    try:
        return version("finetune-operator")
    except PackageNotFoundError:
        return "unknown"
