"""Changes of objects, of processes and of what these report in files, as keys (ports.WatchSource)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.progress import MINIMUM_INTERVAL_SECONDS
from finetune_operator.core.ports import Enqueue, Key, Manifest
from finetune_operator.core.status_writing import key_of
from finetune_operator.kinds import FOLLOWED, RECONCILED, concerned, has_ended
from finetune_operator.local.home import LocalHome
from finetune_operator.local.observations import FileObservations
from finetune_operator.local.progress import FileProgress
from finetune_operator.local.store import ObjectStore

_POLL_SECONDS = 0.25
_OURS = (*RECONCILED, *FOLLOWED)
WorksOn = Callable[[Key], bool]
"""Whether an object is one that this process works on."""
_Mark = tuple[int, int]
"""Time and number of a file: another one after each write."""


class LocalWatchSource:
    """Tells of changes of the objects that `works_on` names."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        home: LocalHome,
        progress: FileProgress,
        observations: FileObservations,
        works_on: WorksOn,
        relist_seconds: float = 30.0,
    ) -> None:
        self._store = store
        self._home = home
        self._progress = progress
        self._observations = observations
        self._works_on = works_on
        self._relist_seconds = relist_seconds
        self._enqueue: Enqueue | None = None
        self._reported: dict[Key, tuple[float, float]] = {}
        self._marks: dict[Path, _Mark] = {}
        store.subscribe(self._written)

    async def run(self, *, enqueue: Enqueue) -> None:
        """Watch until cancelled."""
        self._enqueue = enqueue
        listed = float("-inf")
        try:
            while True:
                if time.monotonic() - listed >= self._relist_seconds:
                    listed = time.monotonic()
                    for kind in RECONCILED:
                        for each in self._store.find(kind=kind):
                            self._changed(each)
                self._look_at_objects()
                self._look_at_progress()
                self._look_at_observations()
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._enqueue = None

    def _written(self, manifest: Manifest) -> None:
        """This process has written or removed an object."""
        if manifest["kind"] in _OURS:
            metadata = manifest["metadata"]
            path = self._home.objects / manifest["kind"].lower() / metadata["namespace"] / f"{metadata['name']}.json"
            self._marks[path] = _mark(path)
        self._changed(manifest)

    def _changed(self, manifest: Manifest) -> None:
        key = concerned(manifest)
        if self._enqueue is not None and key is not None and self._works_on(key):
            self._enqueue(key)

    def _look_at_objects(self) -> None:
        """Tell of what other processes wrote: annotations, new jobs."""
        for kind in _OURS:
            for path in (self._home.objects / kind.lower()).glob("*/[!.]*.json"):
                mark = _mark(path)
                if self._marks.get(path) == mark:
                    continue
                self._marks[path] = mark
                manifest = self._store.read(kind=kind, namespace=path.parent.name, name=path.stem)
                if manifest is not None:
                    self._changed(manifest)

    def _look_at_progress(self) -> None:
        """Tell of newer reports, of each job as often as a cluster's pods would report."""
        for job in self._store.find(kind="FineTuneJob"):
            key = key_of(job)
            if has_ended(job) or not self._works_on(key):
                continue
            newest = max((_mark(path)[0] for path in self._progress.files(uid=job["metadata"]["uid"])), default=0)
            seen, told = self._reported.get(key, (0, float("-inf")))
            if newest > seen and time.monotonic() - told >= MINIMUM_INTERVAL_SECONDS:
                self._reported[key] = (newest, time.monotonic())
                self._changed(job)

    def _look_at_observations(self) -> None:
        """Tell of what gateways saw."""
        for endpoint in self._store.find(kind="ModelEndpoint"):
            key = key_of(endpoint)
            if not self._works_on(key):
                continue
            if self._observations.are_news(namespace=key.namespace, endpoint=key.name):
                self._changed(endpoint)


def _mark(path: Path) -> _Mark:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
