"""Gateways at the door: only those of the endpoint are heard, and their own name counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.api.test_door import make_run, open_door, pod_token
from tests.harness import ApiServer, Kubectl
from tests.wrong_manifests import valid

from finetune_api.observations import OBSERVATIONS_ROUTE, Observations, ObservationsReply
from finetune_operator.core.ports import Key

NOTHING: Mapping[str, Any] = {}


def make_gateway(
    kubectl: Kubectl,
    *,
    namespace: str,
    endpoint: str = "router",
    owned: bool = True,
    forged: Mapping[str, Any] = NOTHING,
) -> str:
    """An endpoint with a gateway pod as the Deployment controller leaves it; the pod's token. `forged`: what is wrong
    in what the pod says of its controller."""
    kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer"}}, namespace=namespace)
    kubectl.create(valid("endpoint") | {"metadata": {"name": endpoint}}, namespace=namespace)
    owner = kubectl.get("modelendpoint", endpoint, namespace=namespace)
    labels = {"finetune.dev/endpoint": endpoint, "finetune.dev/component": "gateway"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"serviceAccountName": "trainer", "containers": [{"name": "gateway", "image": "localhost/none"}]},
    }
    references = [_reference(owner)] if owned else []
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"{endpoint}-gateway", "ownerReferences": references},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    kubectl.create(deployment, namespace=namespace)
    stored = kubectl.get("deployment", f"{endpoint}-gateway", namespace=namespace)
    replicas = {**deployment, "kind": "ReplicaSet", "metadata": {"name": f"{endpoint}-gateway-5d8f"}}
    kubectl.create(
        replicas | {"metadata": {**replicas["metadata"], "ownerReferences": [_reference(stored)]}}, namespace=namespace
    )
    owner = _reference(kubectl.get("replicaset", f"{endpoint}-gateway-5d8f", namespace=namespace))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{endpoint}-gateway-5d8f-a", "labels": labels} | {"ownerReferences": [owner | forged]},
        "spec": template["spec"] | {"automountServiceAccountToken": False},
    }
    kubectl.create(pod, namespace=namespace)
    return pod_token(kubectl, pod=f"{endpoint}-gateway-5d8f-a", namespace=namespace)


def _reference(owner: Any) -> dict[str, Any]:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }


def report(*, endpoint: str = "router", gateway: str = "somebody-else") -> bytes:
    """What a gateway says."""
    return json.dumps({"endpoint": endpoint, "gateway": gateway, "bootId": "b1", "acknowledgedEpoch": 3}).encode()


async def post(door: Any, *, token: str, body: bytes) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with door.session.post(f"{door.url}{OBSERVATIONS_ROUTE}", data=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_gateway_is_heard_under_its_own_name(crds: ApiServer, namespace: str) -> None:
    token = make_gateway(crds.kubectl, namespace=namespace)
    async with open_door(crds) as door:
        other = Observations(
            endpoint="router", gateway="other", boot_id="b", address="10.1.2.3:81", acknowledged_epoch=3
        )
        door.observations.report(namespace=namespace, observations=other)
        door.observations.report(namespace="elsewhere", observations=other.model_copy(update={"gateway": "stranger"}))
        door.enqueued.clear()
        reply = ObservationsReply(peers={"other": "10.1.2.3:81"}).to_dict()
        assert await post(door, token=token, body=report()) == (200, reply), "others of its endpoint, not itself"
        _, taken = door.observations.reports(namespace=namespace, endpoint="router")
        assert taken.observations.gateway == "router-gateway-5d8f-a", "whatever the body says"
        assert taken.observations.acknowledged_epoch == 3
        assert door.enqueued == [Key(kind="ModelEndpoint", namespace=namespace, name="router")]


async def test_nobody_else_is_heard(crds: ApiServer, namespace: str) -> None:
    token = make_gateway(crds.kubectl, namespace=namespace)
    make_gateway(crds.kubectl, namespace=namespace, endpoint="other")
    stray = make_gateway(crds.kubectl, namespace=namespace, endpoint="stray", owned=False)
    copied = make_gateway(crds.kubectl, namespace=namespace, endpoint="copied", forged={"uid": "x"})
    deployed = crds.kubectl.get("deployment", "other-gateway", namespace=namespace)["metadata"]["uid"]
    skipped = make_gateway(crds.kubectl, namespace=namespace, endpoint="skipped", forged={"uid": deployed})
    run = make_run(crds.kubectl, namespace=namespace, job="job")
    async with open_door(crds) as door:
        wrong = [(token, "other"), (token, "none"), (stray, "stray"), (run.token, "router")]
        for caller, endpoint in (*wrong, (copied, "copied"), (skipped, "skipped")):
            status, body = await post(door, token=caller, body=report(endpoint=endpoint))
            assert status == 403, (endpoint, body)
            assert f"is not a gateway of ModelEndpoint {endpoint}" in body["error"]
        status, body = await post(door, token="nonsense", body=report())
        assert status == 401
        status, body = await post(door, token=token, body=b'{"endpoint": "router"}')
        assert (status, "bootId: Field required" in body["error"] or "gateway" in body["error"]) == (400, True)
        for endpoint in ("router", "other", "stray", "copied", "skipped"):
            assert door.observations.reports(namespace=namespace, endpoint=endpoint) == ()
