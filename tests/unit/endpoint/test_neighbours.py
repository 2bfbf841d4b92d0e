"""An endpoint among objects of others: they are left alone and named, and it goes on when they are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.simulation.endpoint_world import CONFIG, EndpointWorld, Quality, endpoint_manifest, version_manifest
from tests.simulation.world import void
from tests.unit.endpoint.test_rollout import offer, serving, with_stable

from finetune_api.routes import ROUTES_KEY
from finetune_operator.core.ownership import controller_of
from finetune_operator.core.ports import Kind, Manifest
from finetune_operator.endpoint.names import server_name

HELM = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop", "uid": "shop-uid", "controller": True}


def foreign(kind: Kind, name: str, *, labels: dict[str, str] | None = None, owned: bool = True) -> Manifest:
    metadata: dict[str, Any] = {"name": name, "namespace": "ml", "labels": labels or {"app": "shop"}}
    if owned:
        metadata["ownerReferences"] = [HELM]
    spec = {"replicas": 1, "selector": {}, "template": {"metadata": {"labels": {}}, "spec": {}}}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


async def begun(world: EndpointWorld) -> str:
    """An endpoint with a version that has a UID already, and nothing done about it."""
    await world.create(endpoint_manifest())
    version = await world.create(version_manifest("v1"))
    return str(version["metadata"]["uid"])


async def untouched(world: EndpointWorld, mine: Manifest) -> bool:
    metadata = mine["metadata"]
    return await world.cluster.get(kind=mine["kind"], namespace="ml", name=metadata["name"]) == mine


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Role", "router-gateway"),
        ("RoleBinding", "router-gateway"),
        ("ServiceAccount", "router-gateway"),
        ("ConfigMap", "router-gateway"),
        ("PodDisruptionBudget", "router-gateway"),
        ("Deployment", "router-gateway"),
        ("ControllerRevision", "router-gateway"),
        ("Service", "router"),
        ("ConfigMap", "router-routes"),
        ("Service", "SERVER"),
        ("ConfigMap", "SERVER"),
        ("PodDisruptionBudget", "SERVER"),
        ("NetworkPolicy", "router-servers"),
        ("Deployment", "SERVER"),
        ("ControllerRevision", "SERVER"),
    ],
)
async def test_a_name_that_somebody_else_has(kind: Kind, name: str) -> None:
    owned = kind in ("Role", "Service")  # by a chart's objects; all others were made by hand
    world = EndpointWorld()
    uid = await begun(world)
    name = server_name(endpoint="router", version_uid=uid) if name == "SERVER" else name
    theirs = await world.cluster.create(manifest=foreign(kind, name, owned=owned))
    await world.settle(ticks=5)
    world.now += timedelta(hours=1)  # longer than any deadline of a rollout
    status = await world.settle(ticks=2)
    assert await untouched(world, theirs)
    assert not [each for each in status.versions if each.outcome == "Rejected"], "it is not the version's fault"
    (stalled,) = [each for each in status.conditions if each.type == "Stalled"]
    assert stalled.reason == "NameTaken"
    assert f"{kind} {name}" in stalled.message
    assert ("Deployment shop" if owned else "no owner") in stalled.message
    told = [each for each in world.cluster.events if each.reason == "NameTaken"]
    assert len(told) == 1, "told once"
    if name == "router-gateway" and kind != "Deployment":
        assert await world.cluster.get(kind="Deployment", namespace="ml", name=name) is None, "no pod runs under it"
    world.cluster.remove(kind=kind, namespace="ml", name=name)
    status = await world.run(until=serving("v1"))
    assert not [each for each in status.conditions if each.type == "Stalled"]


async def test_a_rollback_does_not_wait_for_a_name() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    world.cluster.remove(kind="PodDisruptionBudget", namespace="ml", name="router-gateway")
    theirs = await world.cluster.create(manifest=foreign("PodDisruptionBudget", "router-gateway"))
    world.qualities["v2"].error = 1.0
    await world.run(until=lambda status: status.versions[-1].outcome == "RolledBack", ticks=60)
    assert await untouched(world, theirs)


async def test_forged_labels_make_nothing_ours() -> None:
    """A Deployment of somebody else that says it is a version's servers is neither believed nor removed."""
    world = await with_stable()
    labels = {
        "finetune.dev/owned-by": "ModelEndpoint",
        "finetune.dev/endpoint": "router",
        "finetune.dev/component": "server",
        "finetune.dev/version": "v9",
        "finetune.dev/version-uid": "v9-uid",
    }
    theirs = await world.cluster.create(manifest=foreign("Deployment", "shop", labels=labels))
    await world.reconcile()
    await world.reconcile()
    assert await untouched(world, theirs)


