"""Reading buildah's storage (github.com/containers/storage, overlay driver): its images and where their layers lie.

A layer's folder `overlay/<id>/diff` is the upper folder of an overlay mount: exactly what containerd's overlayfs
snapshotter keeps for the same layer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.errors import HarnessError
from tests.harness.store import cache


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An unpacked layer."""

    chain_id: str
    """Digest of the layer with all below it (OCI image specification, "Layer ChainID")."""
    parent: str
    """Chain id of the layer below; empty for the lowest."""
    folder: Path


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image: manifest and configuration as they were committed, and its layers, lowest first."""

    reference: str
    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class Storage:
    """buildah's storage in `folder`."""

    folder: Path

    @classmethod
    def default(cls) -> Storage:
        """The one in the cache."""
        return cls(folder=cache() / "buildah")

    def buildah(self) -> list[str]:
        """The command with the options that make it use this storage."""
        run = Path("/run/finetune-operator") / hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        root = self.folder / "storage"
        return ["buildah", f"--root={root}", f"--runroot={run}", "--storage-driver=overlay"]

    def __contains__(self, reference: str) -> bool:
        return any(reference in image.get("names", ()) for image in self._records("images"))

    def references(self) -> list[str]:
        """The tagged images."""
        return sorted(name for image in self._records("images") for name in image.get("names", ()))

    def remove(self, references: list[str]) -> None:
        """Remove images, with them the layers that no other image has, and what builds that were killed have left."""
        commands = [["rm", "--all"], *([["rmi", *references]] if references else []), ["rmi", "--prune"]]
        for command in commands:
            subprocess.run([*self.buildah(), *command], capture_output=True, timeout=300, check=False)

    def image(self, reference: str) -> StoredImage:
        """Look an image up; `HarnessError` when it is not there."""
        for record in self._records("images"):
            if reference in record.get("names", ()):
                return self._read(reference, record)
        raise HarnessError(f"image {reference} is not built; run python -m tests.harness images")

    def _read(self, reference: str, record: dict[str, Any]) -> StoredImage:
        config = self._data(record["id"], f"sha256:{record['id']}")
        known = {layer["id"]: layer for layer in self._records("layers")}
        identities: list[str] = []
        identity = record["layer"]
        while identity:
            identities.insert(0, identity)
            identity = known[identity].get("parent", "")
        differences: list[str] = json.loads(config)["rootfs"]["diff_ids"]
        if [known[identity]["diff-digest"] for identity in identities] != differences:
            raise HarnessError(
                f"{reference}: its layers in {self.folder} are not those of its configuration; remove it"
            )
        layers: list[Layer] = []
        parent = ""
        for identity, difference in zip(identities, differences, strict=True):
            chain_id = _digest(f"{parent} {difference}".encode()) if parent else difference
            folder = self.folder / "storage" / "overlay" / identity / "diff"
            layers.append(Layer(chain_id=chain_id, parent=parent, folder=folder))
            parent = chain_id
        manifest = self._data(record["id"], "manifest")
        return StoredImage(reference=reference, manifest=manifest, config=config, layers=tuple(layers))

    def _data(self, image: str, key: str) -> bytes:
        # Names that are no plain words are stored in base64 with a sign in front.
        name = key if key.isalnum() else "=" + base64.b64encode(key.encode()).decode()
        return (self.folder / "storage" / "overlay-images" / image / name).read_bytes()

    def _records(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "storage" / f"overlay-{kind}" / f"{kind}.json"
        found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        return found


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
