"""The Cluster port over a folder: the conformance suite, and what only a folder has."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.conformance.cluster_conformance import ClusterConformance, config_map
from tests.conformance.objects import job_manifest
from tests.local.eventually import eventually

from finetune_operator.core.ports import Cluster, InvalidError, UnavailableError
from finetune_operator.local.cluster import LocalCluster
from finetune_operator.local.environment import ContainerBuilder, PodFiles
from finetune_operator.local.home import HomeLockedError, LocalHome
from finetune_operator.local.secrets_files import secret_manifest


@pytest.fixture
def home(tmp_path: Path) -> LocalHome:
    return LocalHome.at(tmp_path / "home")


@pytest.fixture
def cluster(home: LocalHome) -> LocalCluster:
    return LocalCluster(home=home)


class TestLocalCluster(ClusterConformance):
    @pytest.fixture
    def cluster(self, home: LocalHome) -> Cluster:
        return LocalCluster(home=home)

    @pytest.fixture
    def namespace(self) -> str:
        return "ml"


async def test_objects_outlive_the_process(home: LocalHome, cluster: LocalCluster) -> None:
    created = await cluster.create(manifest=job_manifest())
    again = LocalCluster(home=home)
    assert await again.get(kind="FineTuneJob", namespace="ml", name="router") == created
    later = await again.create(manifest=config_map(namespace="ml"))
    assert int(later["metadata"]["resourceVersion"]) > int(created["metadata"]["resourceVersion"])


async def test_a_torn_file_is_no_object(home: LocalHome, cluster: LocalCluster) -> None:
    """A crash between writing and renaming leaves a temporary file, which nobody reads."""
    await cluster.create(manifest=config_map(namespace="ml"))
    (home.objects / "configmap" / "ml" / ".other.json.tmp").write_text('{"metadata": {"na')
    assert [each["metadata"]["name"] for each in await cluster.list(kind="ConfigMap", namespace="ml")] == ["settings"]


async def test_a_name_cannot_lead_out_of_the_folder(cluster: LocalCluster) -> None:
    with pytest.raises(InvalidError):
        await cluster.create(manifest=config_map(namespace="ml", name="../../../etc/x"))
    with pytest.raises(InvalidError):
        await cluster.create(manifest=config_map(namespace=".."))


async def test_dependants_of_an_interrupted_deletion_are_collected(home: LocalHome, cluster: LocalCluster) -> None:
    owner = await cluster.create(manifest=job_manifest())
    reference = {"apiVersion": owner["apiVersion"], "kind": "FineTuneJob", "name": "router"}
    owners = {"ownerReferences": [{**reference, "uid": owner["metadata"]["uid"]}]}
    await cluster.create(manifest=config_map(namespace="ml", metadata=owners))
    (home.objects / "finetunejob" / "ml" / "router.json").unlink()
    cluster.collect_garbage()
    assert await cluster.get(kind="ConfigMap", namespace="ml", name="settings") is None


async def test_a_user_changes_only_what_may_change(cluster: LocalCluster) -> None:
    created = cluster.submit(manifest=job_manifest())
    changed = cluster.submit(manifest=job_manifest(suspend=True))
    assert (changed["metadata"]["uid"], changed["spec"]["suspend"]) == (created["metadata"]["uid"], True)
    with pytest.raises(InvalidError) as refused:
        cluster.submit(manifest=job_manifest(training={"seed": 8}))
    assert str(refused.value) == (
        'FineTuneJob.finetune.dev "router" is invalid:'
        " spec: Invalid value: spec.training is immutable; create a new FineTuneJob instead"
    )


async def test_claims_and_secrets_are_folders_and_files(home: LocalHome, cluster: LocalCluster) -> None:
    assert await cluster.get(kind="PersistentVolumeClaim", namespace="ml", name="models") is None
    (home.claims / "models").mkdir(parents=True)
    claim = await cluster.get(kind="PersistentVolumeClaim", namespace="ml", name="models")
    assert claim is not None
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    path = home.secret(name="s3")
    path.parent.mkdir()
    path.write_text("# keys\nexport AWS_ACCESS_KEY_ID='abc'\nAWS_SECRET_ACCESS_KEY=x=y\n\n")
    secret = await cluster.get(kind="Secret", namespace="ml", name="s3")
    assert secret is not None
    assert secret["data"] == {"AWS_ACCESS_KEY_ID": "YWJj", "AWS_SECRET_ACCESS_KEY": "eD15"}
    path.write_text("no key here\n")
    with pytest.raises(InvalidError, match=r"s3.env line 1: expected KEY=VALUE; a key has letters"):
        await cluster.get(kind="Secret", namespace="ml", name="s3")


async def test_a_full_disk_is_said(home: LocalHome, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    created = await cluster.create(manifest=job_manifest())

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", no_space)
    with pytest.raises(UnavailableError, match="No space left on device"):
        await cluster.replace_status(manifest={**created, "status": {"phase": "Pending"}})
    monkeypatch.undo()
    found = await cluster.get(kind="FineTuneJob", namespace="ml", name="router")
    assert found == created, "the object is whole"


def test_a_second_process_is_told_who_is_there(home: LocalHome) -> None:
    with home.locked(), pytest.raises(HomeLockedError, match=r"in use by process \d+ \(finetune"), home.locked():
        pass
    with home.locked():
        pass


def test_only_its_owner_reads_what_containers_were_given(home: LocalHome) -> None:
    with home.locked():
        assert (home.root / "pods").stat().st_mode & 0o777 == 0o700


def test_keys_of_secrets_may_be_what_they_may_be_on_a_cluster(home: LocalHome) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    path = home.root / "keys.env"
    path.write_text("team-a=one\nteam.b = 'two'\nexport TEAM_C=three\n# nothing\n\n")
    secret = secret_manifest(path=path, namespace="ml", name="keys")
    assert secret is not None
    assert sorted(secret["data"]) == ["TEAM_C", "team-a", "team.b"]
    for wrong in ("a b=1", "=1", "a/b=1", "..=1", "no separator"):
        path.write_text(f"ok=1\n{wrong}\n")
        with pytest.raises(InvalidError, match="line 2"):
            secret_manifest(path=path, namespace="ml", name="keys")


async def test_files_of_a_secret_follow_it(home: LocalHome, cluster: LocalCluster, tmp_path: Path) -> None:
    """A changed key takes effect in a container that runs; a removed one works no more, after a restart either."""
    path = home.secret(name="keys")
    path.parent.mkdir(parents=True)
    path.write_text("team-a=one\nteam-b=two\n")
    pod = {
        "metadata": {"name": "gateway", "namespace": "ml"},
        "spec": {
            "containers": [{"name": "gateway", "volumeMounts": [{"name": "keys", "mountPath": "/etc/keys"}]}],
            "volumes": [{"name": "keys", "secret": {"secretName": "keys"}}],
        },
    }

    def builder() -> ContainerBuilder:
        files = PodFiles(folder=tmp_path / "pod", log=tmp_path / "log")
        return ContainerBuilder(cluster=cluster, home=home, pod=pod, files=files)

    folder = (await builder().volumes())["/etc/keys"]

    def held() -> dict[str, str]:
        return {each.name: each.read_text() for each in folder.iterdir()}

    assert held() == {"team-a": "one", "team-b": "two"}
    following = asyncio.create_task(builder().follow_secrets())
    path.write_text("team-a=three\nteam-c=four\n")
    await eventually(lambda: held() == {"team-a": "three", "team-c": "four"})
    path.write_text("no key at all\n")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert held() == {"team-a": "three", "team-c": "four"}, "what cannot be read changes nothing"
    path.write_text("team-c=four\n")
    await builder().volumes()
    assert held() == {"team-c": "four"}
