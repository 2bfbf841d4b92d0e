"""The Go programs that the tests run, built from source by the modules in `tests/tools`.

Nothing is downloaded as a binary: `go build` fetches sources through the machine's module proxy and checks them against
the committed `go.sum`. A build is kept in the cache under a hash of the module's files, the flags and Go's version.
`source_folder` gives a module's sources themselves.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache as cache_result
from pathlib import Path

from tests.harness.errors import HarnessError, MissingPrerequisite
from tests.harness.store import ROOT, cache, digest, locked
from tests.patience import HANGS_S

KUBERNETES_VERSION = "1.36.3"
_BUILD_TIMEOUT_S = 3600
_KUBERNETES_VERSION_FLAGS = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {
        "gitVersion": f"v{KUBERNETES_VERSION}",
        "gitMajor": KUBERNETES_VERSION.split(".")[0],
        "gitMinor": KUBERNETES_VERSION.split(".")[1],
        "gitTreeState": "clean",
    }.items()
)


@dataclass(frozen=True, kw_only=True)
class ToolModule:
    """A folder under `tests/tools` with a go.mod, and the programs built from it."""

    name: str
    programs: dict[str, str]
    """Program name to Go package."""
    linker_flags: str = ""
    tags: str = ""

    @property
    def folder(self) -> Path:
        return ROOT / "tests" / "tools" / self.name

    @property
    def flags(self) -> list[str]:
        return [
            *("-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"),
            *("-ldflags", f"-s -w {self.linker_flags}".strip()),
            *([f"-tags={self.tags}"] if self.tags else []),
        ]

    def built(self, *, go_version: str | None) -> Path:
        """The folder for its programs. Without Go, any earlier build of the same sources does."""
        sources = sorted([self.folder / "go.mod", self.folder / "go.sum", *self.folder.rglob("*.go")])
        prefix = f"{self.name}-{digest(texts=self.flags, paths=sources)}"
        programs = cache() / "bin"
        if go_version is None:
            earlier = sorted(programs.glob(f"{prefix}-*"))
            if earlier:
                return earlier[-1]
        return programs / f"{prefix}-{go_version or 'none'}"


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
MODULES = (
    ToolModule(
        name="kubernetes",
        programs={name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        linker_flags=_KUBERNETES_VERSION_FLAGS,
    ),
    ToolModule(name="etcd", programs={"etcd": "go.etcd.io/etcd/server/v3"}),
    ToolModule(
        name="clients",  # one module: they share Kubernetes' client library, which is most of what is compiled
        programs={
            "helm": "helm.sh/helm/v3/cmd/helm",
            "helm4": "helm.sh/helm/v4/cmd/helm",
            "coredns": "./coredns",
            "kwok": "sigs.k8s.io/kwok/cmd/kwok",
            "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
        },
    ),
    ToolModule(name="versitygw", programs={"versitygw": "."}),
    ToolModule(name="gitops", programs={"gitops-judge": "."}),
    ToolModule(
        name="prometheus",
        programs={name: f"github.com/prometheus/prometheus/cmd/{name}" for name in ("prometheus", "promtool")},
        tags="remove_all_sd",  # without the clouds' libraries, most of what would be compiled; targets come in a file
    ),
    ToolModule(
        name="kubeflow-trainer",
        programs={
            "kubeflow-trainer": "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
            "jobset": "sigs.k8s.io/jobset",
        },
    ),
)
TRAINER_PROGRAMS = ("versitygw",)
"""The object store that runs read and write."""
API_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
"""What an apiserver-only environment needs."""
API_TEST_PROGRAMS = (*API_PROGRAMS, "gitops-judge")
"""And what its tests ask of other things."""
CHART_PROGRAMS = (*API_PROGRAMS, "helm", "helm4", "promtool")
"""What the tests of the chart need: Helm 3 and Helm 4, which install differently, and what checks rules."""
LOCAL_PROGRAMS = ("prometheus",)
"""What scrapes real runs and answers the queries of dashboards and alerts."""
CLUSTER_PROGRAMS = (*API_PROGRAMS, "kube-scheduler", "kubelet", "kube-proxy", "coredns", "helm")


def program(name: str) -> Path:
    """The program `name`, built first when the cache does not hold it (minutes for Kubernetes, printed as it goes).

    Raises `MissingPrerequisite` without Go, `HarnessError` with the compiler's words when the build fails.
    """
    module = _module_of(name)
    path = module.built(go_version=go_version()) / name
    if path.exists():
        return path
    with locked(f"tools-{module.name}"):
        if not path.exists():
            _build(module, name, path)
    return path


def programs(names: Iterable[str]) -> dict[str, Path]:
    """`program` of each."""
    return {name: program(name) for name in names}


def source_folder(name: str, *, module: str) -> Path:
    """The sources of `module`, which `tests/tools/<name>/go.mod` pins, as Go unpacked them: read-only.

    Raises `MissingPrerequisite` without Go, `HarnessError` with Go's words when it cannot fetch them.
    """
    if go_version() is None:
        raise MissingPrerequisite(f"Go is missing, which fetches {module}: install Go (golang.org/dl, or golang-go)")
    folder = ToolModule(name=name, programs={}).folder
    for command in (["go", "mod", "download", module], ["go", "list", "-m", "-f", "{{.Dir}}", module]):
        run = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "GOWORK": "off"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if run.returncode != 0:
            raise HarnessError(f"{' '.join(command)} in {folder} failed:\n{_last_lines(run.stderr)}")
    return Path(run.stdout.strip())


def is_built(name: str) -> bool:
    """Whether `program(name)` returns at once."""
    return (_module_of(name).built(go_version=go_version()) / name).exists()


@cache_result
def go_version() -> str | None:
    """Such as `go1.26.8`; None when there is no Go."""
    if shutil.which("go") is None:
        return None
    run = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, timeout=HANGS_S, check=False)
    return run.stdout.strip() or None


def _module_of(name: str) -> ToolModule:
    for module in MODULES:
        if name in module.programs:
            return module
    raise HarnessError(f"no tool module builds {name!r}; add it to tests/harness/tools.py")


def _build(module: ToolModule, name: str, path: Path) -> None:
    if go_version() is None:
        raise MissingPrerequisite(
            f"Go is missing and {name} is not in the cache: install Go (golang.org/dl, or golang-go)"
        )
    print(
        f"building {name} from {module.programs[name]} (once; minutes for Kubernetes) ...", file=sys.stderr, flush=True
    )
    began = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{name}.{os.getpid()}")
    run = subprocess.run(
        ["go", "build", "-p", str(os.cpu_count() or 1), *module.flags, "-o", unfinished, module.programs[name]],
        cwd=module.folder,
        # A fifth of the compiler's time goes to collecting garbage in memory that machines have.
        env={"GOGC": "400", **os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if run.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise HarnessError(f"go build of {name} in {module.folder} failed:\n{_last_lines(run.stderr)}")
    unfinished.replace(path)
    print(f"built {name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _last_lines(text: str) -> str:
    return "\n".join(re.sub(r"https?://\S+", "<address>", text).splitlines()[-20:])


def stale() -> list[Path]:
    """Builds in the cache that no module file asks for any more."""
    wanted = {module.built(go_version=go_version()) for module in MODULES}
    folder = cache() / "bin"
    return sorted(set(folder.iterdir()) - wanted) if folder.exists() else []
