"""Whatever objects go through, their series go with them; and however many there are, a scrape stays small."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from tests.conformance.objects import evaluate_result

from finetune_api.finetunejob import EvaluationStatus, FineTuneJobStatus, Phase, TrainerStatus
from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, Outcome, RolloutStage
from finetune_operator.core.ports import Key
from finetune_operator.endpoint.metrics import EndpointMetrics
from finetune_operator.job.metrics import EVALUATIONS_SHOWN, TRAININGS_SHOWN, JobMetrics
from finetune_operator.metrics import Metrics

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
JOB = Key(kind="FineTuneJob", namespace="ml", name="router")
ENDPOINT = Key(kind="ModelEndpoint", namespace="ml", name="router")
TRAINER = TrainerStatus.model_validate(
    {
        "progressPercentage": 35,
        "estimatedRemainingSeconds": 60,
        "metrics": [
            {"name": name, "value": "12345.678"}
            for name in (
                *("step", "loss", "learning_rate", "grad_norm", "non_padding_tokens_per_second_per_gpu", "mfu"),
                "gpu_memory_bytes",
            )
        ],
    }
)
EVALUATION = EvaluationStatus(verdict="Pass", results=evaluate_result().results)


def condition(type_: str, reason: str) -> dict[str, Any]:
    return {"type": type_, "status": "True", "reason": reason}


jobs = st.builds(
    FineTuneJobStatus,
    phase=st.sampled_from(get_args(Phase)),
    phase_start_time=st.none() | st.just(NOW - timedelta(hours=1)),
    conditions=st.lists(
        st.builds(condition, st.sampled_from(["Reconciling", "Stalled"]), st.sampled_from(["Queued", "Unschedulable"])),
        max_size=1,
    ),
    trainer_status=st.none() | st.just(TRAINER),
    evaluation=st.none() | st.just(EVALUATION),
)
endpoints = st.fixed_dictionaries(
    {"phase": st.sampled_from(get_args(EndpointPhase))},
    optional={
        "step": st.builds(
            lambda stage: {"stage": stage, "name": stage.lower(), "startTime": NOW, "percent": 5},
            st.sampled_from(get_args(RolloutStage)),
        ),
        "versions": st.lists(
            st.builds(
                lambda outcome: {"name": "v", "uid": "u", "outcome": outcome, "reason": "r", "time": NOW},
                st.sampled_from(get_args(Outcome)),
            ),
            max_size=2,
        ),
        "analysis": st.lists(
            st.builds(
                lambda name: {"metric": name, "candidate": 0.1, "low": -0.1, "verdict": "Pass"},
                st.sampled_from(["error_rate", "quality"]),
            ),
            max_size=2,
            unique_by=lambda row: row["metric"],
        ),
    },
).map(ModelEndpointStatus.model_validate)


def of_object(registry: CollectorRegistry) -> Iterator[str]:
    """Series that name an object, of all metrics that are registered."""
    for family in registry.collect():
        yield from (sample.name for sample in family.samples if "name" in sample.labels)


@given(lives=st.lists(jobs, min_size=1, max_size=6), rollout=st.lists(endpoints, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_an_object_that_is_gone_leaves_no_series(
    lives: list[FineTuneJobStatus], rollout: list[ModelEndpointStatus]
) -> None:
    metrics = Metrics(registry=CollectorRegistry())
    of_jobs, of_endpoints = metrics.kinds["FineTuneJob"], metrics.kinds["ModelEndpoint"]
    assert isinstance(of_jobs, JobMetrics)
    assert isinstance(of_endpoints, EndpointMetrics)
    before = FineTuneJobStatus()
    for hours, status in enumerate(lives):
        of_jobs.show(key=JOB, before=before, status=status, now=NOW + timedelta(hours=hours))
        before = status
    for seconds, endpoint in enumerate(rollout):
        of_endpoints.show(key=ENDPOINT, status=endpoint, now=NOW + timedelta(seconds=seconds))
    assert set(of_object(metrics.registry)) != set(), "an endpoint always has some"
    of_jobs.forget(key=JOB)
    of_endpoints.forget(key=ENDPOINT)
    assert list(of_object(metrics.registry)) == []
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": before.phase or ""}) == 0


@pytest.mark.parametrize("phase", ["Training", "Succeeded"])
def test_five_thousand_jobs_are_scraped_at_once(phase: str) -> None:
    metrics = JobMetrics(registry=(registry := CollectorRegistry()))
    at_rest = generate_latest(registry)
    for number in range(5000):
        metrics.show(
            key=Key(kind="FineTuneJob", namespace="team-a", name=f"support-router-{number}"),
            before=FineTuneJobStatus(),
            status=FineTuneJobStatus(phase=phase, trainer_status=TRAINER, evaluation=EVALUATION),  # type: ignore[arg-type]
            now=NOW,
        )
    began = time.process_time()
    text = generate_latest(registry)
    took = time.process_time() - began
    series = text.count(b"\nfinetune_") - at_rest.count(b"\nfinetune_")
    trained = TRAININGS_SHOWN * 9 + 5000 if phase == "Training" else 0
    evaluated = EVALUATIONS_SHOWN * 5 * len(EVALUATION.results)
    assert trained < series <= trained + evaluated
    assert len(text) < 3e6
    assert took < 2.0, f"{took:.2f} s of a processor"


def test_waits_are_told_from_work_and_timed() -> None:
    metrics = JobMetrics(registry=(registry := CollectorRegistry()))
    queued = FineTuneJobStatus.model_validate(
        {"phase": "Queued", "phaseStartTime": NOW, "conditions": [condition("Reconciling", "Queued")]}
    )
    preparing = FineTuneJobStatus(phase="Preparing", phase_start_time=NOW + timedelta(minutes=20))
    approval = FineTuneJobStatus(phase="AwaitingApproval", phase_start_time=NOW + timedelta(hours=2))
    labels = {"namespace": "ml", "name": "router"}
    began: list[float | None] = []
    before = FineTuneJobStatus()
    for minutes, status in ((1, queued), (20, preparing), (121, approval), (150, FineTuneJobStatus(phase="Rejected"))):
        metrics.show(key=JOB, before=before, status=status, now=NOW + timedelta(minutes=minutes))
        whom = {"waits_for": "quota" if status is queued else "person"}
        began.append(registry.get_sample_value("finetune_job_wait_start_timestamp_seconds", labels | whom))
        before = status
    assert began == [NOW.timestamp(), None, (NOW + timedelta(hours=2)).timestamp(), None]
    name = "finetune_job_wait_duration_seconds_sum"
    waited = {whom: registry.get_sample_value(name, {"waits_for": whom}) for whom in ("quota", "nodes", "person")}
    assert waited == {"quota": 20 * 60, "nodes": 0, "person": 30 * 60}


def test_a_failure_is_counted_by_a_reason_of_a_closed_set() -> None:
    metrics = JobMetrics(registry=(registry := CollectorRegistry()))
    for reason in ("LossNotFinite", "whatever-a-container-said"):
        status = FineTuneJobStatus.model_validate({"phase": "Failed", "conditions": [condition("Stalled", reason)]})
        metrics.show(key=JOB, before=FineTuneJobStatus(phase="Training"), status=status, now=NOW)
    counted = [
        registry.get_sample_value("finetune_jobs_failed_total", {"reason": reason})
        for reason in ("LossNotFinite", "Other", "ContainerFailed")
    ]
    assert counted == [1, 1, 0]


def test_detection_and_rollback_are_timed() -> None:
    metrics = EndpointMetrics(registry=(registry := CollectorRegistry()))
    outcome = {"name": "v", "uid": "u", "outcome": "RolledBack", "reason": "worse", "time": NOW}

    def at(seconds: float, stage: str, **given: Any) -> None:
        now = NOW + timedelta(seconds=seconds)
        step = {"stage": stage, "name": "s", "startTime": now}
        status = ModelEndpointStatus.model_validate({"phase": "Canary", "step": step, **given})
        metrics.show(key=ENDPOINT, status=status, now=now)

    at(0, "Canary")
    at(40, "RollingBack", versions=[outcome])
    metrics.show(key=ENDPOINT, status=ModelEndpointStatus(phase="Idle"), now=NOW + timedelta(seconds=43))
    at(100, "Canary")
    at(130, "RollingBack", versions=[outcome | {"by": "ann"}])  # a person saw it, not the operator
    names = ("finetune_regression_detection_seconds", "finetune_rollback_duration_seconds")
    assert [registry.get_sample_value(f"{name}_sum") for name in names] == [40, 3]
