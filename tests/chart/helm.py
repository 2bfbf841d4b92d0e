"""Helm for tests: values in, objects out, Helm's words in the exception."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from tests.harness import HarnessError, Object
from tests.harness.store import ROOT
from tests.patience import HANGS_S

CHART = ROOT / "charts" / "finetune-operator"
EARLIER = ROOT / "tests" / "data" / "recorded" / "chart_2026-11-30.tgz"
"""Of before there was a release."""
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
"""Values that go far from the defaults, each in its way."""
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
OLDEST_KUBERNETES = "1.30.0"
"""What charts are rendered for without a cluster: the oldest version that the chart names."""
Values = Mapping[str, Any] | Path


class HelmError(HarnessError):
    """Helm ended with an error; `stderr` holds its words."""

    def __init__(self, *, command: Sequence[str], stderr: str) -> None:
        super().__init__(f"helm {' '.join(command)}: {stderr.strip()}")
        self.stderr = stderr


@dataclass(frozen=True, kw_only=True)
class Helm:
    """One of the two Helms, with a home of its own: nothing of this machine's settings has an effect."""

    program: Path
    major: int
    """3 or 4."""
    home: Path
    kubeconfig: Path | None = None
    """The cluster that releases go to; None: there is none, and only rendering works."""

    def on(self, kubeconfig: Path) -> Helm:
        """The same for a cluster."""
        return replace(self, kubeconfig=kubeconfig)

    def lint(self, *values: Values) -> None:
        """`helm lint --strict`: raises `HelmError` for warnings too."""
        self._run("lint", str(CHART), "--strict", f"--kube-version={OLDEST_KUBERNETES}", values=values)

    def objects(self, *values: Values, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
        """What the chart renders to."""
        options = [f"--namespace={namespace}", f"--kube-version={OLDEST_KUBERNETES}"]
        text = self._run("template", release, str(CHART), *options, values=values)
        return [item for item in yaml.load_all(text, Loader=_OneKeyOnceLoader) if item is not None]

    def install(
        self, *values: Values, release: str = RELEASE, namespace: str, chart: Path = CHART, options: Sequence[str] = ()
    ) -> str:
        """Install a release, without waiting for its pods; returns the notes."""
        return self._run("install", release, str(chart), f"--namespace={namespace}", *options, values=values)

    def upgrade(self, *values: Values, release: str = RELEASE, namespace: str, chart: Path = CHART) -> None:
        """Upgrade a release."""
        self._run("upgrade", release, str(chart), f"--namespace={namespace}", values=values)

    def uninstall(self, *, release: str = RELEASE, namespace: str) -> None:
        """Remove a release. Without controllers nobody would end a deletion in the foreground."""
        self._run("uninstall", release, f"--namespace={namespace}", "--cascade=background")

    def _run(self, *arguments: str, values: Sequence[Values] = ()) -> str:
        with TemporaryDirectory() as folder:
            files = [f"--values={_file(Path(folder), number, item)}" for number, item in enumerate(values)]
            result = subprocess.run(
                [self.program, *arguments, *files],
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=HANGS_S,
                check=False,
            )
        if result.returncode != 0:
            raise HelmError(command=arguments, stderr=result.stderr + result.stdout)
        return result.stdout

    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), **({"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {})}


def _file(folder: Path, number: int, values: Values) -> Path:
    if isinstance(values, Path):
        return values
    path = folder / f"{number}.yaml"
    path.write_text(json.dumps(values))
    return path


class _OneKeyOnceLoader(yaml.SafeLoader):
    """Refuses a key that comes twice, which Helm lets pass and an apiserver's strict validation does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} given twice{node.start_mark}")
        return super().construct_mapping(node, deep=deep)