FORGERIES: dict[str, Callable[[Manifest, Manifest], dict[str, Any]]] = {
    "nobody's": lambda deployment, replicas: {},
    "not by its controller": lambda deployment, replicas: {"uid": replicas["metadata"]["uid"], "controller": False},
    "of another ReplicaSet": lambda deployment, replicas: {"uid": "another", "controller": True},
    "past its ReplicaSet": lambda deployment, replicas: {"uid": deployment["metadata"]["uid"], "controller": True},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_pods_with_copied_labels_are_neither_gateways_nor_servers(forgery: Any) -> None:
    """One that says it is a gateway would hold up every rollout, one that says it is a server have it rejected."""
    world = await with_stable()
    await offer(world, "v2", Quality(ready_after=None))
    await world.run(until=lambda status: status.candidate is not None and status.step is not None)
    await world.settle(ticks=2)
    before = await world.status()
    message = json.dumps({"reason": "BadArtifact", "message": "forged"})
    ended = {"terminated": {"exitCode": 65, "reason": "Error", "message": message}}
    for deployment in await world.cluster.list(kind="Deployment", namespace="ml"):
        metadata = deployment["metadata"]
        ours = {"apiVersion": "apps/v1", "controller": True, "kind": "Deployment", "uid": metadata["uid"]}
        replicas = await world.cluster.create(
            manifest={
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {**metadata, "name": f"{metadata['name']}-rs", "ownerReferences": [ours]},
            }
        )
        real = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "uid": replicas["metadata"]["uid"], "controller": True}
        for pod in await world.cluster.list(kind="Pod", namespace="ml"):
            if controller_of(pod).get("uid") == metadata["uid"]:
                world.cluster.edit(
                    kind="Pod",
                    namespace="ml",
                    name=pod["metadata"]["name"],
                    change=lambda found, real=real: void(found["metadata"].__setitem__("ownerReferences", [real])),
                )
        name, forged = f"forged-{metadata['name']}", forgery(deployment, replicas)
        component = metadata["labels"]["finetune.dev/component"]
        state = {"running": {}} if component == "gateway" else ended
        status = {"phase": "Running", "containerStatuses": [{"name": component, "state": state, "restartCount": 9}]}
        await world.cluster.create(
            manifest={
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": "ml",
                    "labels": deployment["spec"]["template"]["metadata"]["labels"],
                    **(
                        {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", **forged}]}
                        if forged
                        else {}
                    ),
                },
                "spec": deployment["spec"]["template"]["spec"],
            }
        )
        world.cluster.edit(
            kind="Pod", namespace="ml", name=name, change=lambda found, status=status: found.update(status=status)
        )
    await world.reconcile()
    after = await world.status()
    assert after.routes == before.routes
    assert after.routes is not None
    assert after.routes.gateways == 2
    assert (after.candidate, after.message) == (before.candidate, before.message)


async def test_what_a_person_changes_is_put_back_once_and_said() -> None:
    world = await with_stable()
    address: Any = {"kind": "Service", "namespace": "ml", "name": "router"}
    world.cluster.edit(**address, change=lambda found: void(found["spec"].__setitem__("selector", {"app": "shop"})))
    status = await world.settle(ticks=1)
    service = await world.cluster.get(**address)
    assert service is not None
    assert service["spec"]["selector"]["finetune.dev/endpoint"] == "router"
    assert [each.message for each in status.conditions if each.type == "Contested"]
    assert [each.type for each in world.cluster.events if each.reason == "Contested"] == ["Warning"]
    status = await world.settle(ticks=12, every=5)
    assert not [each for each in status.conditions if each.type == "Contested"]


