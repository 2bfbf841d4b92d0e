"""observe -> decide -> act -> one status write.

The only place where decisions meet the cluster, and the same for all kinds: a Controller per kind looks and decides.
What follows from a fact is done at the look after the one that recorded it, so the operator may be killed between any
two writes. Events and counters go out after the status write has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from finetune_api.panics import as_exception
from finetune_operator.core.conditions import State, Summary
from finetune_operator.core.controller import Controller, Look, Surroundings
from finetune_operator.core.ownership import instance_of, whose
from finetune_operator.core.ports import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    Key,
    Kind,
    Manifest,
    NotAllowedError,
    NotFoundError,
    UnavailableError,
)
from finetune_operator.core.reasons import Reason
from finetune_operator.kinds import KINDS
from finetune_operator.metrics import Metrics

log = logging.getLogger(__name__)

_STEPS = 16
"""Looks in a row that one call may take: far more than any chain of records needs."""
_CONFLICTS = 3
"""Looks in a row that may meet a change by somebody else."""
_HELD_SECONDS = 60.0
"""How often to try again what the cluster refuses."""


class _Write(Protocol):
    """Cluster.create or Cluster.apply."""

    async def __call__(self, *, manifest: Manifest) -> Manifest: ...


class Reconciler:
    """Brings one object at a time closer to what it should be. Keeps nothing between calls but metrics."""

    def __init__(self, *, around: Surroundings, metrics: Metrics) -> None:
        self._cluster = around.cluster
        self._metrics = metrics
        self._instance = around.config.instance
        self._excluded = around.config.excluded_namespaces
        self._controllers: Mapping[Kind, Controller] = {
            row.kind: row.controller(around=around, metrics=metrics.kinds[row.kind]) for row in KINDS
        }

    async def reconcile(self, key: Key) -> float | None:
        """Look at one object and do what it needs. Seconds until the next look, None where an event will tell.

        Raises what stands in the way: UnavailableError, ConflictError, or anything at all where our own code is wrong.
        The caller waits and tries again; other objects are not concerned.
        """
        controller = self._controllers.get(key.kind)
        if controller is None or key.namespace in self._excluded:
            return None
        started = time.monotonic()
        try:
            return await self._reconcile(key, controller=controller)
        except BaseException as caught:
            self._metrics.reconcile_errors.labels(_reason_of(as_exception(caught))).inc()
            raise
        finally:
            self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)

    async def _reconcile(self, key: Key, *, controller: Controller) -> float | None:
        manifest: Manifest | None = None
        conflicts = 0
        applied: dict[tuple[str, str], str] = {}
        for _ in range(_STEPS):
            if manifest is None:
                manifest = await self._cluster.get(kind=key.kind, namespace=key.namespace, name=key.name)
            if manifest is None:
                controller.gone(key=key)
                self._metrics.show_foreign(key=key, found=None)
                return None
            if await self._is_foreign(key, manifest=manifest):
                controller.gone(key=key)
                return None  # an event tells when it is handed over
            try:
                requeue, manifest = await self._step(key=key, manifest=manifest, controller=controller, applied=applied)
            except (ConflictError, NotFoundError):
                # Somebody changed or deleted it meanwhile: look again at what there is now.
                conflicts += 1
                if conflicts == _CONFLICTS:
                    raise
                manifest = None
                continue
            if requeue != 0:
                return requeue
        raise RuntimeError(f"{key} was not settled after {_STEPS} looks in a row; this is a fault of the operator")

    async def _step(
        self, *, key: Key, manifest: Manifest, controller: Controller, applied: dict[tuple[str, str], str]
    ) -> tuple[float | None, Manifest | None]:
        """One look. Gives the seconds until the next one, and the object as it is now where that is known.

        `applied`: resourceVersions of children after the last apply of this call, by kind and name.
        """
        try:
            look = await controller.look(manifest=manifest)
            if self._instance and not instance_of(manifest) and (look.delete or look.create or look.apply):
                look = Look(status=manifest.get("status") or {}, requeue_seconds=0)  # first say whose it is
            versions = await self._act(look, manifest=manifest, controller=controller)
            written = await self._record(look, manifest=manifest)
            in_vain = bool(versions) and versions.items() <= applied.items()
            applied |= versions
            if in_vain and look.status is None and not (look.delete or look.create):
                return _HELD_SECONDS, written  # admission takes away what says that it was applied
            return look.requeue_seconds, written
        except (UnavailableError, ConflictError, NotFoundError) as error:
            if isinstance(error, NotAllowedError):
                message = f"the cluster refuses for now what the {manifest['kind']} needs, and is asked again: {error}"
                await self._hold(controller, manifest, "Reconciling", Reason.CHILD_REFUSED, message)
            raise
        except InvalidError as error:
            message = f"the cluster refuses what the {manifest['kind']} needs: {error}"
            await self._hold(controller, manifest, "Stalled", Reason.CHILD_REFUSED, message)
            return _HELD_SECONDS, None
        except AlreadyExistsError as error:
            await self._hold(controller, manifest, "Reconciling", Reason.NAME_TAKEN, str(error))
            raise
        except BaseException as caught:
            failure = as_exception(caught)
            log.exception("%s: the operator failed", key)
            message = f"the operator failed and tries again: {type(failure).__name__}: {failure}"
            await self._hold(controller, manifest, "Reconciling", Reason.INTERNAL_ERROR, message)
            raise failure  # noqa: B904 - it is what was caught, or has it as its cause

    async def _is_foreign(self, key: Key, *, manifest: Manifest) -> bool:
        """Whether it is another operator's object, which is said once. Without an instance nobody asks."""
        other = instance_of(manifest)
        found = (manifest["metadata"]["uid"], other) if self._instance and other not in ("", self._instance) else None
        if self._metrics.show_foreign(key=key, found=found) and found:
            message = (
                f"status.instance is {other!r}, and this operator is {self._instance!r}: it leaves the object alone. "
                f"If {other!r} is gone, hand it over (docs/install.md)"
            )
            await self._cluster.record_event(
                regarding=manifest, type="Warning", reason=Reason.OTHER_INSTANCE, message=message
            )
        return found is not None

    async def _act(self, look: Look, *, manifest: Manifest, controller: Controller) -> dict[tuple[str, str], str]:
        """Gives the resourceVersion of each child that was applied, by kind and name."""
        for child in look.delete:
            await self._cluster.delete(kind=child.kind, namespace=child.namespace, name=child.name, uid=child.uid)
        look.before_create()
        if look.create:
            *needed, last = look.create
            create = self._cluster.create
            await asyncio.gather(*(self._make(each, create, owner=manifest, controller=controller) for each in needed))
            await self._make(last, create, owner=manifest, controller=controller)
        versions = {}
        for each in look.apply:
            made = await self._make(each, self._cluster.apply, owner=manifest, controller=controller)
            versions[made["kind"], made["metadata"]["name"]] = made["metadata"]["resourceVersion"]
        return versions

    async def _make(self, child: Manifest, write: _Write, *, owner: Manifest, controller: Controller) -> Manifest:
        """Write a child; one of its own that is there already was made by an earlier look that got no further."""
        try:
            return await write(manifest=child)
        except (InvalidError, NotAllowedError) as error:
            # A webhook does not say what it refuses.
            raise type(error)(f"{child['kind']} {child['metadata']['name']}: {error}") from error
        except AlreadyExistsError as error:
            kind, metadata = child["kind"], child["metadata"]
            found = await self._cluster.get(kind=kind, namespace=metadata["namespace"], name=metadata["name"])
            if found is None:
                raise ConflictError(f"{kind} {metadata['name']} has just gone") from error
            if controller.owns(manifest=owner, child=found):
                return found
            raise AlreadyExistsError(
                f"{whose(found)}: it is left alone, and what needs the name waits; delete it, or give the "
                f"{owner['kind']} another name"
            ) from error

    async def _record(self, look: Look, *, manifest: Manifest) -> Manifest | None:
        """The one status write, and then what is told of it. None where nothing was to be written."""
        written = None
        if look.status is not None:
            status = look.status | ({"instance": self._instance} if self._instance else {})
            written = await self._cluster.replace_status(manifest={**manifest, "status": status})
            for event in look.events:
                await self._cluster.record_event(
                    regarding=manifest, type=event.type, reason=event.reason, message=event.message
                )
        look.afterwards()
        return written

    async def _hold(self, controller: Controller, manifest: Manifest, state: State, reason: str, message: str) -> None:
        """Say in the conditions why nothing can be done."""
        summary = Summary(state=state, reason=reason, message=message)
        await self._record(controller.hold(manifest=manifest, summary=summary), manifest=manifest)


def _reason_of(error: Exception) -> str:
    if isinstance(error, UnavailableError):
        return "Unavailable"
    if isinstance(error, ConflictError | NotFoundError):
        return "Conflict"
    return "Refused" if isinstance(error, InvalidError | AlreadyExistsError) else "Internal"
