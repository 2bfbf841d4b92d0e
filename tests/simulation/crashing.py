"""A Cluster that kills the operator at a chosen write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.core.ports import Cluster, Kind, Manifest


class KilledError(BaseException):
    """The operator process is gone. Not an Exception: nothing in it may catch its own end."""


class CrashingCluster:
    """Passes everything on; instead of the write with this number (from 1), the operator dies."""

    def __init__(self, *, inner: Cluster, kill_at: int | None = None) -> None:
        self._inner = inner
        self._kill_at = kill_at
        self.writes: list[str] = []

    async def get(self, *, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Read."""
        return await self._inner.get(kind=kind, namespace=namespace, name=name)

    async def list(
        self, *, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """Read."""
        return await self._inner.list(kind=kind, namespace=namespace, labels=labels)

    async def events_about(self, *, namespace: str, uid: str) -> tuple[Manifest, ...]:
        """Read."""
        return await self._inner.events_about(namespace=namespace, uid=uid)

    async def create(self, *, manifest: Manifest) -> Manifest:
        """Write."""
        self._count(f"create {manifest['kind']} {manifest['metadata']['name']}")
        return await self._inner.create(manifest=manifest)

    async def apply(self, *, manifest: Manifest) -> Manifest:
        """Write."""
        self._count(f"apply {manifest['kind']} {manifest['metadata']['name']}")
        return await self._inner.apply(manifest=manifest)

    async def delete(self, *, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Write."""
        self._count(f"delete {kind} {name}")
        await self._inner.delete(kind=kind, namespace=namespace, name=name, uid=uid)

    async def replace_status(self, *, manifest: Manifest) -> Manifest:
        """Write."""
        self._count(f"status {manifest['status'].get('phase')}")
        return await self._inner.replace_status(manifest=manifest)

    async def record_event(self, **event: Any) -> None:
        """Best effort: not a write that anything depends on."""
        await self._inner.record_event(**event)

    def _count(self, what: str) -> None:
        self.writes.append(what)
        if len(self.writes) == self._kill_at:
            raise KilledError(what)
