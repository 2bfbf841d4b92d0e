"""Objects as JSON files: what etcd is to an apiserver.

One process works on them (home.LocalHome.locked), any may read. Others may write, too, what users write on a cluster
(annotations, new jobs), so whoever reads an object in order to change it does so inside `alone`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune_operator.core.ports import InvalidError, Kind, Manifest, UnavailableError
from finetune_operator.local.files import read_json, write_json
from finetune_operator.local.home import LocalHome

Listener = Callable[[Manifest], None]
"""Told of an object after it was written or removed."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class ObjectStore:
    """Objects by kind, namespace and name. Every write gives the object the next resource version of the store."""

    def __init__(self, *, home: LocalHome) -> None:
        self._home = home
        self._listeners: list[Listener] = []
        self._version: int | None = None
        self._depth = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process changes an object until the block ends. May be nested; never held across an await."""
        self._depth += 1
        descriptor = self._lock() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if descriptor is not None:
                os.close(descriptor)

    def subscribe(self, listener: Listener) -> None:
        """Tell of every change from now on."""
        self._listeners.append(listener)

    def read(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, None where there is none."""
        found: Manifest | None = read_json(self._home.objects / kind.lower() / namespace / f"{name}.json")
        return found

    def find(
        self, *, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Objects with all these labels, sorted by namespace and name."""
        folder = self._home.objects / kind.lower()
        files = folder.glob(f"{namespace or '*'}/[!.]*.json")
        found = [manifest for path in files if (manifest := read_json(path)) is not None]
        wanted = (labels or {}).items()
        chosen = [manifest for manifest in found if wanted <= (manifest["metadata"].get("labels") or {}).items()]
        return sorted(chosen, key=lambda each: (each["metadata"]["namespace"], each["metadata"]["name"]))

    def write(self, manifest: Manifest) -> Manifest:
        """Store the object as it is, with a new resource version. Raises UnavailableError where the disk is full."""
        metadata = manifest["metadata"]
        for part in (metadata["namespace"], metadata["name"]):
            if not _NAME.fullmatch(part):
                raise InvalidError(f'{manifest["kind"]} "{metadata["name"]}" is invalid: metadata.name: "{part}"')
        # What another process wrote has a resource version that this one has not counted.
        known = max(self._version_of(manifest), self._version_of(self._stored(manifest) or manifest))
        stored = {**manifest, "metadata": {**metadata, "resourceVersion": self._next_version(after=known)}}
        path = self._home.objects / manifest["kind"].lower() / metadata["namespace"] / f"{metadata['name']}.json"
        try:
            write_json(path, stored)
        except OSError as error:
            raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
        self._tell(stored)
        return stored

    def remove(self, manifest: Manifest) -> None:
        """Remove the object, and the files that only it had."""
        metadata = manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        (self._home.objects / manifest["kind"].lower() / namespace / f"{name}.json").unlink(missing_ok=True)
        match manifest["kind"]:
            case "Pod":
                shutil.rmtree(self._home.pod(namespace=namespace, name=name), ignore_errors=True)
            case "Service" | "Job":
                self._home.service(namespace=namespace, name=name).unlink(missing_ok=True)
            case "ModelEndpoint":
                shutil.rmtree(self._home.endpoint_logs(namespace=namespace, endpoint=name), ignore_errors=True)
                self._home.routes(namespace=namespace, endpoint=name).unlink(missing_ok=True)
            case "FineTuneJob":
                shutil.rmtree(self._home.logs(namespace=namespace, job=name), ignore_errors=True)
        self._tell(manifest)

    def _lock(self) -> int:
        """Wait for the lock; closing the descriptor opens it. Others hold it for as long as one write takes."""
        try:
            self._home.objects.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._home.objects / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._home.unusable(error) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _stored(self, manifest: Manifest) -> Manifest | None:
        metadata = manifest["metadata"]
        return self.read(kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"])

    def _next_version(self, *, after: int) -> str:
        if self._version is None:
            self._version = max((self._version_of(each) for each in self._everything()), default=0)
        self._version = max(self._version, after) + 1
        return str(self._version)

    def _everything(self) -> list[Manifest]:
        files = self._home.objects.glob("*/*/[!.]*.json")
        return [manifest for path in files if (manifest := read_json(path)) is not None]

    @staticmethod
    def _version_of(manifest: dict[str, Any]) -> int:
        return int(manifest["metadata"].get("resourceVersion") or 0)

    def _tell(self, manifest: Manifest) -> None:
        for listener in self._listeners:
            listener(manifest)
