"""A version against itself, for real: `finetune up` with servers of MiniLM and SmolLM2-135M, clients and probes.

One endpoint for each model. Its first version is trained for a few steps; then the same artifact comes as one candidate
after the other, and goes through shadow, a step at half of the users and guard, in turn fast and slow (both versions
answer later by as much), in turn streamed and not. Last line: one JSON object; no `regressions`, none `undecided`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import yaml
from demo import assets, misbehaving
from tests.local.conftest import ROOT, Workspace
from tests.local.eventually import wait_for

from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.environment import TRAINER_VARIABLE
from finetune_operator.local.files import read_json
from finetune_operator.local.services import free_port

SLOW_SECONDS = 1.0
CLIENTS, USERS = 2, 31
ROLLOUT = {
    "shadow": {"percent": 50, "minSamples": 24, "probe": {"ratePerSecond": 2}},
    "steps": [{"name": "half", "percent": 50, "minSamples": 24}],
    "guard": {"durationSeconds": 15},
    "metrics": [
        {"name": "error_rate", "maxRegression": 0.1},
        {"name": "quality", "maxRegression": 0.2},
        {"name": "latency_seconds", "limit": 20.0, "maxRegression": 0.2},
    ],
}
JOBS: dict[str, dict[str, Any]] = {
    "classifier": {"training": {"maxSteps": 8, "maxLength": 32},
                   "evaluation": {"baseline": "Base", "metrics": [{"name": "accuracy", "maxRegression": 0.9}]}},
    "chat": {
        "method": {"type": "LoRA", "lora": {"rank": 8}},
        "training": {"maxSteps": 1, "globalBatchSize": 2, "maxLength": 128},
        "evaluation": {"baseline": "Base", "metrics": [{"name": "loss", "maxRegression": 5.0}],
                       "generation": {"maxNewTokens": 4}},
    },
}  # fmt: skip
SERVED = {"classifier": ("SequenceClassification", "FastAPI"), "chat": ("Chat", "Transformers")}


class Endpoint:
    """One that `finetune up` serves, with its first version."""

    def __init__(self, *, kind: str, workspace: Workspace) -> None:
        self.kind, self.workspace, self.port = kind, workspace, free_port()
        task, runtime = SERVED[kind]
        spec = {"task": task, "serving": {"runtime": runtime}, "rollout": ROLLOUT}
        manifest = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint", "metadata": {"name": kind}}
        (workspace.folder / "endpoint.yaml").write_text(yaml.safe_dump({**manifest, "spec": spec}))
        changes = copy.deepcopy(JOBS[kind])
        if kind == "chat":
            changes["model"] = {"uri": f"file://{assets.smollm2_folder()}", "task": "Chat"}
            rows = sorted(set(assets.topic_chat(workspace.folder / "all.jsonl").read_text().splitlines()))[:80]
            (workspace.folder / "data.jsonl").write_text("\n".join(rows) + "\n")
        else:
            workspace.write_data(rows=60)
        workspace.write_job("first", endpointRef={"name": kind}, **changes)

    def status(self) -> dict[str, Any]:
        """The endpoint's."""
        folder = self.workspace.home.objects / "modelendpoint" / "default"
        return (read_json(folder / f"{self.kind}.json") or {}).get("status") or {}

    def begin(self) -> None:
        """Train and promote the first version. Raises RuntimeError."""
        log = (self.workspace.folder / "up.log").open("a")
        self.workspace.start("up", "-f", "endpoint.yaml", "--port", str(self.port), stdout=log)
        wait_for(lambda: self.status().get("phase") == "Empty", seconds=120, what="the endpoint")
        ended = self.workspace.finetune("run", "-f", "first.yaml", timeout=900)
        if ended.returncode:
            raise RuntimeError(ended.stdout + ended.stderr)
        wait_for(lambda: self.status().get("phase") == "Idle", seconds=240, what="the first version")

    def again(self, name: str, *, slow: bool, seconds: float) -> str:
        """Let the stable version come once more under another name: Promoted, or what else became of it."""
        stable = self.status()["stable"]["name"]
        for each in (stable, name):
            (self.workspace.folder / each).write_text(f"slow {SLOW_SECONDS}" if slow else "")
        version = read_json(self.workspace.home.objects / "modelversion" / "default" / f"{stable}.json") or {}
        same = {key: value for key, value in copy.deepcopy(version).items() if key != "status"}
        same["metadata"] = {"name": name, "namespace": "default", "labels": version["metadata"]["labels"]}
        same["spec"]["baseline"] = {"name": stable, "digest": version["spec"]["artifact"]["digest"]}
        LocalCluster(home=self.workspace.home).submit(manifest=same)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status()
            ended = [each for each in status.get("versions") or () if each["name"] == name]
            if ended and ended[-1]["outcome"] in ("Rejected", "RolledBack"):
                return f"{ended[-1]['outcome']}: {ended[-1]['reason']}"
            if status.get("phase") == "Idle" and status["stable"]["name"] == name:
                return "Promoted"
            time.sleep(0.2)
        return f"undecided: {self.status().get('phase')}: {self.status().get('message')}"


