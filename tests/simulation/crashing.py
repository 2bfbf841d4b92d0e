"""Clusters at which the operator dies: at a chosen write, or at each of them."""

from __future__ import annotations

import asyncio
import gc
import os
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from finetune_operator.core.ports import Cluster, Kind, Manifest

_WORDS = 1 << 15
"""Bytes that a fork says at once, without anybody reading."""


class KilledError(BaseException):
    """The operator process is gone. Not an Exception: nothing in it may catch its own end."""


class CountingCluster:
    """Passes everything on, and lists the writes."""

    def __init__(self, *, inner: Cluster) -> None:
        self._inner = inner
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


class CrashingCluster(CountingCluster):
    """Instead of the write with this number (from 1) the operator dies."""

    def __init__(self, *, inner: Cluster, kill_at: int | None = None) -> None:
        super().__init__(inner=inner)
        self._kill_at = kill_at

    def _count(self, what: str) -> None:
        super()._count(what)
        if len(self.writes) == self._kill_at:
            raise KilledError(what)


class ForkingCluster(CountingCluster):
    """At each write this process forks, and in the fork the operator dies in its place: no story is played twice.

    `but_repeats`: not at writes that repeat the two before them, as those of progress do.
    """

    def __init__(self, *, inner: Cluster, but_repeats: bool = False) -> None:
        super().__init__(inner=inner)
        self._but_repeats = but_repeats
        self.kills = 0
        self.failures: list[str] = []
        """What forks said of themselves."""
        self.where: str | None = None
        """In a fork: the write at which the operator died."""
        self._words = -1

    async def play(self, story: Callable[[], Awaitable[None]]) -> None:
        """Play a story to its end, in this process and in all its forks. What a fork raises is in `failures`."""
        gc.freeze()  # a collection would copy into each fork all that there is
        try:
            await story()
        except BaseException:
            if self.where is None:
                raise
            self._end(traceback.format_exc())
        finally:
            gc.unfreeze()
        if self.where is not None:
            self._end("")

    def _count(self, what: str) -> None:
        super()._count(what)
        if self.where is not None or (self._but_repeats and self.writes[-3:] == [what] * 3):
            return
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        child = os.fork()
        if child == 0:
            asyncio._set_running_loop(loop)  # asyncio takes it away in forks; this one does no I/O
            self.where, self._words = f"killed at write {len(self.writes)} ({what})", writer
            raise KilledError(what)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            words = pipe.read()
        _, status = os.waitpid(child, 0)
        self.kills += 1
        if words or status:
            self.failures.append(f"killed at write {len(self.writes)} ({what}): {words or status}")

    def _end(self, words: str) -> NoReturn:
        os.write(self._words, words.encode()[-_WORDS:])
        os._exit(0)
