"""The operator's metrics: there from the start, gone with their object."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.conformance.objects import evaluate_result

from finetune_api.finetunejob import EvaluationStatus, TrainerStatus
from finetune_operator.metrics import EVALUATIONS_SHOWN, Metrics
from finetune_operator.ports import Key


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(registry=CollectorRegistry())


def key(name: str = "router") -> Key:
    return Key(kind="FineTuneJob", namespace="ml", name=name)


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


TRAINING = TrainerStatus.model_validate(
    {
        "progressPercentage": 35,
        "metrics": [
            {"name": "step", "value": "120"},
            {"name": "loss", "value": "1.83"},
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
        "finetune_preemptions_total 0.0",
        "finetune_steps_lost_total 0.0",
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
        metrics.show_phase(key=key(), phase=phase)
    metrics.show_phase(key=key("other"), phase="Training")
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Pending"}) == 0
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Training"}) == 2
    metrics.forget(key=key())
    metrics.forget(key=key())
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Training"}) == 1


def test_progress_is_shown_as_numbers_and_goes_away(metrics: Metrics) -> None:
    metrics.show_training(key=key(), status=TRAINING)
    labels = {"namespace": "ml", "name": "router"}
    assert metrics.registry.get_sample_value("finetune_training_step", labels) == 120
    assert metrics.registry.get_sample_value("finetune_training_loss", labels) == 1.83
    assert metrics.registry.get_sample_value("finetune_training_progress_ratio", labels) == 0.35
    assert metrics.registry.get_sample_value("finetune_training_mfu_ratio", labels) is None
    assert "user_metric" not in text(metrics)
    metrics.hide_training(key=key())
    assert 'name="router"' not in text(metrics)


def test_evaluations_go_with_their_job(metrics: Metrics) -> None:
    metrics.show_evaluation(key=key(), evaluation=EVALUATION)
    labels = {"namespace": "ml", "name": "router", "metric": "exact_match", "role": "candidate"}
    assert metrics.registry.get_sample_value("finetune_eval_metric", labels) == 0.89
    metrics.forget(key=key())
    assert 'name="router"' not in text(metrics)


def test_the_number_of_series_is_bounded(metrics: Metrics) -> None:
    for number in range(EVALUATIONS_SHOWN + 50):
        metrics.show_evaluation(key=key(f"job-{number}"), evaluation=EVALUATION)
    shown = [line for line in text(metrics).splitlines() if line.startswith("finetune_eval_metric{")]
    assert len(shown) == 2 * EVALUATIONS_SHOWN
    assert any('name="job-549"' in line for line in shown)
