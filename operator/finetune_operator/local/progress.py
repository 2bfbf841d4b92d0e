"""Progress of training processes: each leaves its newest report in a file (ports.ProgressSource)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from finetune_api.progress import ProgressReport
from finetune_operator.core.names import JOB_UID_LABEL
from finetune_operator.core.ports import Clock, Progress
from finetune_operator.local.environment import pod_files
from finetune_operator.local.files import read_report
from finetune_operator.local.home import LocalHome
from finetune_operator.local.store import ObjectStore


class FileProgress:
    """The newest report of each job. A file's time is when its report came in."""

    def __init__(self, *, store: ObjectStore, home: LocalHome, clock: Clock) -> None:
        self._store = store
        self._home = home
        self._since = clock()
        self._clock = clock
        self._forgotten: dict[str, datetime] = {}

    @property
    def listening_since(self) -> datetime:
        """Files are read from the beginning of this process on."""
        return self._since

    def latest(self, *, uid: str) -> Progress | None:
        """The newest report about a job that was not forgotten."""
        read = [each for path in self.files(uid=uid) if (each := read_report(path, ProgressReport)) is not None]
        reports = [Progress(status=report.trainer_status, received=received) for report, received in read]
        newest = max(reports, key=lambda report: report.received, default=None)
        forgotten = self._forgotten.get(uid)
        return None if newest is None or (forgotten and newest.received <= forgotten) else newest

    def forget(self, *, uid: str) -> None:
        """Ignore what was reported until now."""
        self._forgotten[uid] = self._clock()

    def files(self, *, uid: str) -> list[Path]:
        """The reports of the job's pods, whether written yet or not."""
        pods = self._store.find(kind="Pod", labels={JOB_UID_LABEL: uid})
        return [pod_files(home=self._home, pod=pod).progress for pod in pods]
