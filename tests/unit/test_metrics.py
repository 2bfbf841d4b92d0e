"""The table of metrics, and what is said about wishes that cannot be met."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.metrics import METRICS, metric_problems, metrics_of
from finetune_api.shared_fields import Task
from finetune_api.tasks import TASKS


def wanted(name: str, **how: Any) -> EvaluationMetric:
    return EvaluationMetric.model_validate({"name": name, **(how or {"maxRegression": 0.01})})


def test_a_name_means_one_thing_per_task() -> None:
    for task in ("Chat", "CausalLM", "SequenceClassification"):
        assert len(metrics_of(task)) == sum(metric.of == TASKS[task].scored for metric in METRICS)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("Chat", ["loss", "perplexity", "exact_match", "token_f1", "rouge_l", "bleu"]),
        ("SequenceClassification", ["loss", "accuracy", "precision", "recall", "f1"]),
        ("Seq2Seq", ["loss", "perplexity", "exact_match", "token_f1", "rouge_l", "bleu"]),
    ],
)
def test_metrics_of_a_task(task: Task, names: list[str]) -> None:
    assert list(metrics_of(task)) == names


@pytest.mark.parametrize(
    ("metrics", "task", "words"),
    [
        (
            [wanted("accuracy")],
            "Chat",
            "accuracy is not a metric of task Chat; valid metrics: loss, perplexity, exact_",
        ),
        ([wanted("exact_match")], "SequenceClassification", "valid metrics: loss, accuracy, precision, recall, f1"),
        ([wanted("f2")], "SequenceClassification", "f2 is not a metric"),
        ([wanted("loss"), wanted("loss", minImprovement=0.1)], "Chat", "loss is there twice"),
        ([wanted("bleu", report=True)], "Chat", "at least one metric that is judged"),
        ([], "Chat", "at least one metric that is judged"),
        (
            [wanted("exact_match", maxRegression=1)],
            "Chat",
            "exact_match.maxRegression is 1, but exact_match lies between",
        ),
        ([wanted("f1", minImprovement=5)], "SequenceClassification", "f1.minImprovement is 5"),
        ([wanted("f1", thresholdRange={"min": 80})], "SequenceClassification", "no model can meet f1.thresholdRange"),
        ([wanted("perplexity", thresholdRange={"max": 0.5})], "Chat", "lies between 1 and infinity"),
    ],
)
def test_problems(metrics: list[EvaluationMetric], task: Task, words: str) -> None:
    problems = metric_problems(metrics, task=task)
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    "metric",
    [wanted("bleu", maxRegression=2), wanted("loss", minImprovement=3), wanted("rouge_l", thresholdRange={"min": 0.3})],
)
def test_no_problems(metric: EvaluationMetric) -> None:
    assert metric_problems([metric], task="Chat") == []
