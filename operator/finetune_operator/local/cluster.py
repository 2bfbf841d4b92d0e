"""The Cluster port over a folder: the rules of an apiserver that the operator relies on."""

from __future__ import annotations

import contextlib
import copy
import json
import secrets
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from finetune_api import API_VERSION
from finetune_operator.core.ownership import controller_of
from finetune_operator.core.ports import (
    AlreadyExistsError,
    Clock,
    ConflictError,
    Kind,
    Manifest,
    NotFoundError,
)
from finetune_operator.local.home import LocalHome
from finetune_operator.local.secrets_files import secret_manifest
from finetune_operator.local.store import ObjectStore
from finetune_operator.validation import admit, validate_status

_SYSTEM_FIELDS = ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields")
_DEFAULT_GRACE_SECONDS = 30
_APPLIED_ANNOTATION = "local.finetune.dev/applied"
"""Holds the operator's last applied configuration; shown to nobody."""
_KINDS: tuple[Kind, ...] = get_args(Kind)


def utc_now() -> datetime:
    """The time now."""
    return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """A time as Kubernetes writes it: whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class LocalCluster:
    """Objects in a folder. Whoever writes must hold the home's lock, except for `submit` and `annotate`.

    A pod that runs is only marked for deletion, as by an apiserver: `stop_pod` is asked to end its processes, and
    whoever does that removes the object afterwards (`finalize`).
    """

    def __init__(self, *, home: LocalHome, clock: Clock = utc_now) -> None:
        self.store = ObjectStore(home=home)
        self._home = home
        self._clock = clock
        self._is_running: Callable[[Manifest], bool] = lambda pod: False

    def runs_pods(self, *, is_running: Callable[[Manifest], bool]) -> None:
        """Pods of which this is true are not removed at once when they are deleted."""
        self._is_running = is_running

    # -- the port ------------------------------------------------------------------------------------------------------

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None. Claims and Secrets are folders and files of the home."""
        found = self.store.read(kind=kind, namespace=namespace, name=name)
        if found is None and kind == "PersistentVolumeClaim":
            found = self._claim(namespace=namespace, name=name)
        if found is None and kind == "Secret":
            found = secret_manifest(path=self._home.secret(name=name), namespace=namespace, name=name)
        return None if found is None else _shown(found)

    async def list(
        self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Objects that carry all these labels, sorted by namespace and name."""
        return [_shown(each) for each in self.store.find(kind=kind, namespace=namespace, labels=labels)]

    async def events_about(self, *, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Events about the object with this UID."""
        found = await self.list(kind="Event", namespace=namespace)
        return tuple(each for each in found if (each.get("regarding") or {}).get("uid") == uid)

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Create-only. Raises AlreadyExistsError, InvalidError."""
        return _shown(self._create(manifest))

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Create the object, or change what the operator owns of the one with this UID."""
        wanted = copy.deepcopy(manifest)
        wanted.pop("status", None)
        uid = wanted["metadata"].pop("uid", None)
        if uid is None:
            return _shown(self._create(wanted, applied=wanted))
        current = self._read(wanted)
        if current is None or current["metadata"]["uid"] != uid:
            raise ConflictError(f'{wanted["kind"]} "{wanted["metadata"]["name"]}" is not the one with UID {uid}')
        before = json.loads((current["metadata"].get("annotations") or {}).get(_APPLIED_ANNOTATION, "{}"))
        merged = _applied_onto(current, before, wanted)
        return _shown(self._update(current, _with_applied(merged, wanted)))

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete this very object; its dependants follow. Raises ConflictError for another UID."""
        with self.store.alone():
            current = self.store.read(kind=kind, namespace=namespace, name=name)
            if current is None:
                return
            if current["metadata"]["uid"] != uid:
                raise ConflictError(
                    f'{kind} "{name}": the UID in the precondition ({uid}) is not the object\'s'
                    f" ({current['metadata']['uid']})"
                )
            self._delete(current)

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write the status as a whole, unless the object has changed since it was read."""
        with self.store.alone():
            return _shown(self._replace_status(manifest))

    def _replace_status(self, manifest: Manifest) -> Manifest:
        current = self._read(manifest)
        metadata = manifest["metadata"]
        if current is None or (metadata.get("uid") and metadata["uid"] != current["metadata"]["uid"]):
            raise NotFoundError(f'{manifest["kind"]} "{metadata["name"]}" not found')
        if metadata.get("resourceVersion") != current["metadata"]["resourceVersion"]:
            raise ConflictError(f'{manifest["kind"]} "{metadata["name"]}": the object has been modified')
        status = validate_status(manifest, current) if _is_ours(manifest) else manifest.get("status", {})
        if status == current.get("status"):
            return current
        return self.store.write({**current, "status": status})

    async def record_event(
        self, *, regarding: Manifest, type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Keep an Event beside the object; it goes when the object goes."""
        metadata = regarding["metadata"]
        event: Manifest = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": metadata["namespace"],
                "ownerReferences": [_reference(regarding)],
            },
            "eventTime": self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": type,
            "reason": reason,
            "note": message[:1024],
            "regarding": _reference(regarding) | {"namespace": metadata["namespace"]},
        }
        with contextlib.suppress(Exception):  # losing an Event loses nothing else
            self._create(event)

    # -- what users do -------------------------------------------------------------------------------------------------

    def submit(self, *, manifest: Manifest) -> Manifest:
        """What `kubectl apply` does for a user: create the object, or change its spec. Raises InvalidError."""
        with self.store.alone():
            current = self._read(manifest)
            if current is None:
                return _shown(self._create(manifest))
            annotations = [each["metadata"].get("annotations") or {} for each in (current, manifest)]
            metadata = {**current["metadata"], **manifest["metadata"], "annotations": annotations[0] | annotations[1]}
            metadata = {key: value for key, value in metadata.items() if key != "annotations" or value}
            changed = {**manifest, "metadata": metadata}
            return _shown(self._update(current, changed))

    def annotate(self, *, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str | None]) -> Manifest:
        """What `kubectl annotate` does for a user, at once for all; None removes. Raises NotFoundError, InvalidError.

        It does not need the home's lock: whoever works in the home sees the new file.
        """
        with self.store.alone():
            current = self.store.read(kind=kind, namespace=namespace, name=name)
            if current is None:
                raise NotFoundError(f'{kind} "{name}" not found')
            merged = {**(current["metadata"].get("annotations") or {}), **annotations}
            kept = {key: value for key, value in merged.items() if value is not None}
            metadata = {key: value for key, value in current["metadata"].items() if key != "annotations"}
            metadata |= {"annotations": kept} if kept else {}
            return _shown(self._update(current, {**current, "metadata": metadata}))

    # -- what kubelet and the controllers do ---------------------------------------------------------------------------

    def set_status(self, manifest: Manifest, status: dict[str, Any]) -> Manifest | None:
        """Write the status of a Pod or a Job that nobody else writes. None: the object is gone, or another one."""
        current = self.current(manifest)
        if current is None or current.get("status") == status:
            return current
        return self.store.write({**current, "status": status})

    def current(self, manifest: Manifest) -> Manifest | None:
        """The very object as it is now. None: it is gone, or another one has its name."""
        found = self._read(manifest)
        return found if found is not None and found["metadata"]["uid"] == manifest["metadata"]["uid"] else None

    def owner_of(self, pod: Manifest) -> Manifest | None:
        """The Job or the Deployment that a pod belongs to, None where it is gone."""
        owner = controller_of(pod)
        return self.current({**owner, "metadata": {**pod["metadata"], **owner}}) if owner else None

    def add_pod(
        self, owner: Manifest, *, part: str, labels: dict[str, str], annotations: dict[str, str], forever: bool
    ) -> Manifest:
        """A pod by its owner's template, `part` in its name. `forever`: its containers are started again and again."""
        metadata, template, uid = owner["metadata"], owner["spec"]["template"], str(uuid.uuid4())
        described, now = template.get("metadata") or {}, rfc3339(self._clock())
        placed = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}]
        pod: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{metadata['name']}-{part}-{uid[:5]}",
                "namespace": metadata["namespace"],
                "uid": uid,
                "creationTimestamp": now,
                "labels": {**(described.get("labels") or {}), **labels},
                "annotations": {**(described.get("annotations") or {}), **annotations},
                "ownerReferences": [{**_reference(owner), "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {**template["spec"], **({"restartPolicy": "Always"} if forever else {})},
            "status": {"phase": "Pending", **({"conditions": placed} if forever else {})},
        }
        return self.store.write(pod)

    def finalize(self, pod: Manifest) -> None:
        """Remove a deleted pod whose processes have ended."""
        if (current := self.current(pod)) is not None:
            self._remove(current)

    def delete_pod(self, pod: Manifest) -> None:
        """Delete a pod, gracefully where it runs."""
        if (current := self.current(pod)) is not None:
            self._delete(current)

    def collect_garbage(self) -> None:
        """Remove dependants whose owners are gone: what a crash in the middle of a deletion has left."""
        living = {each["metadata"]["uid"] for kind in _KINDS for each in self.store.find(kind=kind)}
        for kind in _KINDS:
            for each in self.store.find(kind=kind):
                owners = each["metadata"].get("ownerReferences") or ()
                if owners and not any(owner["uid"] in living for owner in owners):
                    self._delete(each)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read(self, manifest: Manifest) -> Manifest | None:
        metadata = manifest["metadata"]
        name = metadata.get("name") or ""
        return self.store.read(kind=manifest["kind"], namespace=metadata.get("namespace") or "default", name=name)

    def _create(self, manifest: Manifest, applied: Manifest | None = None) -> Manifest:
        manifest = copy.deepcopy(manifest)
        stored = admit(manifest) if _is_ours(manifest) else manifest
        metadata = {key: value for key, value in stored["metadata"].items() if key not in _SYSTEM_FIELDS}
        metadata["namespace"] = metadata.get("namespace") or "default"
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        stored["metadata"] = metadata
        if self._read(stored) is not None:
            raise AlreadyExistsError(f'{stored["kind"]} "{metadata["name"]}" already exists')
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": rfc3339(self._clock()), "generation": 1}
        return self.store.write(stored if applied is None else _with_applied(stored, applied))

    def _update(self, current: Manifest, wanted: Manifest) -> Manifest:
        """Everything but the status, which belongs to its subresource."""
        system = {key: current["metadata"][key] for key in _SYSTEM_FIELDS if key in current["metadata"]}
        wanted = {**wanted, "metadata": {**wanted["metadata"], **system}}
        changed = admit(wanted, current) if _is_ours(wanted) else wanted
        if "status" in current:
            changed["status"] = current["status"]
        if _without_metadata(changed) != _without_metadata(current):
            changed["metadata"]["generation"] = current["metadata"].get("generation", 0) + 1
        return current if changed == current else self.store.write(changed)

    def _delete(self, manifest: Manifest) -> None:
        if manifest["kind"] != "Pod" or not self._is_running(manifest):
            self._remove(manifest)
            return
        if manifest["metadata"].get("deletionTimestamp") is None:
            grace = int(manifest["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS))
            due = rfc3339(self._clock() + timedelta(seconds=grace))
            deletion = {"deletionTimestamp": due, "deletionGracePeriodSeconds": grace}
            self.store.write({**manifest, "metadata": {**manifest["metadata"], **deletion}})

    def _remove(self, manifest: Manifest) -> None:
        self.store.remove(manifest)
        uid = manifest["metadata"]["uid"]
        for kind in _KINDS:
            for each in self.store.find(kind=kind):
                owners = each["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == uid for owner in owners):
                    self._release(each, uid)

    def _release(self, dependant: Manifest, owner_uid: str) -> None:
        """Delete a dependant, unless another owner of it lives."""
        others = [owner for owner in dependant["metadata"]["ownerReferences"] if owner["uid"] != owner_uid]
        if others:
            self.store.write({**dependant, "metadata": {**dependant["metadata"], "ownerReferences": others}})
        else:
            self._delete(dependant)

    def _claim(self, *, namespace: str, name: str) -> Manifest | None:
        """A folder as a bound claim that any number of pods may write."""
        if not (self._home.claims / name).is_dir():
            return None
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace, "uid": f"claim-{name}", "resourceVersion": "0"},
            "spec": {"accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound", "accessModes": ["ReadWriteMany"]},
        }


def _is_ours(manifest: Manifest) -> bool:
    return manifest.get("apiVersion") == API_VERSION


def _reference(manifest: Manifest) -> dict[str, Any]:
    metadata = manifest["metadata"]
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
    }


def _applied_onto(current: Any, before: Any, wanted: Any) -> Any:
    """The object after server-side apply of `wanted` by one field manager, where it had applied `before`: what it
    applies no more goes, the rest stays. Lists are replaced as a whole; the operator applies none that others write to.
    """
    if not isinstance(current, dict) or not isinstance(wanted, dict):
        return wanted
    earlier = before if isinstance(before, dict) else {}
    kept = {key: value for key, value in current.items() if key in wanted or key not in earlier}
    return kept | {key: _applied_onto(current.get(key), earlier.get(key), value) for key, value in wanted.items()}


def _without_metadata(manifest: Manifest) -> Manifest:
    return {key: value for key, value in manifest.items() if key not in ("metadata", "status")}


def _with_applied(manifest: Manifest, applied: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    note = json.dumps(applied, sort_keys=True)
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), _APPLIED_ANNOTATION: note}},
    }


def _shown(manifest: Manifest) -> Manifest:
    """Without our own bookkeeping."""
    annotations = manifest["metadata"].get("annotations") or {}
    if _APPLIED_ANNOTATION not in annotations:
        return manifest
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "annotations"}
    rest = {key: value for key, value in annotations.items() if key != _APPLIED_ANNOTATION}
    return {**manifest, "metadata": {**metadata, "annotations": rest} if rest else metadata}
