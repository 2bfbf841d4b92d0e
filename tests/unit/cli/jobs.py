"""Jobs at different moments of their lives, for what the command line says about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.conformance.objects import all_results, job_manifest, plan_of

from finetune_api.finetunejob import FineTuneJob, ProgressMetric, TrainerStatus
from finetune_api.results import EvaluateResult
from finetune_operator.cli.snapshot import Snapshot

NOW = datetime(2026, 1, 5, 12, 10, 0, tzinfo=UTC)


def at(seconds: int) -> str:
    """A time after the job was created."""
    return (datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_with(status: dict[str, Any], **changes: Any) -> FineTuneJob:
    """A job with a status."""
    manifest = job_manifest(**changes)
    manifest["metadata"] |= {
        "uid": "5a0c1e7e-1111-4222-8333-444455556666",
        "generation": 1,
        "resourceVersion": "9",
        "creationTimestamp": at(0),
    }
    plan = plan_of(FineTuneJob.from_object(manifest)).to_dict()
    return FineTuneJob.from_object({**manifest, "status": {"observedGeneration": 1, "plan": plan, **status}})


def training() -> FineTuneJob:
    """Prepared, and training for the second time."""
    results = all_results()
    assert results.prepare is not None
    return job_with(
        {
            "phase": "Training",
            "message": "training on 1 node (CPU)",
            "next": {"waitsFor": ["Train to end"], "then": ["Evaluate"]},
            "startTime": at(1),
            "stages": [
                {
                    "name": "Prepare",
                    "state": "Complete",
                    "attempt": 1,
                    "startTime": at(2),
                    "completionTime": at(14),
                    "result": results.prepare.to_dict(),
                },
                {"name": "Train", "state": "Running", "attempt": 2, "startTime": at(100)},
            ],
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "Training", "lastTransitionTime": at(100)},
                {"type": "Reconciling", "status": "True", "reason": "Training", "lastTransitionTime": at(100)},
            ],
            "trainerStatus": reported(step=12, loss=1.25).to_dict(),
            "checkpoint": {"uri": "pvc://models/runs/ml/router-5a0c1e7e/checkpoints/step-10", "step": 10},
            "restarts": {
                "failures": 1,
                "preemptions": 0,
                "stepsLost": 2,
                "last": {"reason": "ContainerFailed", "time": at(95), "message": "a training process was killed"},
            },
        }
    )


def reported(*, step: int, loss: float, total: int = 48) -> TrainerStatus:
    """A report of the training processes."""
    metrics = {
        "step": step,
        "total_steps": total,
        "loss": loss,
        "non_padding_tokens_per_second_per_gpu": 412.4,
        "checkpoint_step": 10,
    }
    return TrainerStatus(
        progress_percentage=100 * step // total,
        estimated_remaining_seconds=80,
        metrics=[ProgressMetric(name=name, value=str(value)) for name, value in metrics.items()],
    )


def ended(*, phase: str = "Succeeded", verdict: str = "Pass") -> FineTuneJob:
    """All stages are over."""
    results = all_results(verdict=verdict)  # type: ignore[arg-type] # a verdict
    assert results.prepare is not None
    assert results.train is not None
    assert isinstance(results.evaluate, EvaluateResult)
    times = [(2, 14), (15, 75), (76, 110)]
    outcomes = (results.prepare, results.train, results.evaluate)
    return job_with(
        {
            "phase": phase,
            "message": "router: proven against the base model on 100 held-out examples",
            "startTime": at(1),
            "completionTime": at(111),
            "stages": [
                {
                    "name": outcome.stage,
                    "state": "Complete",
                    "attempt": 1,
                    "startTime": at(start),
                    "completionTime": at(end),
                    "result": outcome.to_dict(),
                }
                for outcome, (start, end) in zip(outcomes, times, strict=True)
            ],
            "evaluation": {
                "verdict": verdict,
                "results": [row.to_dict() for row in results.evaluate.results],
                "report": results.evaluate.report,
            },
            "modelVersion": {"name": "router", "uid": "77"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": phase,
                    "lastTransitionTime": at(111),
                    "message": "router: proven against the base model on 100 held-out examples",
                }
            ],
        }
    )


def snapshot_of(job: FineTuneJob, *, seconds: int = 160, trainer: TrainerStatus | None = None) -> Snapshot:
    """The job at a moment after its creation."""
    now = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC) + timedelta(seconds=seconds)
    return Snapshot(job=job, now=now, trainer=trainer or job.status.trainer_status)
