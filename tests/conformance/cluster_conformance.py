"""What every Cluster does, whatever is behind it: memory, a folder, or a real apiserver.

A layer inherits `ClusterConformance` and provides the fixtures `cluster` (the implementation under test) and
`namespace` (one that exists and holds nothing of earlier tests):

    class TestMyCluster(ClusterConformance):
        @pytest.fixture
        def cluster(self) -> Cluster: ...
        @pytest.fixture
        def namespace(self) -> str: ...
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conformance.objects import CONFIG, UNSEEN, all_results, digest, job_manifest, plan_of
from tests.simulation.endpoint_world import EVALUATION, endpoint_manifest, version_manifest

from finetune_api.finetunejob import STAGES, FineTuneJob
from finetune_api.modelendpoint import ModelEndpoint
from finetune_api.modelversion import ModelVersion
from finetune_operator.core.ports import (
    AlreadyExistsError,
    Cluster,
    ConflictError,
    Door,
    InvalidError,
    Manifest,
    NotFoundError,
)
from finetune_operator.endpoint.comparison.comparison import MOST_ATTEMPTS, comparison_key
from finetune_operator.endpoint.comparison.comparison_job import comparison_manifests
from finetune_operator.job.children import children_of

COLLECTED_WITHIN_SECONDS = 20.0


def config_map(*, namespace: str, name: str = "settings", **parts: Any) -> Manifest:
    """The simplest object there is."""
    metadata = {"name": name, "namespace": namespace, **parts.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}, **parts}


class ClusterConformance:
    """The contract of ports.Cluster, as tests."""

    collects_garbage = True
    """False where nothing removes dependants (an apiserver without controllers)."""

    # -- reading and creating -----------------------------------------------------------------------------------------

    async def test_what_is_not_there_is_none(self, cluster: Cluster, namespace: str) -> None:
        assert await cluster.get(kind="FineTuneJob", namespace=namespace, name="nobody") is None
        assert await cluster.list(kind="FineTuneJob", namespace=namespace) == []

    async def test_a_created_object_gets_an_identity(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        metadata = created["metadata"]
        assert metadata["uid"]
        assert metadata["resourceVersion"]
        assert metadata["generation"] == 1
        assert metadata["creationTimestamp"].endswith("Z")
        found = await cluster.get(kind="FineTuneJob", namespace=namespace, name="router")
        assert found is not None
        assert found["spec"] == created["spec"]
        assert (found["apiVersion"], found["kind"]) == ("finetune.dev/v1alpha1", "FineTuneJob")

    async def test_creating_never_replaces(self, cluster: Cluster, namespace: str) -> None:
        await cluster.create(manifest=config_map(namespace=namespace))
        with pytest.raises(AlreadyExistsError):
            await cluster.create(manifest=config_map(namespace=namespace, data={"a": "2"}))
        found = await cluster.get(kind="ConfigMap", namespace=namespace, name="settings")
        assert found is not None
        assert found["data"] == {"a": "1"}

    async def test_an_object_begins_without_a_status(self, cluster: Cluster, namespace: str) -> None:
        manifest = {**job_manifest(namespace=namespace), "status": {"phase": "Succeeded"}}
        await cluster.create(manifest=manifest)
        found = await cluster.get(kind="FineTuneJob", namespace=namespace, name="router")
        assert found is not None
        assert found.get("status", UNSEEN) == UNSEEN, "none, or the type's default"

    async def test_what_the_schema_forbids_is_refused_by_name(self, cluster: Cluster, namespace: str) -> None:
        manifest = job_manifest(namespace=namespace, model={"task": "Divination"})
        with pytest.raises(InvalidError, match="task"):
            await cluster.create(manifest=manifest)
        assert await cluster.get(kind="FineTuneJob", namespace=namespace, name="router") is None

    async def test_lists_are_sorted_and_filtered(self, cluster: Cluster, namespace: str) -> None:
        for name, team in (("c", "red"), ("a", "red"), ("b", "blue")):
            labels = {"labels": {"team": team, "all": "yes"}}
            await cluster.create(manifest=config_map(namespace=namespace, name=f"list-{name}", metadata=labels))
        red = await cluster.list(kind="ConfigMap", namespace=namespace, labels={"team": "red", "all": "yes"})
        assert [each["metadata"]["name"] for each in red] == ["list-a", "list-c"]
        assert [(each["apiVersion"], each["kind"]) for each in red] == [("v1", "ConfigMap")] * 2
        everywhere = await cluster.list(kind="ConfigMap", namespace=None, labels={"team": "blue", "all": "yes"})
        assert [each["metadata"]["name"] for each in everywhere] == ["list-b"]
        assert await cluster.list(kind="Service", namespace=namespace, labels={"all": "yes"}) == []

    async def test_what_is_returned_is_a_copy(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=config_map(namespace=namespace))
        created["data"]["a"] = "changed"
        found = await cluster.get(kind="ConfigMap", namespace=namespace, name="settings")
        assert found is not None
        assert found["data"] == {"a": "1"}

    # -- status -------------------------------------------------------------------------------------------------------

    async def test_a_status_is_written_alone(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        changed = {**created, "spec": {**created["spec"], "suspend": True}, "status": {"phase": "Pending"}}
        written = await cluster.replace_status(manifest=changed)
        assert written["status"] == {"phase": "Pending"}
        assert written["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"]
        found = await cluster.get(kind="FineTuneJob", namespace=namespace, name="router")
        assert found is not None
        assert found["status"] == {"phase": "Pending"}
        assert "suspend" not in found["spec"]
        assert found["metadata"]["generation"] == 1

    async def test_a_status_is_replaced_as_a_whole(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        first = await cluster.replace_status(manifest={**created, "status": {"phase": "Pending", "message": "wait"}})
        second = await cluster.replace_status(manifest={**first, "status": {"phase": "Training"}})
        assert second["status"] == {"phase": "Training"}

    async def test_the_same_status_again_changes_nothing(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        first = await cluster.replace_status(manifest={**created, "status": {"phase": "Pending"}})
        again = await cluster.replace_status(manifest=first)
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    async def test_a_plan_survives_the_status(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        plan = plan_of(FineTuneJob.from_object(created)).to_dict()
        await cluster.replace_status(manifest={**created, "status": {"phase": "Pending", "plan": plan}})
        found = await cluster.get(kind="FineTuneJob", namespace=namespace, name="router")
        assert found is not None
        assert found["status"]["plan"] == plan

    async def test_a_stale_status_write_is_a_conflict(self, cluster: Cluster, namespace: str) -> None:
        stale = await cluster.create(manifest=job_manifest(namespace=namespace))
        await cluster.replace_status(manifest={**stale, "status": {"phase": "Pending"}})
        with pytest.raises(ConflictError):
            await cluster.replace_status(manifest={**stale, "status": {"phase": "Failed"}})
        found = await cluster.get(kind="FineTuneJob", namespace=namespace, name="router")
        assert found is not None
        assert found["status"]["phase"] == "Pending"

    async def test_a_status_of_what_is_gone_is_not_written(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        await self._delete(cluster, created)
        with pytest.raises(NotFoundError):
            await cluster.replace_status(manifest={**created, "status": {"phase": "Pending"}})

    async def test_a_status_does_not_pass_to_a_namesake(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        await self._delete(cluster, created)
        await cluster.create(manifest=job_manifest(namespace=namespace))
        with pytest.raises((ConflictError, NotFoundError)):
            await cluster.replace_status(manifest={**created, "status": {"phase": "Succeeded"}})

    # -- applying -----------------------------------------------------------------------------------------------------

    async def test_applying_creates_and_changes(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "1", "b": "2"}))
        uid = {"metadata": {"uid": created["metadata"]["uid"]}}
        first = await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "1", "b": "2"}, **uid))
        again = await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "1", "b": "2"}, **uid))
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        assert again["metadata"]["uid"] == created["metadata"]["uid"]
        changed = await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "3"}, **uid))
        assert changed["data"] == {"a": "3"}, "what is no longer applied goes"

    async def test_applying_never_writes_over_what_was_not_seen(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=config_map(namespace=namespace))
        other = {"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}}
        with pytest.raises(AlreadyExistsError):
            await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "2"}))
        with pytest.raises(ConflictError):
            await cluster.apply(manifest=config_map(namespace=namespace, data={"a": "2"}, **other))
        with pytest.raises(ConflictError):
            await cluster.apply(manifest=config_map(namespace=namespace, name="gone", **other))
        assert await cluster.get(kind="ConfigMap", namespace=namespace, name="settings") == created
        assert await cluster.get(kind="ConfigMap", namespace=namespace, name="gone") is None

    async def test_applying_a_spec_counts_generations(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.apply(manifest=job_manifest(namespace=namespace))
        written = await cluster.replace_status(manifest={**created, "status": {"phase": "Pending"}})
        assert written["metadata"]["generation"] == 1
        suspended = job_manifest(namespace=namespace, suspend=True)
        suspended["metadata"]["uid"] = created["metadata"]["uid"]
        changed = await cluster.apply(manifest=suspended)
        assert changed["metadata"]["generation"] == 2
        assert changed["status"] == {"phase": "Pending"}

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def test_deleting_hits_one_object_only(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=config_map(namespace=namespace))
        address: Any = {"kind": "ConfigMap", "namespace": namespace, "name": "settings"}
        with pytest.raises(ConflictError):
            await cluster.delete(**address, uid="00000000-0000-4000-8000-000000000000")
        assert await cluster.get(**address) is not None
        await cluster.delete(**address, uid=created["metadata"]["uid"])
        assert await cluster.get(**address) is None
        await cluster.delete(**address, uid=created["metadata"]["uid"])  # gone already: no error

    async def test_children_go_with_their_owner(self, cluster: Cluster, namespace: str) -> None:
        if not self.collects_garbage:
            pytest.skip("nothing collects garbage here")
        owner = await cluster.create(manifest=job_manifest(namespace=namespace))
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": "router",
            "uid": owner["metadata"]["uid"],
            "controller": True,
        }
        owned = {"ownerReferences": [reference]}
        await cluster.create(manifest=config_map(namespace=namespace, name="owned", metadata=owned))
        await cluster.create(manifest=config_map(namespace=namespace, name="free"))
        await self._delete(cluster, owner)
        async with asyncio.timeout(COLLECTED_WITHIN_SECONDS):
            address: Any = {"kind": "ConfigMap", "namespace": namespace, "name": "owned"}
            while await cluster.get(**address) is not None:  # noqa: ASYNC110 - the port has no events
                await asyncio.sleep(0.05)
        assert await cluster.get(kind="ConfigMap", namespace=namespace, name="free") is not None

    # -- the operator's own manifests ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("nodes", [1, 2])
    @pytest.mark.parametrize("stage", STAGES)
    async def test_children_of_a_run_are_accepted(
        self, cluster: Cluster, namespace: str, stage: Any, nodes: int
    ) -> None:
        manifest = job_manifest(
            namespace=namespace,
            compute={"nodes": nodes, "gpusPerNode": 2},
            artifacts={"secretRef": {"name": "s3"}},
        )
        manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}  # made suspended: nothing runs
        run = FineTuneJob.from_object(await cluster.create(manifest=manifest))
        children = children_of(
            job=run,
            plan=plan_of(run),
            stage=stage,
            attempt=1,
            results=all_results(),
            config=CONFIG,
            door=Door(url="https://door.example", ca_bundle="-----BEGIN CERTIFICATE-----\n"),
        )
        for child in children:
            created = await cluster.create(manifest=child)
            assert created["metadata"]["ownerReferences"][0]["uid"] == run.metadata.uid
        kinds = [child["kind"] for child in children]
        assert kinds == (["ConfigMap", "Service", "Job"] if nodes > 1 and stage == "Train" else ["ConfigMap", "Job"])

    async def test_children_of_a_comparison_are_accepted(self, cluster: Cluster, namespace: str) -> None:
        """Their names stay within bounds, however long the endpoint's is."""
        manifest = endpoint_manifest()
        manifest["metadata"] = {"name": "e" * 63, "namespace": namespace}
        endpoint = ModelEndpoint.from_object(await cluster.create(manifest=manifest))
        version, baseline = (ModelVersion.model_validate(version_manifest(name, planned=True)) for name in ("v2", "v1"))
        children = comparison_manifests(
            endpoint=endpoint,
            version=version,
            baseline=baseline,
            plan=EVALUATION.model_copy(update={"gpus": 1, "labels": {"kueue.x-k8s.io/queue-name": "team-a"}}),
            key=comparison_key(version_uid="v2-uid", baseline_digest=digest("1")),
            attempt=MOST_ATTEMPTS,
            config=CONFIG,
        )
        for child in children:
            created = await cluster.create(manifest=child)
            assert created["metadata"]["ownerReferences"][0]["uid"] == endpoint.metadata.uid

    # -- telling ------------------------------------------------------------------------------------------------------

    async def test_events_of_one_object_are_found_without_the_others(self, cluster: Cluster, namespace: str) -> None:
        for uid, note in (("uid-1", "no space left"), ("uid-2", "somebody else's")):
            await cluster.create(
                manifest={
                    "apiVersion": "events.k8s.io/v1",
                    "kind": "Event",
                    "metadata": {"name": f"event-of-{uid}", "namespace": namespace},
                    "eventTime": "2026-01-05T12:00:10.000000Z",
                    "reportingController": "example.com/test",
                    "reportingInstance": "test",
                    "action": "Test",
                    "type": "Warning",
                    "reason": "ProvisioningFailed",
                    "note": note,
                    "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": namespace, "uid": uid},
                }
            )
        assert [each["note"] for each in await cluster.events_about(namespace=namespace, uid="uid-1")] == [
            "no space left"
        ]

    async def test_telling_is_best_effort(self, cluster: Cluster, namespace: str) -> None:
        created = await cluster.create(manifest=job_manifest(namespace=namespace))
        await cluster.record_event(regarding=created, type="Normal", reason="Training", message="training")
        await self._delete(cluster, created)
        await cluster.record_event(regarding=created, type="Warning", reason="Gone", message="no object any more")

    async def _delete(self, cluster: Cluster, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        await cluster.delete(
            kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]
        )
