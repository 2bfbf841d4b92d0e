"""What gateway processes saw: each leaves its newest report in a file (ports.ObservationSource)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.observations import Observations
from finetune_operator.core.names import ENDPOINT_LABEL
from finetune_operator.core.ports import Report
from finetune_operator.endpoint.names import COMPONENT_LABEL, GATEWAY
from finetune_operator.local.environment import pod_files
from finetune_operator.local.files import read_report
from finetune_operator.local.home import LocalHome
from finetune_operator.local.listening import OBSERVATIONS_FILE
from finetune_operator.local.store import ObjectStore


class FileObservations:
    """The newest report of each gateway. A file's time is when its report came in."""

    def __init__(self, *, store: ObjectStore, home: LocalHome) -> None:
        self._store = store
        self._home = home
        self._quiet: set[tuple[str, str]] = set()
        self._seen: dict[tuple[str, str], list[Any]] = {}

    def reports(self, *, namespace: str, endpoint: str) -> tuple[Report, ...]:
        """The newest report of each gateway process of an endpoint."""
        read = (read_report(path, Observations) for path in self.files(namespace=namespace, endpoint=endpoint))
        return tuple(Report(observations=each[0], received=each[1]) for each in read if each is not None)

    def counts_matter(self, *, namespace: str, endpoint: str, matter: bool) -> None:
        """Whether counts alone are worth a look: while something is under analysis."""
        (self._quiet.discard if matter else self._quiet.add)((namespace, endpoint))

    def forget(self, *, namespace: str, endpoint: str) -> None:
        """The files go with their pods."""
        self._seen.pop((namespace, endpoint), None)
        self._quiet.discard((namespace, endpoint))

    def are_news(self, *, namespace: str, endpoint: str) -> bool:
        """Whether the reports say anything worth a look that they did not say when this was asked the last time."""
        key = namespace, endpoint
        now = [
            _worth_a_look(report.observations, counts=key not in self._quiet)
            for report in self.reports(namespace=namespace, endpoint=endpoint)
        ]
        before, self._seen[key] = self._seen.get(key, []), now
        return now != before

    def files(self, *, namespace: str, endpoint: str) -> list[Path]:
        """The reports of an endpoint's gateways, whether written yet or not."""
        labels = {ENDPOINT_LABEL: endpoint, COMPONENT_LABEL: GATEWAY}
        pods = self._store.find(kind="Pod", namespace=namespace, labels=labels)
        return [pod_files(home=self._home, pod=pod).folder / OBSERVATIONS_FILE for pod in pods]


def _worth_a_look(report: Observations, *, counts: bool) -> list[Any]:
    urgent = [report.boot_id, report.acknowledged_epoch, len(report.breakers), sorted(report.draining)]
    return [*urgent, report.arms, report.pairs, report.shadow] if counts else urgent
