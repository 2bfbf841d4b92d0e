"""`make bench-operator`: how fast and how cheap the operator is. Last line: one JSON object.

A real apiserver, etcd and controller manager; the operator as a process with its committed rights; no nodes, so pods
are created and stay pending, and nothing but control planes is measured. In one run, one after the other each second: a
FineTuneJob (its first stage is one pod), a bare Indexed Job of two pods (the floor), and a TrainJob of Kubeflow Trainer
v2 (two pods). A latency runs from just before the create call until all pods have been seen by a watch.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from tests.api.client import open_session
from tests.api.replica import Replica, replicas
from tests.bench.at_rest import AtRest
from tests.bench.kubeflow_trainer import running_kubeflow_trainer, train_job
from tests.bench.pod_arrivals import PodArrivals, watching_pods
from tests.conformance.objects import evaluate_result, job_manifest, prepare_result, train_result
from tests.harness import ApiServer, Object

from finetune_operator.attempts.pods import CONTAINER
from finetune_operator.kube.kinds import PLACES

NAMESPACE = "bench"
# The controller manager's default of 20 calls a second would measure its own throttle.
CONTROLLER_OPTIONS = ("--kube-api-qps=500", "--kube-api-burst=1000")
TRAIN_JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/bench/trainjobs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements use."""

    session: aiohttp.ClientSession
    arrivals: PodArrivals
    operator: Replica

    async def create(self, path: str, manifest: Object) -> None:
        """Create an object."""
        async with self.session.post(path, json=manifest) as answer:
            assert answer.status == 201, await answer.text()

    async def set_status(self, path: str, status: Object) -> None:
        """Write a status, as a controller or kubelet would."""
        headers = {"Content-Type": "application/merge-patch+json"}
        body = json.dumps({"status": status})
        async with self.session.patch(f"{path}/status", data=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()

    async def end_pods(self, run: str, *, stage: str, message: str) -> None:
        """The pods of a stage end well; the first one says what came of it."""
        for number, pod in enumerate(self.arrivals.names(run, stage=stage)):
            terminated = {"exitCode": 0, "reason": "Completed", "message": message if number == 0 else ""}
            container = {
                "name": CONTAINER,
                "image": "localhost/none",
                "imageID": "localhost/none@sha256:" + "e" * 64,
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": terminated | {"startedAt": _utc(), "finishedAt": _utc()}},
            }
            status = {"phase": "Succeeded", "startTime": _utc(), "containerStatuses": [container]}
            await self.set_status(PLACES["Pod"].item(namespace=NAMESPACE, name=pod), status)


async def measure(
    *,
    apiserver: ApiServer,
    operator: Replica,
    jobs: int,
    active: int,
    rest_seconds: int,
    large: bool,
    peer: str | None,
) -> Object:
    """All figures."""
    async with open_session(apiserver) as session, watching_pods(session) as arrivals:
        bench = Bench(session=session, arrivals=arrivals, operator=operator)
        await _set_up(bench)
        at_rest = AtRest(session=session, operator=operator, arrivals=arrivals, calls=_calls, namespace=NAMESPACE)
        figures: Object = await at_rest.figures(objects=100, rest_seconds=rest_seconds) if rest_seconds else {}
        if not jobs:
            return figures
        figures |= await _apply_to_pods(bench, jobs=jobs, with_trainer=peer is not None)
        figures |= await _next_stage(bench, jobs=max(5, jobs // 3))
        figures |= await _calls_per_job(bench, jobs=max(5, jobs // 5))
        figures["reconcile_p99_ms"] = _quantile_ms(operator, "finetune_reconcile_duration_seconds", 0.99)
        figures |= await _memory(bench, active=active)
        if large:
            figures |= await _memory_of_many(bench, active=active, finished=10_000)
    return figures


async def _set_up(bench: Bench) -> None:
    await bench.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    claim = {
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await bench.create(PLACES["PersistentVolumeClaim"].collection(namespace=NAMESPACE), claim)
    await asyncio.sleep(2)  # the namespace's service account


async def _apply_to_pods(bench: Bench, *, jobs: int, with_trainer: bool) -> Object:
    kinds: dict[str, Callable[[str], Awaitable[float]]] = {"apply_to_pods": lambda name: _ours(bench, name)}
    kinds["floor"] = lambda name: _floor(bench, name)
    if with_trainer:
        kinds["trainer"] = lambda name: _trainer(bench, name)
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(jobs):
        for kind, run in kinds.items():
            began = time.monotonic()
            seconds = await run(f"{kind.replace('_', '-')}-{number}")
            if number > 0:  # the first of each kind meets cold caches everywhere
                taken[kind].append(seconds)
            await asyncio.sleep(max(0.0, 1 / len(kinds) - (time.monotonic() - began)))
    figures = {}
    for kind, seconds_of in taken.items():
        figures |= {f"{kind}_p50_ms": _ms(seconds_of, 0.5), f"{kind}_p99_ms": _ms(seconds_of, 0.99)}
    return figures


async def _ours(bench: Bench, name: str) -> float:
    manifest = job_manifest(name=name, namespace=NAMESPACE, compute={"nodes": 2})
    began = time.monotonic()
    await bench.create(PLACES["FineTuneJob"].collection(namespace=NAMESPACE), manifest)
    return await bench.arrivals.complete(name, pods=1, stage="Prepare") - began


async def _floor(bench: Bench, name: str) -> float:
    container = {"name": "trainer", "image": "localhost/none"}
    template = {
        "metadata": {"labels": {"bench.finetune.dev/floor": name}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 0, "template": template}
    began = time.monotonic()
    await bench.create(PLACES["Job"].collection(namespace=NAMESPACE), {"metadata": {"name": name}, "spec": spec})
    return await bench.arrivals.complete(name, pods=2) - began


async def _trainer(bench: Bench, name: str) -> float:
    began = time.monotonic()
    await bench.create(TRAIN_JOBS, train_job(name=name, namespace=NAMESPACE))
    return await bench.arrivals.complete(name, pods=2) - began


async def _next_stage(bench: Bench, *, jobs: int) -> Object:
    taken = []
    for number in range(1, jobs + 1):
        name = f"apply-to-pods-{number}"
        began = time.monotonic()
        await bench.end_pods(name, stage="Prepare", message=_message(prepare_result()))
        taken.append(await bench.arrivals.complete(name, pods=2, stage="Train") - began)
        await asyncio.sleep(max(0.0, 1 / 3 - (time.monotonic() - began)))
    return {"next_stage_p50_ms": _ms(taken, 0.5), "next_stage_p99_ms": _ms(taken, 0.99)}


async def _calls_per_job(bench: Bench, *, jobs: int) -> Object:
    """Calls from apply to the end of a run of three stages; those that the operator makes anyway are not counted."""
    before = _calls(bench.operator)
    for number in range(jobs):
        name = f"whole-{number}"
        await _ours(bench, name)
        await bench.end_pods(name, stage="Prepare", message=_message(prepare_result()))
        await bench.arrivals.complete(name, pods=2, stage="Train")
        await bench.end_pods(name, stage="Train", message=_message(train_result()))
        await bench.arrivals.complete(name, pods=1, stage="Evaluate")
        await bench.end_pods(name, stage="Evaluate", message=_message(evaluate_result()))
        await _phase(bench, name, "Succeeded")
    await asyncio.sleep(3)
    made = {kind: count - before.get(kind, 0) for kind, count in _calls(bench.operator).items()}
    by_kind = {kind: round(count / jobs, 1) for kind, count in sorted(made.items()) if count}
    return {"api_calls_per_job": round(sum(made.values()) / jobs, 1), "api_calls_by_kind": by_kind}


async def _phase(bench: Bench, name: str, phase: str) -> None:
    path = PLACES["FineTuneJob"].item(namespace=NAMESPACE, name=name)
    async with asyncio.timeout(30):
        while True:
            async with bench.session.get(path) as answer:
                if (await answer.json()).get("status", {}).get("phase") == phase:
                    return
            await asyncio.sleep(0.05)


async def _memory(bench: Bench, *, active: int) -> Object:
    """Memory with this many jobs whose pods wait for a node, in all."""
    begun = int(_gauge(bench.operator, "finetune_jobs"))
    began = time.monotonic()
    await _in_parallel([f"active-{number}" for number in range(active - begun)], lambda name: _ours(bench, name))
    seconds = time.monotonic() - began
    await asyncio.sleep(10)
    return {
        f"rss_mb_{active}_jobs": _rss_mb(bench.operator),
        "jobs_begun_per_second": round((active - begun) / seconds, 1),
    }


async def _memory_of_many(bench: Bench, *, active: int, finished: int) -> Object:
    """Memory with many jobs that have ended beside those that go on, of a process that meets them all at its start."""

    async def end(name: str) -> float:
        manifest = job_manifest(name=name, namespace=NAMESPACE)
        await bench.create(PLACES["FineTuneJob"].collection(namespace=NAMESPACE), manifest)
        path = PLACES["FineTuneJob"].item(namespace=NAMESPACE, name=name)
        condition = {"type": "Ready", "status": "True", "reason": "Succeeded", "lastTransitionTime": _utc()}
        status = {"phase": "Succeeded", "observedGeneration": 1, "conditions": [condition], "completionTime": _utc()}
        await bench.set_status(path, status)
        return 0.0

    await _in_parallel([f"ended-{number}" for number in range(finished)], end)
    await asyncio.sleep(30)
    return {"rss_mb_many_jobs": _rss_mb(bench.operator), "many_jobs": {"finished": finished, "all": active + finished}}


async def _in_parallel(names: Sequence[str], work: Callable[[str], Awaitable[float]]) -> None:
    limit = asyncio.Semaphore(8)

    async def one(name: str) -> None:
        async with limit:
            await work(name)

    await asyncio.gather(*(one(name) for name in names))


# -- reading the operator ---------------------------------------------------------------------------------------------


def _calls(operator: Replica) -> dict[str, float]:
    """Calls to the apiserver by method and resource, but for what does not depend on jobs."""
    pattern = re.compile(r'finetune_kubernetes_requests_total{method="(\w+)",resource="(\w+)",status="\d+"} ([\d.]+)')
    counts: dict[str, float] = {}
    for method, resource, count in pattern.findall(operator.get("/metrics")[1]):
        if resource not in ("leases", "secrets", "endpointslices", "discovery"):
            key = f"{method} {resource}"
            counts[key] = counts.get(key, 0) + float(count)
    return counts


def _gauge(operator: Replica, name: str) -> float:
    lines = operator.get("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def _quantile_ms(operator: Replica, name: str, share: float) -> float:
    """A quantile of a histogram over all its labels, interpolated within its bucket as Prometheus does."""
    pattern = re.compile(rf'{name}_bucket{{.*le="([^"]+)".*}} ([\d.]+)')
    counts: dict[float, float] = {}
    for found, value in pattern.findall(operator.get("/metrics")[1]):
        counts[float(found)] = counts.get(float(found), 0.0) + float(value)
    buckets = sorted(counts.items())
    wanted, low, below = share * buckets[-1][1], 0.0, 0.0
    for edge, count in buckets:
        if count >= wanted:
            return round(1000 * (low + (edge - low) * (wanted - below) / max(count - below, 1)), 1)
        low, below = edge, count
    return float("inf")


def _rss_mb(operator: Replica) -> float:
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024, 1)  # type: ignore[index]


def _ms(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def _message(result: Any) -> str:
    return str(result.model_dump_json(by_alias=True, exclude_none=True))


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="of each kind, one a second; 0: only what is at rest")
    parser.add_argument("--active", type=int, default=1000, help="jobs under way for the measurement of memory")
    parser.add_argument(
        "--rest-seconds", type=int, default=690, help="how long 100 objects are watched at rest; 0: not measured"
    )
    parser.add_argument("--large", action="store_true", help="also 10,000 finished jobs beside them")
    parser.add_argument("--without-peer", action="store_true", help="leave Kubeflow Trainer out")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finetune-bench-")))
        server = stack.enter_context(ApiServer.running())
        apiserver = dataclasses.replace(server, controller_options=CONTROLLER_OPTIONS)
        apiserver.kubectl.apply(Path("manifests/crd"))
        apiserver.kubectl.apply(Path("manifests/rbac"))
        apiserver.start_controllers()
        peer = None if options.without_peer else stack.enter_context(running_kubeflow_trainer(apiserver))
        gateway = {"FINETUNE_GATEWAY_IMAGE": "localhost/none"}
        (operator,) = stack.enter_context(replicas(apiserver, folder, "bench", environment=gateway))
        print(f"peer: {peer}", file=sys.stderr)
        figures = asyncio.run(
            measure(
                apiserver=apiserver,
                operator=operator,
                jobs=options.jobs,
                active=options.active,
                rest_seconds=options.rest_seconds,
                large=options.large,
                peer=peer,
            )
        )
    print(json.dumps(figures | {"jobs": options.jobs, "peer": peer}))


if __name__ == "__main__":
    main()