@contextmanager
def clients(endpoint: Endpoint, *, stream: bool) -> Iterator[list[str]]:
    """Ask as several users while the context lasts; what went wrong."""
    stopped, failures = threading.Event(), []
    questions = assets.questions("Evaluation")

    def ask(first: int) -> None:
        sdk = openai.OpenAI(base_url=f"http://127.0.0.1:{endpoint.port}/v1", api_key="none", max_retries=0)
        for number in range(first, 1_000_000, CLIENTS):
            if stopped.wait(0.1):
                return
            question, user = questions[number % len(questions)][0], f"user-{number % USERS}"
            try:
                if endpoint.kind == "classifier":
                    sdk.post("/classify", body={"input": question, "user": user}, cast_to=object)
                    continue
                messages: Any = [{"role": "user", "content": question}]
                answer: Any = sdk.chat.completions.create(
                    model=endpoint.kind, messages=messages, user=user, max_tokens=4, stream=stream
                )
                for _ in answer if stream else ():
                    pass
            except openai.OpenAIError as error:
                failures.append(repr(error)[:200])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def rollouts(kind: str, *, count: int, seconds: float) -> list[dict[str, Any]]:
    """So many of them at one endpoint, one after the other."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=f"same-{kind}-") as folder:
        environment = {TRAINER_VARIABLE: str(ROOT / "demo" / "misbehaving.py"), misbehaving.VARIABLE: folder}
        cache = os.environ.get("FINETUNE_CACHE") or str(Path.home() / ".cache" / "finetune-operator")
        workspace = Workspace(folder=Path(folder), environment={**environment, "FINETUNE_CACHE": cache})
        try:
            endpoint = Endpoint(kind=kind, workspace=workspace)
            endpoint.begin()
            for number in range(count):
                began, slow, stream = time.monotonic(), number % 2 == 1, kind == "chat" and number % 3 != 2
                with clients(endpoint, stream=stream) as failures:
                    ended = endpoint.again(f"again-{number}", slow=slow, seconds=seconds)
                seconds_taken = round(time.monotonic() - began, 1)
                each = {"model": kind, "slow": slow, "streamed": stream, "ended": ended}
                found.append({**each, "failed_requests": len(failures), "seconds": seconds_taken})
                print(json.dumps(found[-1]), failures[:2], file=sys.stderr, flush=True)
                if ended.startswith("undecided"):
                    break
        finally:
            workspace.close()
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run them and print what became of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.real_same_versions", description=__doc__)
    parser.add_argument("--classifier", type=int, default=5, help="rollouts with MiniLM")
    parser.add_argument("--chat", type=int, default=5, help="rollouts with SmolLM2")
    parser.add_argument("--seconds", type=float, default=600, help="for each rollout")
    options = parser.parse_args(arguments)
    found = [
        each
        for kind, count in (("classifier", options.classifier), ("chat", options.chat))
        if count
        for each in rollouts(kind, count=count, seconds=options.seconds)
    ]
    outcomes = [each["ended"].partition(":")[0] for each in found]
    figures = {
        "rollouts": len(found),
        "regressions": sum(each in ("Rejected", "RolledBack") for each in outcomes),
        "undecided": outcomes.count("undecided"),
        "failed_requests": sum(each["failed_requests"] for each in found),
        "load": round(os.getloadavg()[0], 1),
        "each": found,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
