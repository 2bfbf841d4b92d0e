"""The world around a ModelEndpoint: Deployments that become ready, gateways that follow the routes, and clients.

It moves only when `tick` is called, by one second. A gateway acknowledges new routes at its next tick, spreads the
requests by the weights, and reports what it counted. `World.check` is run after every look: what must never happen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from tests.conformance.objects import BASE, START, digest
from tests.simulation.comparison_jobs import ComparisonJobs
from tests.simulation.memory_cluster import MemoryCluster
from tests.simulation.world import Reports, void

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.modelendpoint import ModelEndpoint, ModelEndpointStatus
from finetune_api.observations import ArmCounts, BreakerTrip, Observations, PairCounts, ShadowCounts
from finetune_api.routes import ROUTES_KEY, Routes, ShadowOrder
from finetune_api.shared_fields import Resources
from finetune_operator.attempts.evaluation import EvaluationPlan
from finetune_operator.core.config import OperatorConfig
from finetune_operator.core.controller import Surroundings
from finetune_operator.core.ports import Cluster, ConflictError, Door, Key, Manifest, UnavailableError
from finetune_operator.endpoint.comparison.comparison import MOST_FAILURES
from finetune_operator.endpoint.names import COMPARISON_LABEL, COMPONENT_LABEL, GATEWAY, VERSION_UID_LABEL
from finetune_operator.kube.inboxes import ObservationInbox
from finetune_operator.metrics import Metrics
from finetune_operator.reconcile import Reconciler

TICK = timedelta(seconds=1)
PROMPTS = 100
"""Held out with each version."""
KEY = Key(kind="ModelEndpoint", namespace="ml", name="router")
CONFIG = OperatorConfig(trainer_image="trainer:1", gateway_image="gateway:1", instance="finetune-system")
EVALUATION = EvaluationPlan(
    run="pvc://models/runs/any",
    cache="pvc://models/runs/cache",
    metrics=[EvaluationMetric(name="exact_match", max_regression=0.01)],
    on_inconclusive="Hold",
    max_length=64,
    max_new_tokens=8,
    batch_size=4,
    precision="FP32",
    seed=7,
    gpus=0,
    resources=Resources(requests={"cpu": "1"}),
    secrets=["bucket"],
)
DOOR = Door(url="https://door.example", ca_bundle="-----BEGIN CERTIFICATE-----\n")


@dataclass(kw_only=True)
class Quality:
    """How a version answers: probabilities."""

    error: float = 0.0
    slow: float = 0.0
    bad: float = 0.0
    ready_after: int | None = 2
    """Ticks until its servers are ready; None: never."""
    exits: dict[str, Any] | None = None
    """Its container ends like this and is started again."""
    unschedulable: str | None = None


@dataclass(kw_only=True)
class GatewayProcess:
    """One gateway pod."""

    name: str
    boot: str
    routes: Routes | None = None
    arms: dict[tuple[int, str, str], dict[str, int]] = field(default_factory=dict)
    pairs: dict[tuple[int, str, str, str, str], dict[str, int]] = field(default_factory=dict)
    shadows: dict[int, int] = field(default_factory=dict)
    trips: list[BreakerTrip] = field(default_factory=list)
    deaf: bool = False
    """It does not see new routes."""
    unheard: bool = False
    """Its reports do not arrive."""

    def observations(self) -> Observations:
        """Its report."""
        return Observations(
            endpoint="router",
            gateway=self.name,
            boot_id=self.boot,
            acknowledged_epoch=self.routes.epoch if self.routes else 0,
            arms=[
                ArmCounts.model_validate({"epoch": epoch, "rule": rule, "variant": variant, **counts})
                for (epoch, rule, variant), counts in self.arms.items()
            ],
            pairs=[
                PairCounts.model_validate(
                    {"epoch": e, "source": source, "candidate": one, "stable": other, "metric": metric, **counts}
                )
                for (e, source, one, other, metric), counts in self.pairs.items()
            ],
            shadow=[ShadowCounts(epoch=epoch, sampled=n) for epoch, n in self.shadows.items()],
            breakers=list(self.trips),
        )


def endpoint_manifest(**rollout: Any) -> Manifest:
    """A ModelEndpoint with a short rollout."""
    short: dict[str, Any] = {
        "shadow": {"percent": 100, "minSamples": 40, "maxDurationSeconds": 600},
        "steps": [{"name": "ten", "percent": 10, "minSamples": 40}, {"name": "half", "percent": 50, "minSamples": 60}],
        "guard": {"durationSeconds": 20},
        "metrics": [
            {"name": "error_rate", "maxRegression": 0.05},
            {"name": "quality", "maxRegression": 0.1},
        ],
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": "router", "namespace": "ml"},
        "spec": {"task": "Chat", "serving": {"runtime": "Transformers"}, "rollout": short | rollout},
    }


def version_manifest(
    name: str, *, baseline: str = "0", letter: str = "", verdict: str = "Pass", planned: bool = False, **more: Any
) -> Manifest:
    """A ModelVersion for the endpoint. `baseline`: the digest's letter. `planned`: it says how it was evaluated.
    `more` is of its evaluation."""
    evaluation: dict[str, Any] = {"verdict": verdict, **more}
    if planned:
        evaluation["plan"] = {**EVALUATION.to_dict(), "run": f"pvc://models/runs/{name}"}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": name, "namespace": "ml", "labels": {"finetune.dev/endpoint": "router"}},
        "spec": {
            "endpointRef": {"name": "router"},
            "artifact": {
                "uri": f"pvc://models/runs/{name}/model",
                "digest": digest(letter or name[-1]),
                "format": "Adapter",
                "sizeBytes": 1024,
            },
            "base": BASE.to_dict(),
            "task": "Chat",
            "method": {},
            "training": {},
            "data": {"digest": digest("d"), "rows": {"train": 8, "validation": 1, "test": 1}},
            "baseline": {"name": "before", "digest": digest(baseline)},
            "evaluation": evaluation,
            "lineage": {"job": {"name": name, "uid": f"job-{name}"}},
        },
    }


class EndpointWorld:
    """One namespace `ml` with one endpoint `router`."""

    def __init__(self, *, requests_per_tick: int = 20, gateways: int = 2, seed: int = 1) -> None:
        self.now = START
        self.cluster = MemoryCluster(clock=lambda: self.now)
        self.comparisons = ComparisonJobs(cluster=self.cluster, clock=lambda: self.now)
        self._ages: dict[str, int] = {}
        """Of servers, in ticks."""
        self.random = random.Random(seed)
        self.requests_per_tick = requests_per_tick
        self.testers_per_tick = 0  # requests that match a step, of few users who were all given the candidate
        self.qualities: dict[str, Quality] = {}
        """By version name."""
        self.gateways: list[GatewayProcess] = []
        self._wanted_gateways = gateways
        self.gateways_ready = True
        self.phases: list[str] = []
        self.stables: list[str] = []
        self.check_attempts = True
        """Nothing interrupts comparisons: none of them needs more than so many Jobs."""
        self.unserved = 0
        """Requests for which there was no server."""
        self.restart_operator()

    def restart_operator(
        self, *, cluster: Callable[[Cluster], Cluster] = lambda cluster: cluster, config: OperatorConfig = CONFIG
    ) -> None:
        """A new operator process: all that the old one kept in memory is gone."""
        self.inbox = ObservationInbox(enqueue=lambda key: None, clock=lambda: self.now)
        self.reconciler = Reconciler(
            metrics=Metrics(registry=CollectorRegistry()),
            around=Surroundings(
                cluster=cluster(self.cluster),
                config=config,
                progress=Reports(listening_since=self.now),
                clock=lambda: self.now,
                door=lambda: DOOR,
                observations=self.inbox,
            ),
        )

    # -- what a user does and sees ------------------------------------------------------------------------------------

    async def create(self, manifest: Manifest, *, quality: Quality | None = None) -> Manifest:
        """kubectl create. Objects are a second apart, so their order is plain."""
        self.now += TICK
        self.qualities[manifest["metadata"]["name"]] = quality or Quality()
        return await self.cluster.create(manifest=manifest)

    async def endpoint(self) -> ModelEndpoint:
        """kubectl get."""
        found = await self.cluster.get(kind="ModelEndpoint", namespace="ml", name="router")
        assert found is not None
        return ModelEndpoint.from_object(found)

    async def status(self) -> ModelEndpointStatus:
        """The endpoint's status."""
        return (await self.endpoint()).status

    async def routes(self) -> Routes | None:
        """What gateways are told."""
        found = await self.cluster.get(kind="ConfigMap", namespace="ml", name="router-routes")
        return Routes.model_validate_json(found["data"][ROUTES_KEY]) if found and "data" in found else None

    def annotate(self, **annotations: str | None) -> None:
        """kubectl annotate finetune.dev/KEY=VALUE; None removes."""

        def change(found: Manifest) -> None:
            known = found["metadata"].setdefault("annotations", {})
            for key, value in annotations.items():
                name = f"finetune.dev/{key.replace('_', '-')}"
                known.pop(name, None)
                if value is not None:
                    known[name] = value

        self.cluster.edit(kind="ModelEndpoint", namespace="ml", name="router", change=change)

    def change_spec(self, **changes: Any) -> None:
        """kubectl patch."""
        self.cluster.edit(
            kind="ModelEndpoint", namespace="ml", name="router", change=lambda found: found["spec"].update(changes)
        )

    async def servers(self) -> list[str]:
        """Names of the versions that have a Deployment."""
        found = await self.cluster.list(kind="Deployment", namespace="ml")
        return sorted(
            each["metadata"]["labels"]["finetune.dev/version"]
            for each in found
            if each["metadata"]["labels"][COMPONENT_LABEL] != GATEWAY
        )

    # -- time passes --------------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """The operator looks until it wants to wait. Errors of the cluster are tried again, as by the queue."""
        for _ in range(10):
            try:
                await self.reconciler.reconcile(KEY)
            except (ConflictError, UnavailableError):
                continue
            await self.check()
            return
        raise AssertionError("the operator does not get through")

    async def run(
        self, *, until: Callable[[ModelEndpointStatus], object], ticks: int = 400, every: int = 1
    ) -> ModelEndpointStatus:
        """Let time pass until the status is as wanted. `every`: see `tick`."""
        for _ in range(ticks):
            await self.reconcile()
            status = await self.status()
            if until(status):
                return status
            await self.tick(every=every)
        reached = json.dumps((await self.status()).to_dict(), indent=1)
        raise AssertionError(f"not reached within {ticks} ticks: {reached}")

    async def settle(self, *, ticks: int = 5, every: int = 1) -> ModelEndpointStatus:
        """Let some time pass. `every`: see `tick`."""
        for _ in range(ticks):
            await self.tick(every=every)
            await self.reconcile()
        return await self.status()

    async def check(self) -> None:
        """What must hold after every look, whatever happened before."""
        status = await self.status()
        if not self.phases or self.phases[-1] != status.phase:
            self.phases.append(status.phase or "")
        if status.stable is not None and (not self.stables or self.stables[-1] != status.stable.name):
            self.stables.append(status.stable.name)
        await self._check_comparisons(status)
        routes = await self.routes()
        assert status.stable is None or status.candidate is None or status.stable.uid != status.candidate.uid
        if routes is None:
            return
        for uid in routes.variants:
            assert await self._deployment(uid) is not None, "a route leads to servers that were taken away"
        for gateway in self.gateways:
            for uid in gateway.routes.variants if gateway.routes else ():
                assert await self._deployment(uid) is not None, "a gateway may still send requests there"

    async def _check_comparisons(self, status: ModelEndpointStatus) -> None:
        """At most one runs, each with what is stable, and none is tried for ever."""
        jobs = await self.cluster.list(kind="Job", namespace="ml")
        living = [job for job in jobs if not (job.get("status") or {}).get("conditions")]
        assert len(living) <= 1, living
        if self.check_attempts:
            assert len({job["metadata"]["labels"][COMPARISON_LABEL] for job in jobs}) * MOST_FAILURES >= len(jobs)
        for job in living if status.stable is not None else ():
            order = await self.comparisons.order(job)
            if order is not None:  # else its removal has begun
                assert order.baseline.artifact is not None
                assert status.stable is not None
                assert order.baseline.artifact.digest == status.stable.digest, "compared with what is not stable"

    async def tick(self, *, every: int = 1) -> None:
        """One second of everybody else's work. `every`: after so many seconds, where nobody but the clock has anything
        to do for long."""
        self.now += every * TICK
        for deployment in await self.cluster.list(kind="Deployment", namespace="ml"):
            await self._play(deployment)
        await self.comparisons.play()
        routes = await self.routes()
        for gateway in self.gateways:
            if routes is not None and not gateway.deaf and (not gateway.routes or routes.epoch > gateway.routes.epoch):
                await self._check_ready(routes, before=gateway.routes)
                gateway.routes = routes
            await self._serve(gateway)
            if not gateway.unheard:
                self.inbox.report(namespace="ml", observations=gateway.observations())

    async def _deployment(self, uid: str) -> Manifest | None:
        found = await self.cluster.list(kind="Deployment", namespace="ml", labels={VERSION_UID_LABEL: uid})
        return found[0] if found else None

    async def _check_ready(self, routes: Routes, *, before: Routes | None) -> None:
        known = set(before.variants) if before else set()
        for uid in set(routes.variants) - known:
            deployment = await self._deployment(uid)
            assert deployment is not None
            assert deployment["status"]["readyReplicas"] >= 1, "a route to a version that was never ready"

    async def _play(self, deployment: Manifest) -> None:
        """The Deployment controller and kubelet."""
        metadata = deployment["metadata"]
        labels = metadata["labels"]
        if COMPONENT_LABEL not in labels:
            return  # somebody else's
        if labels[COMPONENT_LABEL] == GATEWAY:
            self._set_ready(deployment, ready=deployment["spec"]["replicas"] if self.gateways_ready else 0)
            await self._start_gateways(deployment)
            return
        quality = self.qualities[labels["finetune.dev/version"]]
        age = self._ages[metadata["uid"]] = self._ages.get(metadata["uid"], 0) + 1
        ready = deployment["spec"]["replicas"] if quality.ready_after is not None and age >= quality.ready_after else 0
        self._set_ready(deployment, ready=ready)
        await self._play_pod(deployment, quality=quality, ready=bool(ready))

    def _set_ready(self, deployment: Manifest, *, ready: int) -> None:
        status = {
            "observedGeneration": deployment["metadata"].get("generation", 1),
            "replicas": deployment["spec"]["replicas"],
            "readyReplicas": ready,
            "updatedReplicas": deployment["spec"]["replicas"],
        }
        self.cluster.edit(
            kind="Deployment",
            namespace="ml",
            name=deployment["metadata"]["name"],
            change=lambda found: void(found.__setitem__("status", status)),
        )

    async def _play_pod(self, deployment: Manifest, *, quality: Quality, ready: bool) -> None:
        name = f"{deployment['metadata']['name']}-x"
        if await self.cluster.get(kind="Pod", namespace="ml", name=name) is None:
            await self.cluster.create(manifest=_pod(name, deployment))
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self._time()}
        if quality.unschedulable:
            scheduled |= {"status": "False", "reason": "Unschedulable", "message": quality.unschedulable}
        container: dict[str, Any] = {"name": "server", "ready": ready, "restartCount": 0, "state": {"running": {}}}
        if quality.exits is not None:
            container |= {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}
            container["lastState"] = {"terminated": quality.exits}
        status = {"phase": "Running", "conditions": [scheduled], "containerStatuses": [container]}

        def change(found: Manifest) -> None:
            if (found.get("status") or {}).get("conditions"):
                status["conditions"] = found["status"]["conditions"] if not quality.unschedulable else [scheduled]
                if not quality.unschedulable and status["conditions"][0]["status"] == "False":
                    status["conditions"] = [scheduled]
            found["status"] = status

        self.cluster.edit(kind="Pod", namespace="ml", name=name, change=change)

    async def _start_gateways(self, deployment: Manifest) -> None:
        while len(self.gateways) < self._wanted_gateways:
            await self.start_gateway(deployment)

    async def start_gateway(self, deployment: Manifest | None = None) -> GatewayProcess:
        """Another gateway pod."""
        if deployment is None:
            deployment = await self.cluster.get(kind="Deployment", namespace="ml", name="router-gateway")
        assert deployment is not None
        name = f"router-gateway-{len(self.gateways)}-{self.random.randrange(10**6)}"
        pod = _pod(name, deployment)
        await self.cluster.create(manifest=pod)
        running = {"phase": "Running", "containerStatuses": [{"name": "gateway", "state": {"running": {}}}]}
        self.cluster.edit(
            kind="Pod", namespace="ml", name=name, change=lambda found: void(found.__setitem__("status", running))
        )
        gateway = GatewayProcess(name=name, boot=f"boot-{self.random.randrange(10**9)}")
        self.gateways.append(gateway)
        return gateway

    def kill_gateway(self) -> None:
        """The first gateway is gone, with all that it did not report."""
        gateway = self.gateways.pop(0)
        self.cluster.remove(kind="Pod", namespace="ml", name=gateway.name)

    # -- clients ------------------------------------------------------------------------------------------------------

    async def _serve(self, gateway: GatewayProcess) -> None:
        routes = gateway.routes
        if routes is None:
            return
        epoch = routes.epoch
        rule = routes.rules[-1]
        tripped = {trip.variant for trip in gateway.trips if trip.epoch == epoch}
        for _ in range(self.requests_per_tick // max(1, len(self.gateways))):
            variant = self.random.choices(list(rule.weights), list(rule.weights.values()))[0]
            if variant in tripped and rule.fallback:
                variant = rule.fallback
            self._answer(gateway, routes, rule.name, variant)
            self._shadow(gateway, routes, variant)
        for chosen in routes.rules[:-1]:
            candidate = next(each for each in chosen.weights if each != chosen.fallback)
            for _ in range(self.testers_per_tick):
                self._answer(gateway, routes, chosen.name, candidate)
        self._probe(gateway, routes)
        self._trip(gateway, routes)

    def _answer(self, gateway: GatewayProcess, routes: Routes, rule: str, variant: str) -> None:
        quality = self._quality(routes, variant)
        counts = gateway.arms.setdefault((routes.epoch, rule, variant), {"requests": 0, "errors": 0, "bad": 0})
        counts["requests"] += 1
        counts["errors"] += self.random.random() < quality.error
        counts["bad"] += self.random.random() < quality.bad

    def _shadow(self, gateway: GatewayProcess, routes: Routes, variant: str) -> None:
        order = routes.shadow
        if order is None or variant != order.stable or self.random.random() * 100 >= order.percent:
            return
        gateway.shadows[routes.epoch] = gateway.shadows.get(routes.epoch, 0) + 1
        self._pair(gateway, routes, order, source="Shadow")

    def _probe(self, gateway: GatewayProcess, routes: Routes) -> None:
        """Held-out prompts, each once an epoch."""
        order = routes.shadow
        if order is None or order.probe is None:
            return
        key = (routes.epoch, "Probe", order.candidate, order.stable, "quality")
        left = PROMPTS - gateway.pairs.get(key, {"pairs": 0})["pairs"]
        for _ in range(min(left, round(order.probe.rate_per_second * TICK.total_seconds()))):
            self._pair(gateway, routes, order, source="Probe")

    def _pair(self, gateway: GatewayProcess, routes: Routes, order: ShadowOrder, *, source: str) -> None:
        one, other = self._quality(routes, order.candidate), self._quality(routes, order.stable)
        for metric, name in (("error_rate", "error"), ("quality", "bad")):
            key = (routes.epoch, source, order.candidate, order.stable, metric)
            counts = gateway.pairs.setdefault(key, {"pairs": 0, "candidateOnly": 0, "stableOnly": 0, "both": 0})
            worse = self.random.random() < getattr(one, name)
            bad = self.random.random() < getattr(other, name)
            counts["pairs"] += 1
            counts["candidateOnly"] += worse and not bad
            counts["stableOnly"] += bad and not worse
            counts["both"] += worse and bad

    def _trip(self, gateway: GatewayProcess, routes: Routes) -> None:
        """The breaker: half of at least five requests failed."""
        rule = routes.rules[-1]
        if rule.breaker is None:
            return
        for variant in rule.weights:
            counts = gateway.arms.get((routes.epoch, rule.name, variant))
            known = any(trip.variant == variant and trip.epoch == routes.epoch for trip in gateway.trips)
            if variant == rule.fallback or counts is None or known:
                continue
            if counts["errors"] >= 5 and counts["errors"] >= counts["requests"] / 2:
                trip = BreakerTrip(epoch=routes.epoch, rule=rule.name, variant=variant, reason="5 of 6 failed", at=0.0)
                gateway.trips.append(trip)

    def _quality(self, routes: Routes, variant: str) -> Quality:
        return self.qualities[routes.variants[variant].name]

    def _time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _pod(name: str, deployment: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ml",
            "labels": deployment["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"],
                 "uid": deployment["metadata"]["uid"], "controller": True}
            ],
        },
        "spec": deployment["spec"]["template"]["spec"],
    }  # fmt: skip
