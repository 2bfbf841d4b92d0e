"""Changes of objects, of processes and of progress files, as keys (ports.WatchSource)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from pathlib import Path

from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.job.names import JOB_LABEL
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.store import ObjectStore
from finetune_operator.ports import Enqueue, Key, Manifest

_POLL_SECONDS = 1.0


class LocalWatchSource:
    """Tells of some jobs' changes. `keys`: those it tells of; None: all."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        progress: FileProgress,
        keys: Collection[Key] | None = None,
        relist_seconds: float = 30.0,
    ) -> None:
        self._store = store
        self._progress = progress
        self._keys = keys
        self._relist_seconds = relist_seconds
        self._enqueue: Enqueue | None = None
        self._reported: dict[Key, tuple[float, float]] = {}
        store.subscribe(self._changed)

    async def run(self, *, enqueue: Enqueue) -> None:
        """Watch until cancelled."""
        self._enqueue = enqueue
        listed = float("-inf")
        try:
            while True:
                if time.monotonic() - listed >= self._relist_seconds:
                    listed = time.monotonic()
                    for job in self._store.find(kind="FineTuneJob"):
                        self._changed(job)
                self._look_at_progress()
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._enqueue = None

    def _changed(self, manifest: Manifest) -> None:
        key = key_of(manifest)
        if self._enqueue is not None and key is not None and (self._keys is None or key in self._keys):
            self._enqueue(key)

    def _look_at_progress(self) -> None:
        """Tell of newer reports, of each job as often as a cluster's pods would report."""
        for job in self._store.find(kind="FineTuneJob"):
            key = key_of(job)
            if key is None:
                continue
            newest = max((_modified(path) for path in self._progress.files(uid=job["metadata"]["uid"])), default=0.0)
            seen, told = self._reported.get(key, (0.0, float("-inf")))
            if newest > seen and time.monotonic() - told >= MINIMUM_INTERVAL_SECONDS:
                self._reported[key] = (newest, time.monotonic())
                self._changed(job)


def key_of(manifest: Manifest) -> Key | None:
    """The job that a changed object concerns, None where it concerns none."""
    metadata = manifest["metadata"]
    name = metadata["name"] if manifest["kind"] == "FineTuneJob" else (metadata.get("labels") or {}).get(JOB_LABEL)
    return Key(kind="FineTuneJob", namespace=metadata["namespace"], name=name) if name else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
