"""What a cluster looked like when a test failed: objects, events and logs as files."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.operator_install import SYSTEM
from tests.harness.cluster import Cluster
from tests.harness.errors import HarnessError
from tests.patience import HANGS_S

_OURS = "finetunejobs,modelversions,modelendpoints"
_THEIRS = "jobs,endpointslices,configmaps,leases,persistentvolumeclaims"


def collect(*, cluster: Cluster, namespace: str | None, folder: Path) -> None:
    """Write it to a folder; what cannot be had is said in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    namespaces = SYSTEM if namespace is None else f"{namespace},{SYSTEM}"
    dump = ("cluster-info", "dump", f"--namespaces={namespaces}", f"--output-directory={folder}", "-o", "yaml")
    _keep(cluster, *dump, to=folder / "dump.txt")
    where = ("--all-namespaces",) if namespace is None else ("-n", namespace)
    _keep(cluster, "get", f"{_OURS},{_THEIRS}", *where, "-o", "yaml", to=folder / "objects.yaml")
    _keep(cluster, "describe", _OURS, *where, to=folder / "described.txt")


def _keep(cluster: Cluster, *arguments: str, to: Path) -> None:
    try:
        text = cluster.kubectl.run(*arguments, timeout_s=HANGS_S)
    except HarnessError as error:
        text = str(error)
    to.write_text(text)
