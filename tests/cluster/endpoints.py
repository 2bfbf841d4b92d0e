"""Endpoints of the cluster tests: versions that a claim holds, clients that never stop, faults."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from demo import assets
from tests.cluster.jobs import merged
from tests.harness import Kubectl, Object
from tests.harness.cluster import Cluster

from finetune_api.run import Locations
from finetune_trainer.storage import Storage

ENDPOINT = "assistant"
_CLAIM = "models"


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

    def wait(self, condition: Callable[[dict[str, Any]], object], *, what: str, timeout_s: float = 240) -> Object:
        """Wait for a status."""
        return self.kubectl.wait_for(
            "modelendpoint",
            ENDPOINT,
            lambda found: condition(found.get("status") or {}),
            namespace=self.namespace,
            timeout_s=timeout_s,
            what=what,
        )

    def offer(self, name: str, *, baseline: str) -> str:
        """A ModelVersion that passed its evaluation against the version with digest `baseline`; its UID."""
        manifest = self.version(name, baseline=baseline)
        self.kubectl.create(manifest, namespace=self.namespace)
        return str(self.kubectl.get("modelversion", name, namespace=self.namespace)["metadata"]["uid"])

    def version(self, name: str, *, baseline: str) -> dict[str, Any]:
        """SmolLM2-135M-Instruct as it comes, in a folder of its own: a version like any other."""
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

    def freeze(self, version: str) -> Callable[[], None]:
        """Stop the server processes of a version as they are (SIGSTOP); gives what lets them go on."""
        uids = {pod["metadata"]["uid"] for pod in self.pods("server", version=version)}
        pids = [
            pid for pid in _pids() if any(uid in _cgroup(pid) for uid in uids) and b"finetune_trainer" in _argv(pid)
        ]
        assert pids, f"no server process of {version} was found"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def thaw() -> None:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

        return thaw


def prepare(*, cluster: Cluster, namespace: str) -> EndpointSpace:
    """A claim for models."""
    folder = cluster.volume(_CLAIM, namespace=namespace)
    return EndpointSpace(cluster=cluster, namespace=namespace, folder=folder)


def publish(*, folder: Path) -> tuple[str, int]:
    """SmolLM2-135M-Instruct with its COMPLETE manifest; digest and size."""
    storage = Storage(
        locations=Locations(run=f"file://{folder.parent}", cache=f"file://{folder.parent}", allowed_roots=[])
    )
    with storage.staging_folder(f"file://{folder}") as staging:
        for path in assets.smollm2_folder().iterdir():
            if path.is_file() and path.name != "COMPLETE":
                shutil.copy(path, staging / path.name)
        complete = storage.publish(staging, to=f"file://{folder}", input_digest="sha256:test", extra={})
    for path in [folder.parent, folder, *folder.rglob("*")]:
        shutil.chown(path, 65532, 65532)
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
                "resources": {"requests": {"cpu": "100m", "memory": "700Mi"}},
            },
            "gateway": {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
            "rollout": merged(short, rollout),
        },
    }


# -- clients ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Traffic:
    """Requests of a real `openai` client that never stop, every second one streamed."""

    url: str
    per_second: float = 1.5
    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""
    retries: int = 0
    """Times that the client asked again by itself."""
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def answered(self) -> int:
        """Requests answered so far."""
        return len(self.seconds)

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        """Until the block ends. The thread has the network of the one that starts it."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(timeout=90)

    def wait(self, *, more: int, timeout_s: float = 120) -> None:
        """Wait for more answers."""
        wanted, deadline = self.answered + more, time.monotonic() + timeout_s
        while self.answered < wanted:
            assert time.monotonic() < deadline, f"{self.answered} of {wanted} answers; failures: {self.failures[-3:]}"
            time.sleep(0.2)

    async def _run(self) -> None:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60)
        async with asyncio.TaskGroup() as group:
            number = 0
            while not self._stop.is_set():
                group.create_task(self._ask(client, number))
                number += 1
                await asyncio.sleep(1 / self.per_second)

    async def _ask(self, client: openai.AsyncOpenAI, number: int) -> None:
        began = time.monotonic()
        question: Any = [{"role": "user", "content": f"Say a number greater than {number}."}]
        request: Any = {"model": ENDPOINT, "messages": question, "max_tokens": 3, "user": f"user-{number}"}
        try:
            raw = await client.chat.completions.with_raw_response.create(**request, stream=bool(number % 2))
            self.retries += raw.retries_taken
            answer: Any = raw.parse()
            if number % 2:
                ends = [choice.finish_reason async for chunk in answer for choice in chunk.choices]
            else:
                ends = [answer.choices[0].finish_reason]
            assert ends[-1] in ("length", "stop"), f"it ended with {ends[-1:]}"
        except (openai.OpenAIError, AssertionError) as error:
            self.failures.append(f"{number}: {type(error).__name__}: {error}")
        else:
            self.seconds.append(time.monotonic() - began)


# -- processes --------------------------------------------------------------------------------------------------------


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().replace("_", "-")
    except OSError:
        return ""


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
