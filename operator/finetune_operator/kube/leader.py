"""Leader election on a coordination.k8s.io/v1 Lease.

Only the leader writes. The rules are those of client-go, and for the same reasons: a candidate measures
on its own monotonic clock how long it has seen the Lease unchanged and never compares times written by other machines;
a leader that could not renew for `renew_deadline_seconds` stops by itself, well before `duration_seconds` lets another
one start. A lost Lease stops the work, not the process: it competes again, so an apiserver that is away for an hour
causes neither a crash loop nor a second leader.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_operator.core.ports import AlreadyExistsError, ConflictError, Manifest, NotFoundError, UnavailableError
from finetune_operator.kube.api import Api, Method

log = logging.getLogger(__name__)

API_VERSION = "coordination.k8s.io/v1"
_RELEASE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """Which Lease, and how long it holds. `identity` must differ between any two processes, restarts included."""

    namespace: str
    name: str
    identity: str
    duration_seconds: int = 15
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry_seconds < self.renew_deadline_seconds < self.duration_seconds:
            raise ValueError("a lease needs retry_seconds < renew_deadline_seconds < duration_seconds")


class Elector:
    """Competes for the Lease. `on_change` is told when this process begins and ends to lead."""

    def __init__(
        self,
        *,
        api: Api,
        settings: LeaseSettings,
        on_change: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._settings = settings
        self._on_change = on_change
        self._clock = clock
        self._lease: Manifest = {}
        self._renewed_at = 0.0

    async def run(self, *, lead: Callable[[], Awaitable[None]]) -> None:
        """Compete until cancelled; while leading, run `lead` and cancel it when the Lease is lost.

        An exception out of `lead` ends the leadership and is raised. RuntimeError: `lead` did not stop when cancelled;
        the Lease is then left to run out, since the work may still be writing.
        """
        while True:
            await self._acquire()
            self._changed(leading=True)
            work = asyncio.ensure_future(lead())
            try:
                await self._hold(work=work)
            finally:
                self._changed(leading=False)
                await self._stop(work)
                await self._release()

    async def _acquire(self) -> None:
        """Return once the Lease is ours."""
        seen: dict[str, Any] | None = None
        seen_at = self._clock()
        while True:
            try:
                lease = await self._read()
                now = self._clock()
                if lease is None:
                    return await self._write(method="POST", lease=self._manifest(transitions=0, version=None))
                spec = lease.get("spec") or {}
                if spec != seen:
                    seen, seen_at = spec, now
                if not spec.get("holderIdentity") or now - seen_at >= float(spec.get("leaseDurationSeconds") or 0):
                    return await self._take(lease=lease)
            except (AlreadyExistsError, ConflictError, NotFoundError):
                log.debug("another candidate was faster")
            except UnavailableError as error:
                log.warning("cannot compete for the lease: %s", error)
            await asyncio.sleep(self._interval())

    async def _hold(self, *, work: asyncio.Future[None]) -> None:
        """Renew until the Lease is lost or the work ends."""
        while True:
            await asyncio.wait({work}, timeout=self._interval())
            if work.done():
                return work.result()
            left = self._renewed_at + self._settings.renew_deadline_seconds - self._clock()
            if left <= 0:
                return log.error("leadership lost: the lease could not be renewed in time")
            try:
                await self._write_own({"renewTime": _now()}, timeout_seconds=left)
            except (ConflictError, NotFoundError):
                return log.error("leadership lost: another process holds the lease")
            except UnavailableError as error:
                log.warning("cannot renew the lease, %.1f s left: %s", left, error)

    async def _take(self, *, lease: Manifest) -> None:
        transitions = int((lease.get("spec") or {}).get("leaseTransitions") or 0) + 1
        version = lease["metadata"]["resourceVersion"]
        await self._write(method="PUT", lease=self._manifest(transitions=transitions, version=version))

    async def _release(self) -> None:
        """Let another process lead at once. Does nothing where the Lease is no longer ours."""
        nobody = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            await self._write_own(nobody, timeout_seconds=_RELEASE_SECONDS)
        except (ConflictError, NotFoundError, UnavailableError) as error:
            log.info("the lease was not released: %s", error)

    async def _write_own(self, spec: dict[str, Any], *, timeout_seconds: float) -> None:
        """Change the Lease that we hold. Raises ConflictError where another process holds it."""

        async def write(lease: Manifest) -> None:
            changed = {**lease, "spec": {**lease["spec"], **spec}}
            await self._write(method="PUT", lease=changed, timeout_seconds=timeout_seconds)

        try:
            await write(self._lease)
        except ConflictError:
            # The answer to an earlier write may have been lost, or cut off by a shutdown: then the newer Lease is ours.
            lease = await self._read()
            if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self._settings.identity:
                raise
            await write(lease)

    async def _stop(self, work: asyncio.Future[None]) -> None:
        """Cancel the work and wait until it has ended: for no longer than the Lease holds, which nobody renews now.

        A process that was frozen finds its Lease over when it wakes up. Its work gets the time to end that the settings
        leave between the deadline to renew and the end of the Lease.
        """
        if work.done():
            return
        work.cancel()
        settings = self._settings
        left = self._renewed_at + settings.duration_seconds - self._clock()
        await asyncio.wait({work}, timeout=max(left, settings.duration_seconds - settings.renew_deadline_seconds))
        if not work.done():
            raise RuntimeError("the work of the leader did not stop while its lease held")
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("the work of the leader failed while it stopped", exc_info=error)

    async def _read(self) -> Manifest | None:
        settings = self._settings
        path = f"/apis/{API_VERSION}/namespaces/{settings.namespace}/leases/{settings.name}"
        try:
            return await self._api.request(method="GET", path=path, timeout_seconds=settings.renew_deadline_seconds)
        except NotFoundError:
            return None

    async def _write(self, *, method: Method, lease: Manifest, timeout_seconds: float | None = None) -> None:
        path = f"/apis/{API_VERSION}/namespaces/{self._settings.namespace}/leases"
        # Measured before the request: the Lease holds from when the apiserver got it, not from when we heard of it.
        started = self._clock()
        self._lease = await self._api.request(
            method=method,
            path=path if method == "POST" else f"{path}/{self._settings.name}",
            body=lease,
            timeout_seconds=timeout_seconds or self._settings.renew_deadline_seconds,
        )
        self._renewed_at = started

    def _manifest(self, *, transitions: int, version: str | None) -> Manifest:
        settings = self._settings
        metadata = {"name": settings.name, "namespace": settings.namespace}
        return {
            "apiVersion": API_VERSION,
            "kind": "Lease",
            "metadata": metadata if version is None else {**metadata, "resourceVersion": version},
            "spec": {
                "holderIdentity": settings.identity,
                "leaseDurationSeconds": settings.duration_seconds,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": transitions,
            },
        }

    def _changed(self, *, leading: bool) -> None:
        log.info("leading" if leading else "no longer leading", extra={"identity": self._settings.identity})
        self._on_change(leading)

    def _interval(self) -> float:
        return self._settings.retry_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
