"""What gateway processes saw: each leaves its newest report in a file (ports.ObservationSource)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.observations import Observations
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY
from finetune_operator.job.names import ENDPOINT_LABEL
from finetune_operator.local.environment import pod_files
from finetune_operator.local.home import LocalHome
from finetune_operator.local.store import ObjectStore
from finetune_operator.ports import Manifest, Report

FILE = "observations.json"


class FileObservations:
    """The newest report of each gateway. A file's time is when its report came in."""

    def __init__(self, *, store: ObjectStore, home: LocalHome) -> None:
        self._store = store
        self._home = home

    def reports(self, *, namespace: str, endpoint: str) -> tuple[Report, ...]:
        """The newest report of each gateway process of an endpoint."""
        read = (_read(path) for path in self.files(namespace=namespace, endpoint=endpoint))
        return tuple(report for report in read if report is not None)

    def counts_matter(self, *, namespace: str, endpoint: str, matter: bool) -> None:
        """Files cost nothing to look at."""

    def forget(self, *, namespace: str, endpoint: str) -> None:
        """The files go with their pods."""

    def files(self, *, namespace: str, endpoint: str) -> list[Path]:
        """The reports of an endpoint's gateways, whether written yet or not."""
        labels = {ENDPOINT_LABEL: endpoint, COMPONENT_LABEL: GATEWAY}
        return [self._file(pod) for pod in self._store.find(kind="Pod", namespace=namespace, labels=labels)]

    def _file(self, pod: Manifest) -> Path:
        return pod_files(home=self._home, pod=pod, job_label=ENDPOINT_LABEL).folder / FILE


def _read(path: Path) -> Report | None:
    try:
        received = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        observations = Observations.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return Report(observations=observations, received=received)
