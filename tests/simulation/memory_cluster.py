"""The Cluster port in memory: what of Kubernetes' API machinery the operator relies on, and nothing else.

UIDs, resourceVersions and generations, the status subresource, create-only, server-side apply of one manager, deletion
with UID preconditions, garbage collection by owner references, and pods that take their grace period to end. No
controllers: tests play Job controller and kubelet through `edit` and `remove`.
"""

from __future__ import annotations

import json
import marshal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError

from finetune_api.crd import RESOURCES
from finetune_operator.core.ports import (
    AlreadyExistsError,
    Clock,
    ConflictError,
    InvalidError,
    Kind,
    Manifest,
    NotFoundError,
)

T = TypeVar("T")
_Address = tuple[str, str, str]
_TYPES: dict[str, Any] = {each.kind: each.model for each in RESOURCES}


@dataclass(frozen=True, kw_only=True)
class RecordedEvent:
    """An Event, as far as tests look at it."""

    regarding: str
    type: str
    reason: str
    message: str


class MemoryCluster:
    """Objects in a dictionary. What goes in and out is copied."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._objects: dict[_Address, Manifest] = {}
        self._texts: dict[_Address, bytes] = {}
        """Of those that were read, until they change: simulations read far more than they write."""
        self._applied: dict[_Address, Manifest] = {}
        self._version = 0
        self.events: list[RecordedEvent] = []

    # -- the port -----------------------------------------------------------------------------------------------------

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None."""
        address = (kind, namespace, name)
        return self._read(address) if address in self._objects else None

    async def list(
        self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Objects with these labels, sorted by namespace and name."""
        addresses = (each for each in self._objects if each[0] == kind and namespace in (None, each[1]))
        found = {each: self._objects[each]["metadata"].get("labels") or {} for each in sorted(addresses)}
        return [self._read(each) for each, its in found.items() if not labels or labels.items() <= its.items()]

    async def events_about(self, *, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Events about the object with this UID."""
        found = await self.list(kind="Event", namespace=namespace)
        return tuple(each for each in found if (each.get("regarding") or {}).get("uid") == uid)

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Create-only. Status is its own resource and starts empty."""
        address = _address(manifest)
        _validate(manifest)
        if address in self._objects:
            raise AlreadyExistsError(f"{address[0]} {address[2]} already exists")
        created = {key: _copied(value) for key, value in manifest.items() if key != "status"}
        created["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": _rfc3339(self._clock()),
        }
        return self._store(address, created)

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Server-side apply: fields that were applied before and are not now are removed, others' fields stay."""
        address = _address(manifest)
        before, uid = self._objects.get(address), manifest["metadata"].get("uid")
        if uid is None:
            created = await self.create(manifest=manifest)
            self._applied[address] = _copied(manifest)
            return created
        if before is None or before["metadata"]["uid"] != uid:
            raise ConflictError(f"{address[0]} {address[2]} is not the one with UID {uid}")
        _validate(manifest)
        merged = _merged(before, manifest, previous=self._applied.get(address, {}))
        self._applied[address] = _copied(manifest)
        if merged == before:
            return self._read(address)
        if merged.get("spec") != before.get("spec"):
            merged["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        return self._store(address, merged)

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete this very object, and in the background what it owns."""
        found = self._objects.get((kind, namespace, name))
        if found is None:
            return
        if found["metadata"]["uid"] != uid:
            raise ConflictError(f"{kind} {name} has UID {found['metadata']['uid']}, not {uid}")
        self._delete((kind, namespace, name))

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write the status, unless the object has changed since it was read."""
        address = _address(manifest)
        found = self._objects.get(address)
        if found is None:
            raise NotFoundError(f"{address[0]} {address[2]} is gone")
        if found["metadata"]["resourceVersion"] != manifest["metadata"].get("resourceVersion"):
            raise ConflictError(f"{address[0]} {address[2]} has changed since it was read")
        new = {**self._read(address), "status": _copied(manifest.get("status") or {})}
        _validate_status(new)
        return self._read(address) if new == found else self._store(address, new)

    async def record_event(
        self, *, regarding: Manifest, type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Remember it in `events`."""
        name = f"{regarding['kind']}/{regarding['metadata']['name']}"
        self.events.append(RecordedEvent(regarding=name, type=type, reason=reason, message=message))

    # -- for tests: what users, controllers and kubelets do -----------------------------------------------------------

    def edit(self, *, kind: Kind, namespace: str, name: str, change: Callable[[Manifest], None]) -> Manifest:
        """Change an object in place, status and spec alike. Raises NotFoundError."""
        address: _Address = (kind, namespace, name)
        found = self._objects.get(address)
        if found is None:
            raise NotFoundError(f"{kind} {name} is gone")
        changed = self._read(address)
        change(changed)
        if changed == found:
            return changed
        new = _copied(changed)
        if new.get("spec") != found.get("spec"):
            new["metadata"]["generation"] = found["metadata"].get("generation", 1) + 1
        return self._store(address, new)

    def remove(self, *, kind: Kind, namespace: str, name: str) -> None:
        """Take an object away at once, as kubelet does with a pod that has ended."""
        found = self._objects.pop((kind, namespace, name), None)
        if found is not None:
            self._collect(owner_uid=found["metadata"]["uid"])

    def snapshot(self) -> dict[_Address, Manifest]:
        """All objects."""
        return {address: self._read(address) for address in self._objects}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _store(self, address: _Address, manifest: Manifest) -> Manifest:
        self._version += 1
        manifest["metadata"]["resourceVersion"] = str(self._version)
        self._objects[address] = manifest
        self._texts.pop(address, None)
        return self._read(address)

    def _read(self, address: _Address) -> Manifest:
        """A copy of what is stored, which went through `_copied`."""
        text = self._texts.get(address)
        if text is None:
            text = self._texts[address] = marshal.dumps(self._objects[address])
        return cast("Manifest", marshal.loads(text))  # noqa: S302 - our own objects, in memory

    def _delete(self, address: _Address) -> None:
        found = self._objects[address]
        metadata = found["metadata"]
        if found["kind"] == "Pod" and _takes_time_to_end(found):
            if "deletionTimestamp" not in metadata:
                grace = int(found["spec"].get("terminationGracePeriodSeconds", 30))
                metadata["deletionTimestamp"] = _rfc3339(self._clock() + timedelta(seconds=grace))
                metadata["deletionGracePeriodSeconds"] = grace
                self._store(address, found)
            return
        del self._objects[address]
        self._applied.pop(address, None)
        self._collect(owner_uid=metadata["uid"])

    def _collect(self, *, owner_uid: str) -> None:
        """Garbage collection: what has no owner left goes."""
        uids = {found["metadata"]["uid"] for found in self._objects.values()}
        for address, found in list(self._objects.items()):
            owners = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]
            if owner_uid in owners and not uids & set(owners) and address in self._objects:
                self._delete(address)


def _takes_time_to_end(pod: Manifest) -> bool:
    """Kubelet ends a pod that it has begun; one without a node, or that has ended, just goes."""
    finished = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return bool(pod["spec"].get("nodeName")) and not finished


def _address(manifest: Manifest) -> _Address:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata["namespace"], metadata["name"]


def _validate(manifest: Manifest) -> None:
    """Our own types are refused as the apiserver would; the built-in ones are taken as they are."""
    model = _TYPES.get(manifest["kind"])
    if model is None:
        return
    try:
        model.model_validate(manifest)
    except ValidationError as error:
        raise InvalidError(f"{manifest['kind']} {manifest['metadata']['name']} is invalid: {error}") from error


def _validate_status(manifest: Manifest) -> None:
    """Only the status: a spec that a newer schema allowed stays as it is."""
    try:
        if (model := _TYPES.get(manifest["kind"])) is not None:
            model.model_fields["status"].annotation.model_validate(manifest["status"])
    except ValidationError as error:
        raise InvalidError(f"{manifest['kind']} {manifest['metadata']['name']} is invalid: status: {error}") from error


def _merged(before: Manifest, wanted: Manifest, *, previous: Manifest) -> Manifest:
    """`wanted` over `before`, without what only `previous` had. Lists are taken whole."""
    kept = {key: _copied(value) for key, value in before.items() if key in wanted or key not in previous}
    for key, value in wanted.items():
        old, last = before.get(key), previous.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            kept[key] = _merged(old, value, previous=last if isinstance(last, dict) else {})
        else:
            kept[key] = _copied(value)
    return kept


def _copied(value: T) -> T:
    """A copy of plain data, by way of JSON: what does not survive that would not survive a real apiserver."""
    return cast("T", json.loads(json.dumps(value)))


def _rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
