"""Kubeflow Trainer v2 with JobSet, built from source, on the control plane of the benchmark.

Both run as processes with the administrator's kubeconfig. JobSet's webhooks (it relies on their defaults) are called
at their port on loopback. Trainer's validating webhook is registered, as its start needs, but called for no namespace:
that is in the peer's favour.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from tests.harness import ApiServer, Object, wait_until
from tests.harness.processes import Daemon
from tests.harness.tools import program

JOBSET_PORT = 19443
TRAINER_PORT = 19444
_NAMESPACE = "kubeflow-system"
_SECRET = "kubeflow-trainer-webhook-cert"
_MODULES = Path("tests/tools/kubeflow-trainer")
# Where Trainer waits for kubelet to mount its Secret; the path is fixed in its code.
_MOUNTED_SECRET = Path("/tmp/k8s-webhook-server/serving-certs")
RUNTIME = "torch-distributed"


def train_job(*, name: str, namespace: str) -> Object:
    """A TrainJob of two pods."""
    trainer = {"image": "localhost/none", "command": ["true"], "numNodes": 2, "numProcPerNode": 1}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"runtimeRef": {"name": RUNTIME}, "trainer": trainer},
    }


@contextmanager
def running_kubeflow_trainer(apiserver: ApiServer) -> Iterator[str]:
    """Start both controllers; gives their versions."""
    trainer, jobset = _source("github.com/kubeflow/trainer/v2"), _source("sigs.k8s.io/jobset")
    apiserver.kubectl.run("apply", "--server-side", "-f", str(jobset / "config/components/crd/bases"))
    apiserver.kubectl.run("apply", "--server-side", "-k", str(trainer / "manifests/base/crds"))
    apiserver.kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    daemons = [_jobset(apiserver=apiserver, source=jobset), _trainer(apiserver)]
    try:
        apiserver.kubectl.run(
            "apply", "--server-side", "-f", str(trainer / "manifests/base/runtimes/torch_distributed.yaml")
        )
        yield f"kubeflow/trainer {_version(trainer)}, jobset {_version(jobset)}"
    finally:
        for daemon in daemons:
            daemon.stop()
        shutil.rmtree(_MOUNTED_SECRET, ignore_errors=True)


def _jobset(*, apiserver: ApiServer, source: Path) -> Daemon:
    folder = apiserver.folder / "jobset"
    certificates = folder / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    files = apiserver.authority.server(name="jobset-webhook", alternatives=["localhost", "127.0.0.1"])
    for path, name in zip(files, ("tls.crt", "tls.key"), strict=True):
        shutil.copy(path, certificates / name)
    configuration = {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"port": JOBSET_PORT},
        "health": {"healthProbeBindAddress": "127.0.0.1:0"},
        "metrics": {"bindAddress": "0"},
    }
    (folder / "config.yaml").write_text(json.dumps(configuration))
    daemon = Daemon(
        name="jobset",
        command=[program("jobset"), f"--config={folder / 'config.yaml'}"],
        folder=apiserver.folder,
        environment={"KUBECONFIG": str(apiserver.kubeconfig), "TMPDIR": str(folder)},
    )
    daemon.start()
    _wait_for_log(daemon, "Starting workers")
    authority = base64.b64encode(apiserver.authority.certificate.read_bytes()).decode()
    for manifest in yaml.safe_load_all((source / "config/components/webhook/manifests.yaml").read_text()):
        if manifest:
            apiserver.kubectl.apply(_on_loopback(manifest, authority=authority))
    return daemon


def _on_loopback(manifest: Object, *, authority: str) -> Object:
    """The webhooks as JobSet's own kustomization has them, with a URL in place of the Service."""
    for webhook in manifest["webhooks"]:
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {"url": f"https://localhost:{JOBSET_PORT}{path}", "caBundle": authority}
        if path.endswith("-pod"):
            ours = {"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}
            webhook["objectSelector"] = {"matchExpressions": [ours]}
    manifest["metadata"]["name"] = f"jobset-{manifest['metadata']['name']}"
    return manifest


def _trainer(apiserver: ApiServer) -> Daemon:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": _SECRET, "namespace": _NAMESPACE}}
    nowhere = {"matchLabels": {"bench.finetune.dev/nowhere": "true"}}
    webhook = {
        "name": "validator.trainjob.trainer.kubeflow.org",
        "clientConfig": {"url": f"https://localhost:{TRAINER_PORT}/validate-trainer-kubeflow-org-v1alpha1-trainjob"},
        "namespaceSelector": nowhere,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "rules": [
            {
                "apiGroups": ["trainer.kubeflow.org"],
                "apiVersions": ["v1alpha1"],
                "operations": ["CREATE"],
                "resources": ["trainjobs"],
            }
        ],
    }
    registration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "validator.trainer.kubeflow.org"},
        "webhooks": [webhook],
    }
    apiserver.kubectl.create([secret, registration])
    daemon = Daemon(
        name="kubeflow-trainer",
        command=[
            program("kubeflow-trainer"),
            f"--webhook-server-port={TRAINER_PORT}",
            "--health-probe-bind-address=127.0.0.1:0",
        ],
        folder=apiserver.folder,
        environment={"KUBECONFIG": str(apiserver.kubeconfig)},
    )
    daemon.start()
    found = apiserver.kubectl.wait_for(
        "secret", _SECRET, lambda each: "tls.key" in each.get("data", {}), namespace=_NAMESPACE, what="Trainer's keys"
    )
    _MOUNTED_SECRET.mkdir(parents=True, exist_ok=True)
    for name, content in found["data"].items():
        (_MOUNTED_SECRET / name).write_bytes(base64.b64decode(content))
    _wait_for_log(daemon, "Starting workers", timeout_s=120)
    return daemon


def _wait_for_log(daemon: Daemon, words: str, *, timeout_s: float = 60) -> None:
    def probe() -> bool:
        daemon.require_alive()
        return words in daemon.log.read_text()

    wait_until(probe, what=f"{words!r} in the log of {daemon.name}", timeout_s=timeout_s, explain=daemon.log_tail)


def _source(module: str) -> Path:
    _go("mod", "download", module)  # a module that nothing was built of has no folder yet
    return Path(_go("list", "-m", "-f", "{{.Dir}}", module))


def _version(source: Path) -> str:
    return source.name.rpartition("@")[2]


def _go(*arguments: str) -> str:
    run = subprocess.run(["go", *arguments], cwd=_MODULES, capture_output=True, text=True, timeout=300, check=True)
    return run.stdout.strip()
