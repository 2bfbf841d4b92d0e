"""The metrics of an evaluation: which task has which, which way is better, how an example's score enters.

`evaluate` computes them; the operator and `finetune validate` refuse, with the same words, what it could not compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.shared_fields import Task
from finetune_api.tasks import TASKS, Scored

Kind = Literal["proportion", "mean", "corpus"]
"""proportion: each example is right or wrong. mean: each example has a number. corpus: a function of summed counts."""


@dataclass(frozen=True)
class Metric:
    """A metric of the tasks that are scored so."""

    name: str
    of: Scored
    kind: Kind
    better: Literal["Higher", "Lower"]
    bounds: tuple[float, float | None]
    """Lowest and highest possible value; None: no upper end."""
    meaning: str
    """One line for a person."""

    @property
    def from_answers(self) -> bool:
        """Needs an answer to compare with, so it does not exist for plain texts."""
        return self.of == "Text" and self.name not in ("loss", "perplexity")


_SHARE, _ANY = (0.0, 1.0), (0.0, None)

METRICS: tuple[Metric, ...] = (
    Metric("loss", "Text", "corpus", "Lower", _ANY, "negative log likelihood per token of the reference, in nats"),
    Metric(
        "perplexity", "Text", "corpus", "Lower", (1.0, None), "exp(loss): how many likely tokens it hesitates between"
    ),
    Metric("exact_match", "Text", "proportion", "Higher", _SHARE, "share of answers that equal the reference, trimmed"),
    Metric("token_f1", "Text", "mean", "Higher", _SHARE, "words shared with the reference, upper and lower case alike"),
    Metric("rouge_l", "Text", "mean", "Higher", _SHARE, "longest common subsequence of words (F measure)"),
    Metric("bleu", "Text", "corpus", "Higher", (0.0, 100.0), "shared sequences of up to four words (sacrebleu)"),
    Metric("loss", "Class", "mean", "Lower", _ANY, "negative log probability of the right class, in nats"),
    Metric("accuracy", "Class", "proportion", "Higher", _SHARE, "share of texts put into the right class"),
    Metric("precision", "Class", "corpus", "Higher", _SHARE, "share right of those put into a class; mean of classes"),
    Metric("recall", "Class", "corpus", "Higher", _SHARE, "share found of those of a class; mean of classes"),
    Metric("f1", "Class", "corpus", "Higher", _SHARE, "harmonic mean of precision and recall; mean of classes"),
)


def metrics_of(task: Task) -> dict[str, Metric]:
    """The metrics of a task by name, in the order in which they are shown."""
    return {metric.name: metric for metric in METRICS if metric.of == TASKS[task].scored}


def metric_problems(metrics: Sequence[EvaluationMetric], *, task: Task) -> list[str]:
    """What is wrong with `spec.evaluation.metrics` for a task, in words for the user; empty when they can be judged."""
    known = metrics_of(task)
    problems = []
    for wanted in metrics:
        metric = known.get(wanted.name)
        if metric is None:
            valid = ", ".join(known) or "none"
            problems.append(f"evaluation.metrics: {wanted.name} is not a metric of task {task}; valid metrics: {valid}")
        else:
            problems.extend(_size_problems(wanted, metric=metric))
    names = [wanted.name for wanted in metrics]
    problems += [
        f"evaluation.metrics: {name} is there twice; keep one of them"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if all(wanted.report for wanted in metrics):
        problems.append("evaluation.metrics needs at least one metric that is judged, not only reported")
    return problems


def _size_problems(wanted: EvaluationMetric, *, metric: Metric) -> list[str]:
    """Demands that every model meets, or none can."""
    low, high = metric.bounds
    problems = []
    if high is not None:
        for field, value in (("maxRegression", wanted.max_regression), ("minImprovement", wanted.min_improvement)):
            if value is not None and value >= high - low:
                problems.append(
                    f"evaluation.metrics: {wanted.name}.{field} is {value:g}, but {wanted.name} lies between {low:g} and"
                    f" {high:g}; set it below {high - low:g}"
                )
    limits = wanted.threshold_range
    if limits is not None:
        unreachable = (limits.min is not None and high is not None and limits.min > high) or (
            limits.max is not None and limits.max < low
        )
        if unreachable:
            upper = "infinity" if high is None else f"{high:g}"
            problems.append(
                f"evaluation.metrics: no model can meet {wanted.name}.thresholdRange;"
                f" {wanted.name} lies between {low:g} and {upper}"
            )
    return problems
