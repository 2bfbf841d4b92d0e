"""An endpoint among objects of others: they are left alone and named, and it goes on when they are gone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.simulation.endpoint_world import EndpointWorld, endpoint_manifest, version_manifest
from tests.simulation.world import void
from tests.unit.endpoint.test_rollout import offer, serving, with_stable

from finetune_operator.endpoint.names import server_name
from finetune_operator.ports import Kind, Manifest

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
    status = await world.settle(ticks=60)
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
    await world.settle(ticks=5)
    seen = len(applies)
    await world.settle(ticks=5)
    assert 0 < len(applies) - seen <= 5 * 3 * 12, "each look applies what seems to be missing, and rests"
