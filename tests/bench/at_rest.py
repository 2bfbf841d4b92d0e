"""What the operator asks of the apiserver for objects at rest, and for one that somebody keeps changing.

Requests are the operator's own, counted by itself, but for its Lease and its door; watches are not counted. The window
at rest is longer than the pause between two looks at everything (FINETUNE_RESYNC_SECONDS), so that one is in it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.api.replica import Replica
from tests.bench.pod_arrivals import PodArrivals
from tests.conformance.objects import job_manifest, prepare_result
from tests.harness import Object
from tests.simulation.endpoint_world import endpoint_manifest, version_manifest

from finetune_operator.attempts.pods import CONTAINER
from finetune_operator.core.ports import Kind
from finetune_operator.kube.kinds import PLACES

CONTESTED_SECONDS = 120
"""Somebody changes one object for so long, once a second where it was put back."""
_PATIENCE_SECONDS = 300
_MERGE = {"Content-Type": "application/merge-patch+json"}


@dataclass(frozen=True, kw_only=True)
class AtRest:
    """Measures in one namespace."""

    session: aiohttp.ClientSession
    operator: Replica
    arrivals: PodArrivals
    calls: Callable[[Replica], Mapping[str, float]]
    namespace: str

    async def figures(self, *, objects: int, rest_seconds: int) -> Object:
        """`mutated_requests_per_min`: of an endpoint that a person, and of one that a policy, keeps changing.
        `idle_requests_per_min`: of each of so many objects; half are endpoints that serve, half jobs that train."""
        mutated = {"person": await self._contested(), "policy": await self._admitted()}
        await self._endpoints([f"rest-{number}" for number in range(objects // 2)])
        await self._jobs([f"rest-{number}" for number in range(objects - objects // 2)])
        await asyncio.sleep(30)  # the last reports of pods and Deployments
        made = await self._made(seconds=rest_seconds)
        await self._remove_all()
        each = {kind: round(count / objects, 3) for kind, count in sorted(made.items()) if count}
        idle = round(sum(made.values()) / objects, 2)
        return {"mutated_requests_per_min": mutated, "idle_requests_per_min": idle, "idle_by_kind": each}

    async def _made(self, *, seconds: float) -> dict[str, float]:
        """Requests a minute by kind, in the time to come."""
        before = self.calls(self.operator)
        await asyncio.sleep(seconds)
        return {kind: (count - before.get(kind, 0)) * 60 / seconds for kind, count in self.calls(self.operator).items()}

    async def _contested(self) -> float:
        """Somebody scales the servers whenever they are as they should be."""
        await self._endpoints(["contested"])
        path = await self._deployment("contested")
        task = asyncio.create_task(self._quarrel(path))
        made = await self._made(seconds=CONTESTED_SECONDS)
        task.cancel()
        await self._delete("ModelEndpoint", "contested")
        return round(sum(made.values()), 1)

    async def _quarrel(self, path: str) -> None:
        while True:
            if (await self._get(path))["spec"]["replicas"] != 7:
                await self._patch(path, {"spec": {"replicas": 7}})
            await asyncio.sleep(1)

    async def _admitted(self) -> float:
        """A policy makes other servers of what is applied, and takes away what says that it was."""
        api = "admissionregistration.k8s.io/v1"
        root = f"/apis/{api}"
        rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
        stamp = '[JSONPatch{op: "remove", path: "/metadata/annotations/finetune.dev~1applied"}]'
        grace = '[JSONPatch{op: "replace", path: "/spec/template/spec/terminationGracePeriodSeconds", value: 7}]'
        has = "has(object.metadata.annotations) && 'finetune.dev/applied' in object.metadata.annotations"
        policy = {
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "stamped", "expression": has}],
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": each}} for each in (stamp, grace)],
        }
        named = {"metadata": {"name": "policy"}}
        kinds = ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
        specs = (policy, {"policyName": "policy"})
        for kind, spec in zip(kinds, specs, strict=True):
            await self._post(f"{root}/{kind}", named | {"spec": spec})
        await asyncio.sleep(5)  # in force
        await self._endpoints(["policy"])
        made = await self._made(seconds=CONTESTED_SECONDS)
        for kind in kinds:
            await self._request("DELETE", f"{root}/{kind}/policy")
        await self._delete("ModelEndpoint", "policy")
        return round(sum(made.values()), 1)

    # -- what is at rest ----------------------------------------------------------------------------------------------

    async def _endpoints(self, names: Sequence[str]) -> None:
        """Endpoints that serve a version: servers and gateways are ready."""
        for name in names:
            version = version_manifest(f"{name}-1")
            version["metadata"] |= {"namespace": self.namespace, "labels": {"finetune.dev/endpoint": name}}
            version["spec"]["endpointRef"] = {"name": name}
            endpoint = endpoint_manifest() | {"metadata": {"name": name}}
            await self._post(PLACES["ModelVersion"].collection(namespace=self.namespace), version)
            await self._post(PLACES["ModelEndpoint"].collection(namespace=self.namespace), endpoint)
        await self._until(lambda: self._all_ready(names, "server"))
        await self._until(lambda: self._all_say(names, "Idle", ready="False"))
        # Gateways of which nothing is heard would hold up the promotion before.
        await self._until(lambda: self._all_ready(names, "gateway"))
        await self._until(lambda: self._all_say(names, "Idle", ready="True"))

    async def _all_say(self, names: Sequence[str], phase: str, *, ready: str) -> bool:
        said = {
            each["metadata"]["name"]
            for each in await self._list("ModelEndpoint", "")
            for condition in each.get("status", {}).get("conditions", ())
            if (each["status"].get("phase"), condition["type"], condition["status"]) == (phase, "Ready", ready)
        }
        return set(names) <= said

    async def _all_ready(self, names: Sequence[str], component: str) -> bool:
        """Have what there is of them be ready; whether that are all."""
        pods = await self._list("Pod", f"finetune.dev/component={component}")
        mine = [each for each in pods if each["metadata"]["labels"]["finetune.dev/endpoint"] in names]
        for pod in mine:
            if "containerStatuses" not in pod["status"]:
                await self._run(pod["metadata"]["name"], container=component)
        return {each["metadata"]["labels"]["finetune.dev/endpoint"] for each in mine} == set(names)

    async def _jobs(self, names: Sequence[str]) -> None:
        """Jobs that train."""
        for name in names:
            await self._post(
                PLACES["FineTuneJob"].collection(namespace=self.namespace),
                job_manifest(name=name, namespace=self.namespace),
            )
        for stage in ("Prepare", "Train"):
            for name in names:
                await self.arrivals.complete(name, pods=1, stage=stage, timeout_seconds=_PATIENCE_SECONDS)
                (pod,) = self.arrivals.names(name, stage=stage)
                result = prepare_result().model_dump_json(by_alias=True, exclude_none=True)
                await self._run(pod, container=CONTAINER, result=result if stage == "Prepare" else None)

    async def _run(self, pod: str, *, container: str, result: str | None = None) -> None:
        """A pod runs and is ready; or it has ended with this result."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        state: Object = {"running": {"startedAt": now}}
        if result is not None:
            state = {"terminated": {"exitCode": 0, "message": result, "startedAt": now, "finishedAt": now}}
        ready = result is None
        image = {"image": "x", "imageID": "x@sha256:" + "e" * 64, "restartCount": 0}
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
        status = {
            "phase": "Running" if ready else "Succeeded",
            "conditions": [scheduled, {"type": "Ready", "status": str(ready), "lastTransitionTime": now}],
            "containerStatuses": [{"name": container, "ready": ready, "state": state, **image}],
        }
        path = PLACES["Pod"].item(namespace=self.namespace, name=pod)
        await self._patch(f"{path}/status", {"status": status})

    async def _deployment(self, endpoint: str) -> str:
        (found,) = await self._list("Deployment", f"finetune.dev/component=server,finetune.dev/endpoint={endpoint}")
        return PLACES["Deployment"].item(namespace=self.namespace, name=found["metadata"]["name"])

    # -- the API ------------------------------------------------------------------------------------------------------

    async def _until(self, probe: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not await probe():
            assert time.monotonic() < deadline, "the operator did not get so far"
            await asyncio.sleep(0.5)

    async def _remove_all(self) -> None:
        kinds: tuple[Kind, ...] = ("ModelEndpoint", "FineTuneJob", "ModelVersion")
        for kind in kinds:
            await self._request("DELETE", PLACES[kind].collection(namespace=self.namespace))
        await self._until(self._is_empty)

    async def _is_empty(self) -> bool:
        return not await self._list("Pod", "finetune.dev/owned-by")

    async def _request(self, method: str, path: str, **options: Any) -> Object:
        async with self.session.request(method, path, **options) as answer:
            assert answer.status < 300, await answer.text()
            found: Object = await answer.json()
            return found

    async def _get(self, path: str) -> Object:
        return await self._request("GET", path)

    async def _list(self, kind: Kind, labels: str) -> list[Object]:
        path = PLACES[kind].collection(namespace=self.namespace)
        found: list[Object] = (await self._request("GET", path, params={"labelSelector": labels}))["items"]
        return found

    async def _post(self, path: str, manifest: Object) -> None:
        await self._request("POST", path, json=manifest)

    async def _patch(self, path: str, change: Object) -> None:
        await self._request("PATCH", path, data=json.dumps(change), headers=_MERGE, params={"fieldManager": "somebody"})

    async def _delete(self, kind: Kind, name: str) -> None:
        await self._request("DELETE", PLACES[kind].item(namespace=self.namespace, name=name))
        await asyncio.sleep(5)  # its children follow
