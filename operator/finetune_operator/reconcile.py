"""observe -> decide -> act -> one status write.

The only place where decisions meet the cluster. What follows from a fact is done at the look after the one that
recorded it, so the operator may be killed between any two writes. Events and counters go out after the status write has
succeeded.

Deciding is pure and belongs to the kind: job/ today, a ModelEndpoint's package beside it (`reconcile` picks by kind).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob, FineTuneJobStatus
from finetune_operator.config import OperatorConfig
from finetune_operator.job.conditions import State
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision, Evaluated, Event, Finished, Observation, PhaseLeft, Restarted
from finetune_operator.job.finish import events_between, held
from finetune_operator.job.restarts import Budget
from finetune_operator.metrics import Metrics
from finetune_operator.observe_job import is_owned, observe_job
from finetune_operator.ports import (
    AlreadyExistsError,
    Clock,
    Cluster,
    ConflictError,
    Door,
    InvalidError,
    Key,
    Manifest,
    NotFoundError,
    ProgressSource,
    UnavailableError,
)
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

_STEPS = 16
"""Looks in a row that one call may take: far more than any chain of records needs."""
_CONFLICTS = 3
"""Looks in a row that may meet a change by somebody else."""
_STATUS_FIELDS = frozenset(field.alias or name for name, field in FineTuneJobStatus.model_fields.items())
_HELD_SECONDS = 60.0
"""How often to try again what the cluster refuses."""


class Reconciler:
    """Brings one object at a time closer to what it should be. Keeps nothing between calls but metrics."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        config: OperatorConfig,
        progress: ProgressSource,
        clock: Clock,
        metrics: Metrics,
        door: Callable[[], Door | None],
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._progress = progress
        self._clock = clock
        self._metrics = metrics
        self._door = door

    async def reconcile(self, key: Key) -> float | None:
        """Look at one object and do what it needs. Seconds until the next look, None where an event will tell.

        Raises what stands in the way: UnavailableError, ConflictError, or anything at all where our own code is wrong.
        The caller waits and tries again; other objects are not concerned.
        """
        started = time.monotonic()
        try:
            if key.kind == "FineTuneJob":
                return await self._reconcile_job(key)
            return None
        except Exception as error:
            self._metrics.reconcile_errors.labels(_reason_of(error)).inc()
            raise
        finally:
            self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)

    async def _reconcile_job(self, key: Key) -> float | None:
        manifest: Manifest | None = None
        conflicts = 0
        for _ in range(_STEPS):
            if manifest is None:
                manifest = await self._cluster.get(kind=key.kind, namespace=key.namespace, name=key.name)
            if manifest is None:
                self._metrics.forget(key=key)
                return None
            try:
                requeue, manifest = await self._step(key=key, manifest=manifest)
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

    async def _step(self, *, key: Key, manifest: Manifest) -> tuple[float | None, Manifest | None]:
        """One look. Gives the seconds until the next one, and the object as it is now where that is known."""
        try:
            job = FineTuneJob.from_object(manifest)
        except ValidationError as error:
            await self._hold(key=key, manifest=manifest, state="Stalled", reason="NotSupported", message=_words(error))
            return None, None
        try:
            decision = await self._decide(job)
            await self._act(job=job, decision=decision)
        except InvalidError as error:
            message = f"the cluster refuses what the run needs: {error}"
            await self._hold(key=key, manifest=manifest, state="Stalled", reason="ChildRefused", message=message)
            return _HELD_SECONDS, None
        except (UnavailableError, ConflictError, NotFoundError):
            raise
        except AlreadyExistsError as error:
            await self._hold(key=key, manifest=manifest, state="Reconciling", reason="NameTaken", message=str(error))
            raise
        except Exception as error:
            log.exception("%s: the operator failed", key)
            message = f"the operator failed and tries again: {type(error).__name__}: {error}"
            await self._hold(key=key, manifest=manifest, state="Reconciling", reason="InternalError", message=message)
            raise
        if decision.status is None:
            self._show(key=key, status=job.status)
            return decision.requeue_seconds, None
        written = await self._write(manifest=manifest, status=decision.status, events=decision.events)
        self._count(key=key, status=decision.status, observations=decision.observations)
        if decision.status.phase in TERMINAL_PHASES:
            self._progress.forget(uid=job.metadata.uid)
        return decision.requeue_seconds, written

    async def _decide(self, job: FineTuneJob) -> Decision:
        observed = await observe_job(
            cluster=self._cluster,
            job=job,
            now=self._clock(),
            config=self._config,
            progress=self._progress,
            door=self._door(),
        )
        return decide(observed)

    # -- acting -------------------------------------------------------------------------------------------------------

    async def _act(self, *, job: FineTuneJob, decision: Decision) -> None:
        for child in decision.delete:
            await self._cluster.delete(kind=child.kind, namespace=child.namespace, name=child.name, uid=child.uid)
        if decision.forget_progress:
            self._progress.forget(uid=job.metadata.uid)
        if not decision.create:
            return
        # Whatever the last one needs must be there before it; the others do not depend on each other.
        *needed, last = decision.create
        await asyncio.gather(*(self._create(job=job, manifest=manifest) for manifest in needed))
        await self._create(job=job, manifest=last)

    async def _create(self, *, job: FineTuneJob, manifest: Manifest) -> None:
        """Create a child; one of ours that is there already was made by an earlier look that did not get further."""
        try:
            await self._cluster.create(manifest=manifest)
        except AlreadyExistsError as error:
            kind, metadata = manifest["kind"], manifest["metadata"]
            existing = await self._cluster.get(kind=kind, namespace=metadata["namespace"], name=metadata["name"])
            if existing is not None and (_is_version_of(existing, job=job) or is_owned(existing, uid=job.metadata.uid)):
                return
            raise AlreadyExistsError(
                f"{kind} {metadata['name']} exists and is not this job's; waiting for it to go: delete it, or give the "
                "job another name"
            ) from error

    async def _write(self, *, manifest: Manifest, status: FineTuneJobStatus, events: tuple[Event, ...]) -> Manifest:
        """The one status write, and then what is told of it. What a newer operator has written there stays."""
        unknown = {name: value for name, value in (manifest.get("status") or {}).items() if name not in _STATUS_FIELDS}
        written = await self._cluster.replace_status(manifest={**manifest, "status": unknown | status.to_dict()})
        for event in events:
            await self._cluster.record_event(
                regarding=manifest, type=event.type, reason=event.reason, message=event.message
            )
        return written

    async def _hold(self, *, key: Key, manifest: Manifest, state: State, reason: str, message: str) -> None:
        """Say in the conditions why nothing can be done. Nothing is written twice."""
        before = _readable_status(manifest.get("status"))
        after = held(
            status=before,
            state=state,
            reason=reason,
            message=message,
            generation=manifest["metadata"].get("generation", 0),
            now=self._clock(),
        )
        if after.to_dict() != before.to_dict():
            events = events_between(before=before, after_=after)
            await self._write(manifest=manifest, status=after, events=events)
        self._show(key=key, status=after)

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _count(self, *, key: Key, status: FineTuneJobStatus, observations: tuple[Observation, ...]) -> None:
        self._show(key=key, status=status)
        for observation in observations:
            match observation:
                case Restarted(cause=cause, budget=budget, steps_lost=steps_lost):
                    self._metrics.restarts.labels(cause).inc()
                    self._metrics.steps_lost.inc(steps_lost)
                    if budget is Budget.PREEMPTIONS:
                        self._metrics.preemptions.inc()
                case PhaseLeft(phase=phase, seconds=seconds):
                    self._metrics.phase_seconds.labels(phase).observe(seconds)
                case Evaluated(verdict=verdict):
                    self._metrics.verdicts.labels(verdict).inc()
                    if status.evaluation is not None:
                        self._metrics.show_evaluation(key=key, evaluation=status.evaluation)
                case Finished(phase=phase):
                    self._metrics.finished.labels(phase).inc()

    def _show(self, *, key: Key, status: FineTuneJobStatus) -> None:
        phase = status.phase or "Pending"
        self._metrics.show_phase(key=key, phase=phase)
        if phase == "Training" and status.trainer_status is not None:
            self._metrics.show_training(key=key, status=status.trainer_status)
        elif phase in TERMINAL_PHASES:
            self._metrics.hide_training(key=key)


async def run_workers(*, queue: WorkQueue[Key], workers: int) -> None:
    """Work on the queue until cancelled."""
    await queue.run(workers=workers)


def _is_version_of(manifest: Manifest, *, job: FineTuneJob) -> bool:
    lineage: dict[str, Any] = (manifest.get("spec") or {}).get("lineage") or {}
    return manifest.get("kind") == "ModelVersion" and (lineage.get("job") or {}).get("uid") == job.metadata.uid


def _readable_status(status: Any) -> FineTuneJobStatus:
    try:
        return FineTuneJobStatus.model_validate(status or {})
    except ValidationError:
        return FineTuneJobStatus()


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}; this version of the operator cannot read it, a newer one may"


def _reason_of(error: Exception) -> str:
    if isinstance(error, UnavailableError):
        return "Unavailable"
    if isinstance(error, ConflictError | NotFoundError):
        return "Conflict"
    return "Refused" if isinstance(error, InvalidError | AlreadyExistsError) else "Internal"
