"""Which children go: those of attempts that are over, those that still run when the run has ended, and, after
`ttlSecondsAfterFinished`, all. The job itself and its ModelVersion never go: that is the user's to decide."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from finetune_api.finetunejob import TERMINAL_PHASES, FineTuneJob
from finetune_operator.attempts.observed import Attempt, AttemptKey
from finetune_operator.core.controller import ChildRef
from finetune_operator.core.times import after
from finetune_operator.job.observed import Observed

_SIDECAR_SECONDS = 180.0
"""How long other containers of a pod may go on after the one that counts: longer than sidecars are given to stop. A pod
keeps its accelerators for as long as anything runs in it."""


def removable(*, job: FineTuneJob, attempts: Mapping[AttemptKey, Attempt], now: datetime) -> list[AttemptKey]:
    """Attempts of which no child is needed any more."""
    recorded: list[AttemptKey] = [(stage.name, stage.attempt) for stage in job.status.stages]
    over = {key for key, due in sidecars_due(job=job, attempts=attempts).items() if now >= due}
    if job.status.phase in TERMINAL_PHASES:
        expired = expiry(job)
        return sorted({*recorded, *attempts} if expired is not None and now >= expired else over)
    over |= {key for key, attempt in attempts.items() if key not in recorded and attempt.job is not None}
    # The Job of the attempt before may have been deleted by somebody: its ConfigMap is not found by it then.
    begun = {(stage.name, stage.attempt - 1) for stage in job.status.stages if stage.state == "Pending"}
    return sorted(over | {key for key in begun if key[1] > 0})


def sidecars_due(*, job: FineTuneJob, attempts: Mapping[AttemptKey, Attempt]) -> dict[AttemptKey, datetime]:
    """Complete attempts that something still runs in, and when that is ended."""
    return {
        (stage.name, stage.attempt): after(stage.completion_time, _SIDECAR_SECONDS)
        for stage in job.status.stages
        if stage.state == "Complete"
        and stage.completion_time is not None
        and (attempt := attempts.get((stage.name, stage.attempt)))
        and attempt.job is not None
        and not attempt.job.finished
    }


def removals(observed: Observed) -> tuple[ChildRef, ...]:
    """What to delete now. Attachments first: they are found by their Job."""
    over = removable(job=observed.job, attempts=observed.attempts, now=observed.now)
    jobs = [attempt.job for key in over if (attempt := observed.attempts.get(key)) and attempt.job is not None]
    if observed.job.status.phase in TERMINAL_PHASES:
        # The last stage's pods were seen to end before its Job was: it is no longer running, and its log is wanted.
        complete = {(stage.name, stage.attempt) for stage in observed.job.status.stages if stage.state == "Complete"}
        jobs += [
            attempt.job
            for key, attempt in observed.attempts.items()
            if attempt.job and not attempt.job.finished and key not in complete
        ]
    refs = [job.ref for job in jobs if not job.deleting]
    return (*observed.attachments, *dict.fromkeys(refs))


def expiry(job: FineTuneJob) -> datetime | None:
    """When the children of a run that has ended are removed; None: not before the job is."""
    ttl, end = job.spec.ttl_seconds_after_finished, job.status.completion_time
    return None if ttl is None or end is None else after(end, ttl)
