"""The operator on the test cluster: the committed manifests with the images of this checkout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from tests.harness import Kubectl, Object, wait_until
from tests.harness.cluster import Cluster
from tests.harness.store import ROOT

SYSTEM = "finetune-system"


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

    def wait_for_leader(self, *, other_than: str = "", timeout_s: float = 40) -> str:
        """A leader, other than the one named."""
        return wait_until(
            lambda: self.leader() if self.leader() not in ("", other_than) else None,
            what=f"a leader other than {other_than!r}",
            timeout_s=timeout_s,
        )

    def is_led_by_a_staying_pod(self) -> bool:
        """Whether a pod leads that nobody has deleted."""
        staying = {pod["metadata"]["name"] for pod in self.pods() if "deletionTimestamp" not in pod["metadata"]}
        return self.leader().split("_")[0] in staying

    def pods(self) -> Sequence[Object]:
        """The operator's pods."""
        return self.kubectl.list("pods", namespace=SYSTEM, selector="app.kubernetes.io/component=operator")


def install(*, cluster: Cluster, trainer_image: str | None = None) -> InstalledOperator:
    """`kubectl apply -k manifests/default` with the images of this checkout, and wait until it is ready."""
    images = {
        "finetune-operator": cluster.images.operator,
        "finetune-trainer": trainer_image or cluster.images.trainer,
        "finetune-gateway": cluster.images.gateway,
    }
    objects: list[Any] = list(
        yaml.safe_load_all(cluster.kubectl.run("kustomize", str(ROOT / "manifests" / "default"), timeout_s=60))
    )
    for item in objects:
        if item["kind"] == "Deployment":
            _set_images(item, images)
    cluster.kubectl.apply(objects)
    cluster.kubectl.run(
        "rollout", "status", "deployment/finetune-operator", "-n", SYSTEM, "--timeout=120s", timeout_s=130
    )
    operator = InstalledOperator(cluster=cluster)
    # An old replica is no longer counted while it ends, but it may lead until then, with the old image.
    wait_until(operator.is_led_by_a_staying_pod, what="a leader of the new version", timeout_s=60)
    return operator


def _set_images(deployment: dict[str, Any], images: dict[str, str]) -> None:
    """What `kustomize edit set image` does, with references that have no registry."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["image"] = images["finetune-operator"]
    for variable in container["env"]:
        for name in ("trainer", "gateway"):
            if variable["name"] == f"FINETUNE_{name.upper()}_IMAGE":
                variable["value"] = images[f"finetune-{name}"]
