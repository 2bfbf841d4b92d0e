"""Giving an image to a containerd without copying it.

containerd keeps an unpacked layer as `snapshots/<number>/fs` and finds it by its chain id. For each layer a snapshot is
made whose `fs` is a link to the layer's folder in buildah's storage, and then the manifest and the configuration are
imported; since every layer is unpacked already, containerd asks for no content of it. Lower folders of an overlay mount
are never written to, so nodes can share them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.harness.errors import HarnessError
from tests.harness.storage import Layer, StoredImage
from tests.patience import HANGS_S

_NAMESPACE = "k8s.io"
"""What kubelet's images are filed under."""


@dataclass(frozen=True, kw_only=True)
class Containerd:
    """A running containerd, by its socket."""

    socket: Path

    def give(self, images: Iterable[StoredImage]) -> None:
        """Make the images known; ones that it has already are only announced again."""
        have = set(self._ctr("snapshots", "list").split())
        for image in images:
            for layer in image.layers:
                if layer.chain_id not in have:
                    self._link(layer)
                    have.add(layer.chain_id)
            self._ctr("images", "import", "-", content=_archive(image))

    def answers(self) -> bool:
        """Whether it serves; `HarnessError` when it does not."""
        return bool(self._ctr("version"))

    def _link(self, layer: Layer) -> None:
        key = f"link-{layer.chain_id}"
        mount = self._ctr("snapshots", "prepare", "--target=/unused", key, *([layer.parent] if layer.parent else []))
        folder = _upper_folder(mount)
        folder.rmdir()
        folder.symlink_to(layer.folder)
        self._ctr("snapshots", "commit", layer.chain_id, key)

    def _ctr(self, *arguments: str, content: bytes | None = None) -> str:
        run = subprocess.run(
            ["ctr", f"--address={self.socket}", f"--namespace={_NAMESPACE}", *arguments],
            input=content,
            capture_output=True,
            timeout=HANGS_S,
            check=False,
        )
        if run.returncode != 0:
            raise HarnessError(f"ctr {' '.join(arguments)}: {run.stderr.decode(errors='replace').strip()}")
        return run.stdout.decode()


def _upper_folder(mount: str) -> Path:
    """The new snapshot's folder, out of the mount command that ctr prints for it."""
    found = re.search(r"upperdir=([^,\s]+)|-t bind (\S+)", mount)
    if found is None:
        raise HarnessError(f"ctr named no folder for the new snapshot: {mount}")
    return Path(found[1] or found[2])


def _archive(image: StoredImage) -> bytes:
    """An OCI archive of the image without its layers."""
    manifest = json.loads(image.manifest)
    name = f"sha256:{hashlib.sha256(image.manifest).hexdigest()}"
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": manifest["mediaType"],
                "digest": name,
                "size": len(image.manifest),
                "annotations": {"io.containerd.image.name": image.reference},
            }
        ],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        f"blobs/{name.replace(':', '/')}": image.manifest,
        f"blobs/{manifest['config']['digest'].replace(':', '/')}": image.config,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
