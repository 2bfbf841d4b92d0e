"""FineTuneJobs in the reconcile loop: observe one, decide (job/, pure), show what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob, FineTuneJobStatus
from finetune_operator.config import OperatorConfig
from finetune_operator.controller import Look, State
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision, Evaluated, Finished, Observation, PhaseLeft, Restarted
from finetune_operator.job.finish import events_between, held
from finetune_operator.job.restarts import Budget
from finetune_operator.metrics import Metrics
from finetune_operator.observe_job import observe_job
from finetune_operator.ownership import is_owned
from finetune_operator.ports import Clock, Cluster, Door, Key, Manifest, ProgressSource

_STATUS_FIELDS = frozenset(field.alias or name for name, field in FineTuneJobStatus.model_fields.items())


class JobController:
    """See controller.Controller."""

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

    async def look(self, *, manifest: Manifest) -> Look:
        """Observe and decide. A spec that this operator cannot read is left to a newer one."""
        try:
            job = FineTuneJob.from_object(manifest)
        except ValidationError as error:
            return self.hold(manifest=manifest, state="Stalled", reason="NotSupported", message=_words(error))
        observed = await observe_job(
            cluster=self._cluster,
            job=job,
            now=self._clock(),
            config=self._config,
            progress=self._progress,
            door=self._door(),
        )
        return self._look_of(decide(observed), job=job, manifest=manifest)

    def hold(self, *, manifest: Manifest, state: State, reason: str, message: str) -> Look:
        """The conditions that say why nothing can be done now; nothing is said twice."""
        before = _readable_status(manifest)
        after = held(
            status=before,
            state=state,
            reason=reason,
            message=message,
            generation=manifest["metadata"].get("generation", 0),
            now=self._clock(),
        )
        if after.to_dict() == before.to_dict():
            return Look()
        return Look(
            status=_merged(manifest, after),
            events=events_between(before=before, after_=after),
            afterwards=lambda: self._show(key=_key_of(manifest), status=after),
        )

    def gone(self, *, key: Key) -> None:
        """Its gauges go with it."""
        self._metrics.forget(key=key)

    def owns(self, *, manifest: Manifest, child: Manifest) -> bool:
        """A child is owned; a ModelVersion, which nobody owns, names its job."""
        uid = manifest["metadata"]["uid"]
        if child.get("kind") == "ModelVersion":
            lineage: dict[str, Any] = (child.get("spec") or {}).get("lineage") or {}
            return bool((lineage.get("job") or {}).get("uid") == uid)
        return is_owned(child, uid=uid)

    def _look_of(self, decision: Decision, *, job: FineTuneJob, manifest: Manifest) -> Look:
        key, uid = _key_of(manifest), job.metadata.uid
        status = decision.status or job.status

        def before_create() -> None:
            if decision.forget_progress:
                self._progress.forget(uid=uid)

        def afterwards() -> None:
            self._show(key=key, status=status)
            self._count(key=key, status=status, observations=decision.observations)
            if status.phase in TERMINAL_PHASES:
                self._progress.forget(uid=uid)

        return Look(
            delete=decision.delete,
            create=decision.create,
            status=_merged(manifest, decision.status) if decision.status is not None else None,
            events=decision.events,
            requeue_seconds=decision.requeue_seconds,
            before_create=before_create,
            afterwards=afterwards,
        )

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _show(self, *, key: Key, status: FineTuneJobStatus) -> None:
        phase = status.phase or "Pending"
        self._metrics.show_phase(key=key, phase=phase)
        if phase == "Training" and status.trainer_status is not None:
            self._metrics.show_training(key=key, status=status.trainer_status)
        elif phase in TERMINAL_PHASES:
            self._metrics.hide_training(key=key)

    def _count(self, *, key: Key, status: FineTuneJobStatus, observations: tuple[Observation, ...]) -> None:
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


def _key_of(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return Key(kind="FineTuneJob", namespace=metadata["namespace"], name=metadata["name"])


def _merged(manifest: Manifest, status: FineTuneJobStatus) -> dict[str, Any]:
    """The new status, with what a newer operator has written there and this one does not know."""
    unknown = {name: value for name, value in (manifest.get("status") or {}).items() if name not in _STATUS_FIELDS}
    return unknown | status.to_dict()


def _readable_status(manifest: Manifest) -> FineTuneJobStatus:
    try:
        return FineTuneJobStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return FineTuneJobStatus()


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}; this version of the operator cannot read it, a newer one may"
