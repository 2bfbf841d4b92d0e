"""The metrics of an evaluation: which task has which, which way is better, how an example's score enters.

`evaluate` computes them; the operator and `finetune validate` refuse, with the same words, what it could not compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.shared_fields import Task

Kind = Literal["proportion", "mean", "corpus"]
"""proportion: each example is right or wrong. mean: each example has a number. corpus: a function of summed counts."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a task."""

    name: str
    tasks: frozenset[Task]
    kind: Kind
    better: Literal["Higher", "Lower"]
    bounds: tuple[float, float | None]
    """Lowest and highest possible value; None: no upper end."""
    meaning: str
    """One line for a person."""
    from_answers: bool = False
    """Needs an answer to compare with, so it does not exist for plain texts."""


_TEXT: frozenset[Task] = frozenset({"Chat", "CausalLM"})
_CLASSES: frozenset[Task] = frozenset({"SequenceClassification"})

METRICS: tuple[Metric, ...] = (
    Metric(
        name="loss",
        tasks=_TEXT,
        kind="corpus",
        better="Lower",
        bounds=(0.0, None),
        meaning="negative log likelihood per token of the reference, in nats",
    ),
    Metric(
        name="perplexity",
        tasks=_TEXT,
        kind="corpus",
        better="Lower",
        bounds=(1.0, None),
        meaning="exp(loss): among how many equally likely tokens the model hesitates",
    ),
    Metric(
        name="exact_match",
        tasks=_TEXT,
        kind="proportion",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="share of answers equal to the reference, spaces at both ends aside",
        from_answers=True,
    ),
    Metric(
        name="token_f1",
        tasks=_TEXT,
        kind="mean",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="words that answer and reference share, upper and lower case alike",
        from_answers=True,
    ),
    Metric(
        name="rouge_l",
        tasks=_TEXT,
        kind="mean",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="longest common subsequence of words of answer and reference (F measure)",
        from_answers=True,
    ),
    Metric(
        name="bleu",
        tasks=_TEXT,
        kind="corpus",
        better="Higher",
        bounds=(0.0, 100.0),
        meaning="shared word sequences of up to four words over all answers, 0 to 100 (sacrebleu)",
        from_answers=True,
    ),
    Metric(
        name="loss",
        tasks=_CLASSES,
        kind="mean",
        better="Lower",
        bounds=(0.0, None),
        meaning="negative log probability of the right class, in nats",
    ),
    Metric(
        name="accuracy",
        tasks=_CLASSES,
        kind="proportion",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="share of texts put into the right class",
    ),
    Metric(
        name="precision",
        tasks=_CLASSES,
        kind="corpus",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="of the texts put into a class, the share that belongs there; mean over classes",
    ),
    Metric(
        name="recall",
        tasks=_CLASSES,
        kind="corpus",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="of the texts of a class, the share put there; mean over classes",
    ),
    Metric(
        name="f1",
        tasks=_CLASSES,
        kind="corpus",
        better="Higher",
        bounds=(0.0, 1.0),
        meaning="harmonic mean of a class's precision and recall; mean over classes",
    ),
)


def metrics_of(task: Task) -> dict[str, Metric]:
    """The metrics of a task by name, in the order in which they are shown. Empty for tasks that are not evaluated."""
    return {metric.name: metric for metric in METRICS if task in metric.tasks}


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
