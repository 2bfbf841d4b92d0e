"""Deployments as processes: probes, restarts, and rolling to a new template. The containers are small HTTP servers."""

from __future__ import annotations

import asyncio
import json
import textwrap
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.local.eventually import eventually
from tests.patience import HANGS_S
from tests.staying import stays

from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.ports import Manifest
from finetune_operator.local.home import LocalHome
from finetune_operator.local.listening import assigned_ports
from finetune_operator.local.runtime import LocalRuntime

CONFIG = OperatorConfig(trainer_image="local")
LABELS = {
    "finetune.dev/owned-by": "ModelEndpoint",
    "finetune.dev/endpoint": "router",
    "finetune.dev/component": "server",
}
SERVER = """
    import http.server, os, pathlib, signal, sys
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            ready = self.path != "/readyz" or pathlib.Path(os.environ["SWITCH"]).exists()
            self.send_response(200 if ready else 503)
            self.end_headers()
            self.wfile.write(os.environ["WORDS"].encode())
    address = (os.environ["FINETUNE_SERVE_HOST"], int(os.environ["FINETUNE_SERVE_PORT"]))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""
CRASHING = """
    import os, pathlib, sys
    words = '{"reason": "ArtifactChanged", "message": "the digest differs"}'
    pathlib.Path(os.environ["FINETUNE_TERMINATION_LOG"]).write_text(words)
    sys.exit(78)
"""


@pytest.fixture
def home(tmp_path: Path) -> LocalHome:
    return LocalHome.at(tmp_path / "home")


@pytest.fixture
async def runtime(home: LocalHome) -> AsyncIterator[LocalRuntime]:
    async with LocalRuntime.open(home=home, config=CONFIG) as opened:
        yield opened
        stopping = asyncio.create_task(opened.stop())
        opened.kill_all()
        await stopping
        assert opened.cluster.store.find(kind="Pod") == []


def deployment(program: str, *, switch: Path, words: str = "one", probed: bool = True) -> Manifest:
    get = {"path": "/readyz", "port": "http"}
    container: dict[str, Any] = {
        "name": "server",
        "image": "local",
        "command": ["python", "-c", textwrap.dedent(program)],
        "env": [{"name": "WORDS", "value": words}, {"name": "SWITCH", "value": str(switch)}],
        "ports": [{"name": "http", "containerPort": 8000}],
    }
    if probed:
        container["readinessProbe"] = {"httpGet": get, "periodSeconds": 1, "failureThreshold": 2}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "ml", "labels": LABELS},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": {"containers": [container]}},
        },
    }


def _of(made: Manifest, wanted: Manifest) -> Manifest:
    """`wanted` for the very object that was made."""
    return {**wanted, "metadata": {**wanted["metadata"], "uid": made["metadata"]["uid"]}}


def pods(runtime: LocalRuntime) -> list[Manifest]:
    return runtime.cluster.store.find(kind="Pod", namespace="ml")


def status(runtime: LocalRuntime) -> dict[str, Any]:
    found = runtime.cluster.store.read(kind="Deployment", namespace="ml", name="web") or {}
    return found.get("status") or {}


def ask(runtime: LocalRuntime) -> str:
    try:
        with urllib.request.urlopen(runtime.services.url("ml", "web"), timeout=HANGS_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError:
        return ""


async def test_ready_is_what_the_probe_says(runtime: LocalRuntime, tmp_path: Path) -> None:
    switch = tmp_path / "ready"
    created = await runtime.cluster.create(manifest=deployment(SERVER, switch=switch))
    await eventually(lambda: ask(runtime))
    await eventually(lambda: status(runtime).get("replicas"))
    await stays(lambda: (status(runtime)["replicas"], status(runtime)["readyReplicas"]) == (1, 0), seconds=0.6)
    switch.touch()
    await eventually(lambda: status(runtime)["readyReplicas"] == 1)
    assert status(runtime)["observedGeneration"] == created["metadata"]["generation"]
    (pod,) = pods(runtime)
    port = assigned_ports(pod)["http"]
    assert runtime.services.url("ml", "web") == f"http://127.0.0.1:{port}"
    switch.unlink()
    await eventually(lambda: status(runtime)["readyReplicas"] == 0)


async def test_what_ends_is_started_again_and_counted(runtime: LocalRuntime, tmp_path: Path) -> None:
    await runtime.cluster.create(manifest=deployment(CRASHING, switch=tmp_path / "ready"))

    def ended_twice() -> dict[str, Any] | None:
        found: list[dict[str, Any]] = [
            each for pod in pods(runtime) for each in pod["status"].get("containerStatuses", ())
        ]
        return found[0] if found and found[0]["restartCount"] >= 2 else None

    container = await eventually(ended_twice)
    assert container is not None
    assert container["ready"] is False
    ended = container["lastState"]["terminated"]
    assert (ended["exitCode"], json.loads(ended["message"])["reason"]) == (78, "ArtifactChanged")
    assert len(pods(runtime)) == 1, "it is the same pod"


async def test_a_new_template_comes_before_the_old_one_goes(runtime: LocalRuntime, tmp_path: Path) -> None:
    switch = tmp_path / "ready"
    switch.touch()
    made = await runtime.cluster.apply(manifest=deployment(SERVER, switch=switch))
    await eventually(lambda: status(runtime).get("readyReplicas") == 1)
    (old,) = pods(runtime)
    seen: list[int] = []
    runtime.cluster.store.subscribe(
        lambda each: (
            seen.append(each["status"]["readyReplicas"]) if each["kind"] == "Deployment" and "status" in each else None
        )
    )
    changed = await runtime.cluster.apply(manifest=_of(made, deployment(SERVER, switch=switch, words="two")))

    def rolled_out() -> bool:
        now = status(runtime)
        names = [pod["metadata"]["name"] for pod in pods(runtime)]
        return now["updatedReplicas"] == 1 and old["metadata"]["name"] not in names and len(names) == 1

    await eventually(rolled_out)
    assert min(seen) >= 1, "there was a ready one all the time"
    assert status(runtime)["observedGeneration"] == changed["metadata"]["generation"]
    assert await asyncio.to_thread(ask, runtime) == "two"


async def test_none_is_wanted(runtime: LocalRuntime, tmp_path: Path) -> None:
    manifest = deployment(SERVER, switch=tmp_path / "ready", probed=False)
    made = await runtime.cluster.apply(manifest=manifest)
    await eventually(lambda: status(runtime).get("readyReplicas") == 1)
    none: Manifest = {**manifest, "spec": {**manifest["spec"], "replicas": 0}}
    await runtime.cluster.apply(manifest=_of(made, none))
    await eventually(lambda: not pods(runtime))
    assert status(runtime)["replicas"] == 0
