"""The Cluster port on a real apiserver."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

from finetune_operator.core.ports import FIELD_MANAGER, ConflictError, InvalidError, Kind, Manifest, NotFoundError
from finetune_operator.kube.api import APPLY_PATCH, JSON, MERGE_PATCH, YAML, Api
from finetune_operator.kube.kinds import PLACES, place_of

log = logging.getLogger(__name__)

_MAXIMUM_NOTE_CHARACTERS = 1024


class KubernetesCluster:
    """Live reads and guarded writes (ports.Cluster).

    `namespaces` are those that the operator watches; empty: all. `reporter` names this process in Events.
    """

    def __init__(self, *, api: Api, namespaces: tuple[str, ...] = (), reporter: str = FIELD_MANAGER) -> None:
        self._api = api
        self._namespaces = namespaces
        self._reporter = reporter

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        try:
            return await self._api.request(method="GET", path=PLACES[kind].item(namespace=namespace, name=name))
        except NotFoundError:
            return None

    async def list(
        self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Objects with these labels, sorted by namespace and name. A type that is not installed has none."""
        place = PLACES[kind]
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        query = [("labelSelector", selector)] if selector else []
        scopes: tuple[str | None, ...] = (namespace,) if namespace else (self._namespaces or (None,))
        found: list[Manifest] = []
        try:
            for scope in scopes:
                async for item in self._api.pages(path=place.collection(namespace=scope), query=query):
                    # Items of a list come without their type.
                    found.append({"apiVersion": place.api_version, "kind": kind, **item})
        except NotFoundError:
            return []
        return sorted(found, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))

    async def events_about(self, *, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Events about the object with this UID: the apiserver picks them out."""
        path = PLACES["Event"].collection(namespace=namespace)
        query = [("fieldSelector", f"regarding.uid={uid}")]
        return tuple([each async for each in self._api.pages(path=path, query=query)])

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Create-only."""
        return await self._api.request(
            method="POST",
            path=place_of(manifest=manifest).collection(namespace=manifest["metadata"]["namespace"]),
            query=[("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")],
            **_sent(manifest),
        )

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Server-side apply to the very object that was seen, forced: what we own, we own. The apiserver refuses
        another UID. What was not there is only created: an apply would write over whatever came meanwhile.
        """
        if "uid" not in manifest["metadata"]:
            return await self.create(manifest=manifest)
        try:
            applied = await self._apply(manifest)
        except InvalidError as error:
            # What stays from the creation may be in the way: the owner before a restore, of which there can be one.
            applied = await self._created(manifest) if "ownerReferences" in str(error) else {}
            if not applied:
                raise
        entries = applied["metadata"].get("managedFields") or ()
        if not any(_is_creation(each) for each in entries):
            return applied
        # Fields that were created and are not applied any more stay, until creating counts as applying.
        await self._change(applied, managed_fields=[_as_applied(each) for each in entries if not _is_applied(each)])
        return await self._apply(manifest)

    async def _created(self, manifest: Manifest) -> Manifest:
        """The very object that the manifest is meant for, where something of its creation is left; else nothing."""
        found = await self._api.request(method="GET", path=_path(manifest))
        same = found["metadata"]["uid"] == manifest["metadata"]["uid"]
        return found if same and any(map(_is_creation, found["metadata"].get("managedFields") or ())) else {}

    async def _apply(self, manifest: Manifest) -> Manifest:
        try:
            return await self._api.request(
                method="PATCH",
                path=_path(manifest),
                query=[("fieldManager", FIELD_MANAGER), ("force", "true"), ("fieldValidation", "Strict")],
                body=manifest,
                content_type=APPLY_PATCH,
            )
        except InvalidError as error:
            if "metadata.uid" in str(error):
                raise ConflictError(str(error)) from error
            raise

    async def _change(self, manifest: Manifest, *, managed_fields: Sequence[Manifest]) -> None:
        """Who manages what of just this version of the object."""
        version = manifest["metadata"]["resourceVersion"]
        metadata = {"managedFields": [*managed_fields], "resourceVersion": version}
        await self._api.request(
            method="PATCH",
            path=_path(manifest),
            query=[("fieldManager", FIELD_MANAGER)],
            body={"metadata": metadata},
            content_type=MERGE_PATCH,
        )

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete this very object, its dependants in the background."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._api.request(
                method="DELETE", path=PLACES[kind].item(namespace=namespace, name=name), body=options
            )
        except NotFoundError:
            return

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write the status as a whole, unless the object has changed since it was read."""
        metadata = manifest["metadata"]
        return await self._api.request(
            method="PUT",
            path=place_of(manifest=manifest).item(namespace=metadata["namespace"], name=metadata["name"]) + "/status",
            query=[("fieldManager", FIELD_MANAGER)],
            body=manifest,
        )

    async def record_event(
        self, *, regarding: Manifest, type: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Publish an Event. Losing one loses nothing but the Event."""
        try:
            await self._api.request(
                method="POST",
                path=PLACES["Event"].collection(namespace=regarding["metadata"]["namespace"]),
                body=self._event(regarding=regarding, type=type, reason=reason, message=message),
            )
        except Exception as error:
            log.warning("Event %s about %s was lost: %s", reason, regarding["metadata"]["name"], error)

    def _event(self, *, regarding: Manifest, type: str, reason: str, message: str) -> Manifest:
        metadata: dict[str, Any] = regarding["metadata"]
        # Event names share the 253 characters with the object's name.
        name = f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}"
        return {
            "apiVersion": PLACES["Event"].api_version,
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"finetune.dev/{FIELD_MANAGER}",
            "reportingInstance": self._reporter[:128],
            "action": "Reconcile",
            "type": type,
            "reason": reason[:128],
            "note": message[:_MAXIMUM_NOTE_CHARACTERS],
            "regarding": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata.get("uid", ""),
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
        }


_NOT_IN_YAML = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)}


def _path(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return place_of(manifest=manifest).item(namespace=metadata["namespace"], name=metadata["name"])


def _is_creation(entry: Mapping[str, Any]) -> bool:
    """Whether it says what we had when we created the object."""
    return (entry.get("manager"), entry.get("operation"), entry.get("subresource")) == (FIELD_MANAGER, "Update", None)


def _is_applied(entry: Mapping[str, Any]) -> bool:
    return (entry.get("manager"), entry.get("operation")) == (FIELD_MANAGER, "Apply")


def _as_applied(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "operation": "Apply"} if _is_creation(entry) else entry


class _Sent(TypedDict):
    body: Manifest | str
    content_type: str


def _sent(manifest: Manifest) -> _Sent:
    """A ControllerRevision's data is kept byte by byte as it was sent, and must never change. Any later patch, if only
    of the metadata, writes it anew in Go's JSON and is refused where the bytes differ; even the garbage collector's.
    Sent as YAML it is Go's JSON from the beginning; every JSON text is YAML too, but for characters that YAML refuses
    or takes for the end of a line: those are escaped. All others are not, since YAML knows no surrogate pairs."""
    if manifest["kind"] != "ControllerRevision":
        return {"body": manifest, "content_type": JSON}
    return {"body": json.dumps(manifest, ensure_ascii=False).translate(_NOT_IN_YAML), "content_type": YAML}
