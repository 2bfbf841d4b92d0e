"""Persistent volumes on folders of this machine, which all nodes see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.harness.kubectl import Object

STORAGE_CLASS = "standard"
_SPARE = 10
_ALL_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany")


def volume(
    *,
    name: str,
    folder: Path,
    access_modes: Sequence[str],
    size: str,
    claimed: tuple[str, str] | None = None,
    storage_class: str = "",
) -> Object:
    """A PersistentVolume on `folder`, which is made; `claimed` is the namespace and name of the one claim it is for.

    Kubernetes gives a hostPath no owner or group, so everybody may write to it; what is made in it keeps group 65532.
    """
    folder.mkdir(parents=True)
    os.chown(folder, 65532, 65532)
    folder.chmod(0o2777)
    spec: Object = {
        "capacity": {"storage": size},
        "accessModes": list(access_modes),
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": storage_class,
        "hostPath": {"path": str(folder), "type": "Directory"},
    }
    if claimed is not None:
        spec["claimRef"] = {"namespace": claimed[0], "name": claimed[1]}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def claim(*, name: str, namespace: str, volume: str, access_modes: Sequence[str], size: str) -> Object:
    """The claim of a volume."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "storageClassName": "",
            "volumeName": volume,
            "accessModes": list(access_modes),
            "resources": {"requests": {"storage": size}},
        },
    }


def spare_volumes(folder: Path) -> list[Object]:
    """A default storage class and some volumes that bind to whatever claims come."""
    storage_class: Object = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }
    names = [f"spare-{number}" for number in range(_SPARE)]
    return [storage_class] + [
        volume(name=name, folder=folder / name, access_modes=_ALL_MODES, size="10Gi", storage_class=STORAGE_CLASS)
        for name in names
    ]
