"""The operator on the test cluster: the committed manifests with the images of this checkout."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from tests.chart.helm import CHART, EARLIER, RELEASE
from tests.cluster import containers
from tests.harness import Kubectl, Object, wait_until
from tests.harness.cluster import Cluster
from tests.harness.store import ROOT
from tests.patience import HANGS_S

SYSTEM = "finetune-system"
_MODULE = b"finetune_operator"


@dataclass(frozen=True, kw_only=True)
class InstalledOperator:
    """The operator of a cluster."""

    cluster: Cluster

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as an administrator."""
        return self.cluster.kubectl

    def leader(self) -> str:
        """The pod that leads now."""
        lease = self.kubectl.get("lease", "finetune-operator", namespace=SYSTEM)
        return str(lease["spec"].get("holderIdentity") or "")

    def wait_for_leader(self, *, other_than: str = "", timeout_s: float = HANGS_S) -> str:
        """A leader, other than the one named."""
        return wait_until(
            lambda: self.leader() if self.leader() not in ("", other_than) else None,
            what=f"a leader other than {other_than!r}",
            timeout_s=timeout_s,
        )

    def is_led_by_a_staying_pod(self) -> bool:
        """Whether a pod leads that nobody has deleted."""
        return any("deletionTimestamp" not in pod["metadata"] for pod in self.pods_of(self.leader()))

    def pods(self) -> Sequence[Object]:
        """The operator's pods."""
        return self.kubectl.list("pods", namespace=SYSTEM, selector="app.kubernetes.io/component=operator")

    def pods_of(self, leader: str) -> Sequence[Object]:
        """The pod of the Lease's holder; none where it is gone."""
        name = leader.split("_")[0]
        return [pod for pod in self.pods() if pod["metadata"]["name"] == name]

    def kill_leader(self) -> str:
        """kill -9 of the process that leads; whoever led."""
        leader = self.leader()
        uids = [pod["metadata"]["uid"] for pod in self.pods_of(leader)]
        pids = containers.processes(pod_uids=uids, module=_MODULE)
        assert pids, f"{leader} leads and does not run"
        containers.kill(pids)
        return leader

    def scale(self, replicas: int) -> None:
        """Another number of replicas; at 0, wait until all are gone."""
        self.kubectl.run("scale", "deployment/finetune-operator", "-n", SYSTEM, f"--replicas={replicas}")
        if replicas == 0:
            wait_until(lambda: not self.pods(), what="the end of all replicas")

    def upgrade(self, *, tag: str) -> None:
        """What a newer version changes: the pods' template, and the images of all that it would start from now on."""
        deployment = self.kubectl.get("deployment", "finetune-operator", namespace=SYSTEM)
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        variables = [
            {"name": each["name"], "value": f"{each['value']}-{tag}"}
            for each in container["env"]
            if each["name"].endswith("_IMAGE")
        ]
        template = {
            "metadata": {"annotations": {"finetune.dev/version": tag}},
            "spec": {"containers": [{"name": container["name"], "env": variables}]},
        }
        self.kubectl.run(
            "patch", "deployment", "finetune-operator", "-n", SYSTEM, "-p", json.dumps({"spec": {"template": template}})
        )
        wait_rolled_out(self)

    @contextmanager
    def killed_in(self, phase: str, *, kind: str, name: str, namespace: str) -> Iterator[list[int]]:
        """All replicas are killed the moment an object says that it is in `phase`; gives the pids that were, later."""
        uids = [pod["metadata"]["uid"] for pod in self.pods()]
        arguments = ["get", kind, name, "-n", namespace, "--watch", "-o", "jsonpath={.status.phase}{'\\n'}"]
        watch = subprocess.Popen(
            [*self.kubectl.prefix(), str(self.kubectl.program), f"--kubeconfig={self.kubectl.kubeconfig}", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        killed: list[int] = []

        def look() -> None:
            for line in watch.stdout or ():
                if line.strip() == phase and not killed:
                    killed.extend(containers.processes(pod_uids=uids, module=_MODULE))
                    containers.kill(killed)

        thread = threading.Thread(target=look, name="executioner", daemon=True)
        thread.start()
        try:
            yield killed
        finally:
            watch.terminate()
            watch.wait(timeout=HANGS_S)
            thread.join(timeout=HANGS_S)


def install(*, cluster: Cluster, trainer_image: str | None = None) -> InstalledOperator:
    """`kubectl apply -k manifests/default` with the images of this checkout, and wait until it is ready."""
    images = {
        "finetune-operator": cluster.images.operator,
        "finetune-trainer": trainer_image or cluster.images.trainer,
        "finetune-gateway": cluster.images.gateway,
    }
    objects: list[Any] = list(
        yaml.safe_load_all(cluster.kubectl.run("kustomize", str(ROOT / "manifests" / "default"), timeout_s=HANGS_S))
    )
    for item in objects:
        if item["kind"] == "Deployment":
            _set_images(item, images)
    cluster.kubectl.apply(objects)
    operator = InstalledOperator(cluster=cluster)
    wait_rolled_out(operator)
    return operator


def release(*, operator: InstalledOperator) -> None:
    """By Helm in place of the manifests: an earlier chart, which takes over what is there, then this checkout's."""
    images = operator.cluster.images
    references = {"image": images.operator, "trainerImage": images.trainer, "gatewayImage": images.gateway}
    values = [
        f"--set={key}.repository={repository},{key}.tag={tag}"
        for key, (repository, _, tag) in ((key, each.rpartition(":")) for key, each in references.items())
    ]
    where = [f"--namespace={SYSTEM}", *values]
    operator.cluster.run_inside(["helm", "install", RELEASE, str(EARLIER), "--take-ownership", *where])
    wait_rolled_out(operator)
    operator.cluster.run_inside(["helm", "upgrade", RELEASE, str(CHART), *where])
    wait_rolled_out(operator)


def uninstall_release(*, operator: InstalledOperator) -> None:
    """`helm uninstall`, and wait until its pods are gone."""
    operator.cluster.run_inside(["helm", "uninstall", RELEASE, f"--namespace={SYSTEM}"])
    wait_until(lambda: not operator.pods(), what="the end of all replicas")


def wait_rolled_out(operator: InstalledOperator) -> None:
    """Wait until all replicas are of the newest template and one of them leads."""
    operator.kubectl.run(
        "rollout",
        "status",
        "deployment/finetune-operator",
        "-n",
        SYSTEM,
        f"--timeout={HANGS_S}s",
        timeout_s=HANGS_S + 10,
    )
    # An old replica is no longer counted while it ends, but it may lead until then, with the old image.
    wait_until(operator.is_led_by_a_staying_pod, what="a leader of the new version")


def _set_images(deployment: dict[str, Any], images: dict[str, str]) -> None:
    """What `kustomize edit set image` does, with references that have no registry."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["image"] = images["finetune-operator"]
    for variable in container["env"]:
        for name in ("trainer", "gateway"):
            if variable["name"] == f"FINETUNE_{name.upper()}_IMAGE":
                variable["value"] = images[f"finetune-{name}"]
