"""FineTuneJobs in the reconcile loop: observe one, decide (job/, pure), show what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob, FineTuneJobStatus
from finetune_operator.core.conditions import Summary
from finetune_operator.core.controller import Look, Surroundings
from finetune_operator.core.ownership import is_owned
from finetune_operator.core.ports import Key, Manifest
from finetune_operator.core.reasons import Reason
from finetune_operator.core.status_writing import key_of, merged, readable_status, unreadable
from finetune_operator.job.decide import decide
from finetune_operator.job.decision import Decision
from finetune_operator.job.finish import events_between, held
from finetune_operator.job.metrics import JobMetrics
from finetune_operator.job.observe import observe_job


@dataclass(frozen=True, kw_only=True)
class JobController:
    """See controller.Controller."""

    around: Surroundings
    metrics: JobMetrics

    async def look(self, *, manifest: Manifest) -> Look:
        """Observe and decide. A spec that this operator cannot read is left to a newer one."""
        try:
            job = FineTuneJob.from_object(manifest)
        except ValidationError as error:
            summary = Summary(state="Stalled", reason=Reason.NOT_SUPPORTED, message=unreadable(error))
            return self.hold(manifest=manifest, summary=summary)
        observed = await observe_job(
            cluster=self.around.cluster,
            job=job,
            now=self.around.clock(),
            config=self.around.config,
            progress=self.around.progress,
            door=self.around.door(),
        )
        return self._look_of(decide(observed), job=job, manifest=manifest)

    def hold(self, *, manifest: Manifest, summary: Summary) -> Look:
        """The conditions that say why nothing can be done now; nothing is said twice."""
        before = readable_status(manifest, FineTuneJobStatus)
        generation = manifest["metadata"].get("generation", 0)
        after = held(status=before, summary=summary, generation=generation, now=self.around.clock())
        if after.to_dict() == before.to_dict():
            return Look()
        return Look(
            status=merged(manifest, after),
            events=events_between(before=before, after_=after),
            afterwards=lambda: self.metrics.show(
                key=key_of(manifest), before=before, status=after, now=self.around.clock()
            ),
        )

    def gone(self, *, key: Key) -> None:
        """Its gauges go with it."""
        self.metrics.forget(key=key)

    def owns(self, *, manifest: Manifest, child: Manifest) -> bool:
        """A child is owned; a ModelVersion, which nobody owns, names its job."""
        uid = manifest["metadata"]["uid"]
        if child.get("kind") == "ModelVersion":
            lineage: dict[str, Any] = (child.get("spec") or {}).get("lineage") or {}
            return bool((lineage.get("job") or {}).get("uid") == uid)
        return is_owned(child, uid=uid)

    def _look_of(self, decision: Decision, *, job: FineTuneJob, manifest: Manifest) -> Look:
        key, uid = key_of(manifest), job.metadata.uid
        status = decision.status or job.status

        def before_create() -> None:
            if decision.forget_progress:
                self.around.progress.forget(uid=uid)

        def afterwards() -> None:
            now = self.around.clock()
            self.metrics.show(key=key, before=job.status, status=status, now=now, restarted=decision.restarted)
            if status.phase in TERMINAL_PHASES:
                self.around.progress.forget(uid=uid)

        return Look(
            delete=decision.delete,
            create=decision.create,
            status=merged(manifest, decision.status) if decision.status is not None else None,
            events=decision.events,
            requeue_seconds=decision.requeue_seconds,
            before_create=before_create,
            afterwards=afterwards,
        )
