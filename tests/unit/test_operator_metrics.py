"""The operator's metrics: there from the start, gone with their object."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.conformance.objects import evaluate_result

from finetune_api.finetunejob import EvaluationStatus, FineTuneJobStatus, TrainerStatus
from finetune_operator.attempts.restarts import Cause
from finetune_operator.core.ports import Key
from finetune_operator.job.decision import Restarted
from finetune_operator.job.metrics import EVALUATIONS_SHOWN, JobMetrics
from finetune_operator.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(registry=CollectorRegistry())


def key(name: str = "router") -> Key:
    return Key(kind="FineTuneJob", namespace="ml", name=name)


def _jobs(metrics: Metrics) -> JobMetrics:
    found = metrics.kinds["FineTuneJob"]
    assert isinstance(found, JobMetrics)
    return found


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


TRAINING = TrainerStatus.model_validate(
    {
        "progressPercentage": 35,
        "estimatedRemainingSeconds": 5400,
        "metrics": [
            {"name": "step", "value": "120"},
            {"name": "loss", "value": "1.83"},
            {"name": "grad_norm", "value": "0.7"},
            {"name": "mfu", "value": "n/a"},
            {"name": "user_metric", "value": "5"},
        ],
    }
)
EVALUATION = EvaluationStatus(verdict="Pass", results=evaluate_result().results)


@pytest.mark.parametrize(
    "line",
    [
        'finetune_jobs{phase="Training"} 0.0',
        'finetune_restarts_total{reason="OutOfMemory"} 0.0',
        'finetune_preemptions_total{reason="NodeLost"} 0.0',
        'finetune_steps_lost_total{reason="OutOfMemory"} 0.0',
        'finetune_jobs_failed_total{reason="LossNotFinite"} 0.0',
        'finetune_job_wait_duration_seconds_count{waits_for="person"} 0.0',
        "finetune_workqueue_oldest_seconds 0.0",
        'finetune_eval_verdicts_total{verdict="Inconclusive"} 0.0',
        'finetune_jobs_finished_total{phase="Rejected"} 0.0',
        'finetune_reconcile_errors_total{reason="Unavailable"} 0.0',
        "finetune_workqueue_depth 0.0",
        "finetune_workqueue_retries_total 0.0",
        "finetune_leader 0.0",
        'finetune_foreign_instance_objects{kind="ModelEndpoint"} 0.0',
        'finetune_reconcile_duration_seconds_count{kind="FineTuneJob"} 0.0',
    ],
)
def test_metrics_are_there_from_the_start(metrics: Metrics, line: str) -> None:
    assert line in text(metrics).splitlines()
    assert "finetune_build_info{" in text(metrics)


def test_a_job_is_counted_in_one_phase(metrics: Metrics) -> None:
    for phase in ("Pending", "Pending", "Training"):
        _jobs(metrics).phases.show(key(), phase)
    _jobs(metrics).phases.show(key("other"), "Training")
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Pending"}) == 0
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Training"}) == 2
    _jobs(metrics).forget(key=key())
    _jobs(metrics).forget(key=key())
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Training"}) == 1


def test_progress_is_shown_as_numbers(metrics: Metrics) -> None:
    _jobs(metrics).show_training(key=key(), status=TRAINING)
    labels = {"namespace": "ml", "name": "router"}
    assert metrics.registry.get_sample_value("finetune_training_step", labels) == 120
    assert metrics.registry.get_sample_value("finetune_training_loss", labels) == 1.83
    assert metrics.registry.get_sample_value("finetune_training_progress_ratio", labels) == 0.35
    assert metrics.registry.get_sample_value("finetune_training_mfu_ratio", labels) is None
    assert "user_metric" not in text(metrics)
    labels_of_gradient = metrics.registry.get_sample_value("finetune_training_gradient_norm", labels)
    assert (labels_of_gradient, metrics.registry.get_sample_value("finetune_training_remaining_seconds", labels)) == (
        0.7,
        5400,
    )


def test_evaluations_go_with_their_job(metrics: Metrics) -> None:
    _jobs(metrics).show_evaluation(key=key(), evaluation=EVALUATION)
    labels = {"namespace": "ml", "name": "router", "metric": "exact_match", "role": "candidate"}
    assert metrics.registry.get_sample_value("finetune_eval_metric", labels) == 0.89
    bounds = {"namespace": "ml", "name": "router", "metric": "exact_match"}
    row = EVALUATION.results[0]
    for bound, value in (("low", row.low), ("high", row.high), ("estimate", row.difference)):
        assert metrics.registry.get_sample_value("finetune_eval_difference", bounds | {"bound": bound}) == value
    _jobs(metrics).forget(key=key())
    assert 'name="router"' not in text(metrics)


def test_the_number_of_series_is_bounded(metrics: Metrics) -> None:
    for number in range(EVALUATIONS_SHOWN + 50):
        _jobs(metrics).show_evaluation(key=key(f"job-{number}"), evaluation=EVALUATION)
    shown = [line for line in text(metrics).splitlines() if line.startswith("finetune_eval_metric{")]
    assert len(shown) == 2 * EVALUATIONS_SHOWN
    assert any('name="job-549"' in line for line in shown)


def test_what_ended_is_counted_once() -> None:
    registry = CollectorRegistry()
    metrics = JobMetrics(registry=registry)
    before = FineTuneJobStatus(phase="Evaluating", phase_start_time=datetime(2026, 11, 21, 12, 0, tzinfo=UTC))
    later = datetime(2026, 11, 21, 12, 1, 30, tzinfo=UTC)
    after = FineTuneJobStatus(phase="Rejected", phase_start_time=later, evaluation=EVALUATION)
    restarted = Restarted(cause=Cause.PREEMPTED, steps_lost=17)
    metrics.show(key=key(), before=before, status=after, restarted=restarted, now=later)
    metrics.show(key=key(), before=after, status=after, now=later)
    counted = {
        ("finetune_jobs_finished_total", "phase", "Rejected"): 1,
        ("finetune_eval_verdicts_total", "verdict", "Pass"): 1,
        ("finetune_restarts_total", "reason", "Preempted"): 1,
        ("finetune_job_phase_duration_seconds_sum", "phase", "Evaluating"): 90,
        ("finetune_job_phase_duration_seconds_count", "phase", "Evaluating"): 1,
        ("finetune_jobs", "phase", "Rejected"): 1,
    }
    assert {each: registry.get_sample_value(each[0], {each[1]: each[2]}) for each in counted} == counted
    for name, value in (("finetune_preemptions_total", 1), ("finetune_steps_lost_total", 17)):
        assert registry.get_sample_value(name, {"reason": "Preempted"}) == value