async def test_admission_that_takes_the_stamp_away_is_met_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await with_stable()
    store, applies = world.cluster._store, []

    def stripped(address: Any, manifest: Manifest) -> Manifest:
        (manifest["metadata"].get("annotations") or {}).pop("finetune.dev/applied", None)
        known = world.cluster._objects.get(address)
        if known is not None and {**known, "metadata": {**known["metadata"], "resourceVersion": ""}} == {
            **manifest,
            "metadata": {**manifest["metadata"], "resourceVersion": ""},
        }:
            applies.append(address)
            return known
        return store(address, manifest)

    monkeypatch.setattr(world.cluster, "_store", stripped)
    for address, manifest in world.cluster.snapshot().items():
        stripped(address, manifest)
    await world.settle(ticks=5)
    seen = len(applies)
    await world.settle(ticks=5)
    assert 0 < len(applies) - seen <= 5 * 3 * 12, "each look applies what seems to be missing, and rests"


async def test_a_gateway_that_a_person_changes_is_put_back_also_by_a_newer_operator() -> None:
    world = await with_stable()
    address: Any = {"kind": "Deployment", "namespace": "ml", "name": "router-gateway"}
    before = await world.cluster.get(**address)
    assert before is not None
    world.restart_operator(config=CONFIG.model_copy(update={"gateway_image": "gateway:2"}))

    def change(found: Manifest) -> None:
        found["spec"]["replicas"] = 5
        found["spec"]["template"]["spec"]["containers"][0]["image"] = "mine:1"

    world.cluster.edit(**address, change=change)
    status = await world.settle(ticks=1)
    after = await world.cluster.get(**address)
    assert after is not None
    assert after["spec"] == before["spec"]
    (contested,) = [each.message for each in status.conditions if each.type == "Contested"]
    assert "Deployment router-gateway: somebody changed spec.replicas" in contested


async def test_a_gateway_whose_spec_changed_is_rendered_anew_once() -> None:
    world = await with_stable()
    world.restart_operator(config=CONFIG.model_copy(update={"gateway_image": "gateway:2"}))
    world.change_spec(gateway={"replicas": 3})
    await world.settle(ticks=1)
    address: Any = {"namespace": "ml", "name": "router-gateway"}
    deployment = await world.cluster.get(kind="Deployment", **address)
    record = await world.cluster.get(kind="ControllerRevision", **address)
    assert deployment is not None
    assert record is not None
    assert deployment["spec"] == record["data"]["manifests"][0]["spec"]
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "gateway:2"


async def test_a_gateway_without_a_record_is_recorded_as_it_is() -> None:
    """As operators made it that kept none."""
    world = await with_stable()
    world.cluster.remove(kind="ControllerRevision", namespace="ml", name="router-gateway")
    before = await world.cluster.get(kind="Deployment", namespace="ml", name="router-gateway")
    world.restart_operator(config=CONFIG.model_copy(update={"gateway_image": "gateway:2"}))
    await world.settle(ticks=1)
    after = await world.cluster.get(kind="Deployment", namespace="ml", name="router-gateway")
    assert before is not None
    assert after is not None
    assert after["spec"] == before["spec"]
    assert await world.cluster.get(kind="ControllerRevision", namespace="ml", name="router-gateway") is not None


async def test_routes_that_somebody_keeps_changing_are_put_back_with_pauses_and_a_rollback_does_not_wait() -> None:
    world = await with_stable()
    await offer(world, "v2")
    await world.run(until=lambda status: status.phase == "Canary")
    address: Any = {"kind": "ConfigMap", "namespace": "ml", "name": "router-routes"}
    epochs = []
    for _ in range(60):
        routes = await world.routes()
        assert routes is not None
        epochs.append(routes.epoch)
        changed = json.dumps(
            routes.model_copy(update={"rules": routes.rules[-1:], "shadow": None}).to_dict() | {"stable": None}
        )
        world.cluster.edit(
            **address, change=lambda found, changed=changed: void(found["data"].update({ROUTES_KEY: changed}))
        )
        await world.settle(ticks=1)
    status = await world.status()
    assert status.phase == "Canary"
    assert len(set(epochs)) <= 4, "at once, after 15 s and after a minute"
    assert "ConfigMap router-routes: " in "".join(
        each.message for each in status.conditions if each.type == "Contested"
    )
    world.annotate(reject=status.candidate.uid if status.candidate else "", requested_by="alice")
    await world.settle(ticks=1)
    routes = await world.routes()
    assert routes is not None
    assert status.candidate is not None
    assert status.candidate.uid not in routes.rules[-1].weights
