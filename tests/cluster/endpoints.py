"""Endpoints of the cluster tests, and versions that a claim holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import assets
from safetensors.torch import load_file, save_file
from tests.cluster import containers
from tests.cluster.jobs import give_to_pods, merged
from tests.harness import Kubectl, Object
from tests.harness.cluster import Cluster
from tests.patience import HANGS_S

from finetune_api.run import Locations
from finetune_trainer.store.storage import Storage

ENDPOINT = "assistant"
_CLAIM = "models"
_WEIGHTS = "model.safetensors"
_LAYERS = 4


@dataclass(kw_only=True)
class EndpointSpace:
    """A namespace with a claim that holds models, and an endpoint in it."""

    cluster: Cluster
    namespace: str
    folder: Path
    """What the claim shows, on this machine."""

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as an administrator."""
        return self.cluster.kubectl

    def endpoint(self) -> Object:
        """The ModelEndpoint."""
        return self.kubectl.get("modelendpoint", ENDPOINT, namespace=self.namespace)

    def status(self) -> dict[str, Any]:
        """Its status."""
        return dict(self.endpoint().get("status") or {})

    def wait(self, condition: Callable[[dict[str, Any]], object], *, what: str, timeout_s: float = HANGS_S) -> Object:
        """Wait for a status."""
        return self.kubectl.wait_for(
            "modelendpoint",
            ENDPOINT,
            lambda found: condition(found.get("status") or {}),
            namespace=self.namespace,
            timeout_s=timeout_s,
            what=what,
        )

    def offer(self, name: str, *, baseline: str, damaged: bool = False) -> str:
        """A ModelVersion that passed its evaluation against the version with digest `baseline`; its UID. `damaged`: a
        byte of it has changed since."""
        manifest = self.version(name, baseline=baseline)
        if damaged:
            weights = self.folder / "versions" / name / _WEIGHTS
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        self.kubectl.create(manifest, namespace=self.namespace)
        return str(self.kubectl.get("modelversion", name, namespace=self.namespace)["metadata"]["uid"])

    def version(self, name: str, *, baseline: str) -> dict[str, Any]:
        """The first layers of SmolLM2-135M-Instruct, in a folder of its own: a version like any other."""
        uri = f"pvc://{_CLAIM}/versions/{name}"
        digest, size = publish(folder=self.folder / "versions" / name)
        digest_of_base = f"sha256:{'b' * 64}"
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ModelVersion",
            "metadata": {"name": name, "labels": {"finetune.dev/endpoint": ENDPOINT}},
            "spec": {
                "endpointRef": {"name": ENDPOINT},
                "artifact": {"uri": uri, "digest": digest, "format": "Full", "sizeBytes": size},
                "base": {"uri": uri, "digest": digest_of_base, "licence": "apache-2.0"},
                "task": "Chat",
                "method": {"type": "Full"},
                "training": {},
                "data": {"digest": f"sha256:{'d' * 64}", "rows": {"train": 1, "validation": 1, "test": 1}},
                "baseline": {"name": "Base", "digest": baseline or digest_of_base},
                "evaluation": {"verdict": "Pass", "results": []},
                "lineage": {"job": {"name": name, "uid": f"job-{name}"}},
            },
        }

    def annotate(self, **annotations: str) -> None:
        """kubectl annotate, in the administrator's own name."""
        me = self.kubectl.run("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").strip()
        pairs = [f"finetune.dev/{key}={value}" for key, value in {**annotations, "requested-by": me}.items()]
        self.kubectl.run("annotate", "modelendpoint", ENDPOINT, "-n", self.namespace, "--overwrite", *pairs)

    def pods(self, component: str, *, version: str = "") -> list[Object]:
        """Pods of the gateway or of servers."""
        selector = f"finetune.dev/endpoint={ENDPOINT},finetune.dev/component={component}"
        if version:
            selector += f",finetune.dev/version={version}"
        return list(self.kubectl.list("pods", namespace=self.namespace, selector=selector))

    def processes(self, version: str) -> list[int]:
        """The server processes of a version, as the host sees them."""
        uids = {pod["metadata"]["uid"] for pod in self.pods("server", version=version)}
        return containers.processes(pod_uids=uids, module=b"finetune_trainer")

    def kill_gateway(self) -> str:
        """kill -9 of one gateway; its pod's name."""
        pod = self.pods("gateway")[0]
        pids = containers.processes(pod_uids=[pod["metadata"]["uid"]], module=b"finetune_gateway")
        assert pids, "no gateway runs in its pod"
        containers.kill(pids)
        return str(pod["metadata"]["name"])

    def routes(self) -> dict[str, Any]:
        """What gateways are told."""
        found = self.kubectl.get("configmap", f"{ENDPOINT}-routes", namespace=self.namespace)
        return dict(json.loads(found["data"]["routes.json"]))


def prepare(*, cluster: Cluster, namespace: str) -> EndpointSpace:
    """A claim for models."""
    folder = cluster.volume(_CLAIM, namespace=namespace)
    return EndpointSpace(cluster=cluster, namespace=namespace, folder=folder)


def publish(*, folder: Path) -> tuple[str, int]:
    """A model with its COMPLETE manifest; digest and size.

    SmolLM2-135M-Instruct with the first of its layers only: what it says does not matter here, and two busy cores that
    run all else too answer in time.
    """
    storage = Storage(
        locations=Locations(run=f"file://{folder.parent}", cache=f"file://{folder.parent}", allowed_roots=[])
    )
    with storage.staging_folder(f"file://{folder}") as staging:
        for path in assets.smollm2_folder().iterdir():
            if path.is_file() and path.name not in ("COMPLETE", "config.json", _WEIGHTS):
                shutil.copy(path, staging / path.name)
        config = json.loads((assets.smollm2_folder() / "config.json").read_text())
        (staging / "config.json").write_text(json.dumps({**config, "num_hidden_layers": _LAYERS}))
        weights = load_file(assets.smollm2_folder() / _WEIGHTS)
        left_out = tuple(f"model.layers.{layer}." for layer in range(_LAYERS, config["num_hidden_layers"]))
        kept = {name: weight for name, weight in weights.items() if not name.startswith(left_out)}
        save_file(kept, staging / _WEIGHTS, metadata={"format": "pt"})
        complete = storage.publish(staging, to=f"file://{folder}", input_digest="sha256:test", extra={})
    give_to_pods(folder.parent)
    return complete.digest, complete.size_bytes


def manifest(**rollout: Any) -> dict[str, Any]:
    """A ModelEndpoint with a short rollout on CPUs."""
    short: dict[str, Any] = {
        "shadow": {"percent": 100, "minSamples": 10, "maxDurationSeconds": 900, "timeoutSeconds": 20},
        "steps": [
            {"name": "quarter", "percent": 25, "minSamples": 6},
            {"name": "half", "percent": 50, "minSamples": 10},
        ],
        "guard": {"durationSeconds": 900},
        "approval": "Manual",
        "metrics": [
            {"name": "error_rate", "maxRegression": 0.2},
            {"name": "latency_seconds", "limit": 6.0, "maxRegression": 0.3},
        ],
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": ENDPOINT},
        "spec": {
            "task": "Chat",
            "serving": {
                "runtime": "Transformers",
                "resources": {"requests": {"cpu": "300m", "memory": "700Mi"}},
            },
            "gateway": {"replicas": 2, "resources": {"requests": {"cpu": "200m", "memory": "64Mi"}}},
            "rollout": merged(short, rollout),
        },
    }
