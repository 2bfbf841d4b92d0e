"""A report on made-up answers with all that can be in one, hostile text included: for the tests of the page."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime

from finetune_api.finetunejob import EvaluationMetric
from finetune_api.training_log import TrainingPoint
from finetune_trainer.evaluation.changed_examples import ComparedExample, Said, find_changes
from finetune_trainer.evaluation.compare import compare
from finetune_trainer.evaluation.report import Report, Section
from finetune_trainer.tasks.scores import (
    ClassOutcome,
    Scores,
    TextOutcome,
    class_table,
    score_classes,
    score_texts,
)

HOSTILE = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "</style></table></html> & &lt;b&gt; ' \" `",
    "{{ 7 * 7 }} {% raw %}",
    "bidi \u202eevil\u202c and a bell \x07 and a nul \x00",
    "x" * 5000,
)
TOPICS = ("money", "food", "sports", "science")


def chat_report(*, n: int = 160, verdict: str = "Inconclusive") -> Report:
    """A chat model's report; `verdict` decides how much better or worse the candidate is."""
    draw = random.Random(1)
    share = {"Pass": (0.9, 0.6), "Fail": (0.5, 0.8), "Inconclusive": (0.8, 0.79)}[verdict]
    references = [*HOSTILE, *(draw.choice(TOPICS) for _ in range(n - len(HOSTILE)))]
    outcomes = [[_answered(reference, rate, draw) for reference in references] for rate in share]
    candidate, baseline = (score_texts(each, references=references) for each in outcomes)
    examples = [
        ComparedExample(
            id=f"{index:064x}",
            group=f"{index:064x}",
            prompt=[
                {"role": "system", "content": "Name the topic of the message."},
                {"role": "user", "content": HOSTILE[index % 40] if index % 40 < len(HOSTILE) else f"Question {index}?"},
            ],
            reference=reference,
            candidate=Said(answer=outcomes[0][index].answer, scores=candidate.examples[index]),
            baseline=Said(answer=outcomes[1][index].answer, scores=baseline.examples[index]),
        )
        for index, reference in enumerate(references)
    ]
    wanted = [
        {"name": "exact_match", "maxRegression": 0.02},
        {"name": "loss", "maxRegression": 0.05},
        {"name": "token_f1", "report": True},
        {"name": "bleu", "report": True},
    ]
    return _report(wanted, candidate, baseline, examples, task="Chat", notes=("3 held-out examples were left out.",))


def classifier_report(*, n: int = 160) -> Report:
    """A classifier's report, with classes of hostile names."""
    draw = random.Random(2)
    labels = [*TOPICS, *HOSTILE[:3]]
    gold = [draw.choice(labels) for _ in range(n)]
    outcomes = [
        [
            ClassOutcome(
                predicted=(guess := truth if draw.random() < rate else draw.choice(labels)),
                nll=draw.uniform(0.1, 2),
                probabilities={guess: 0.7, labels[0]: 0.2, labels[1]: 0.1},
            )
            for truth in gold
        ]
        for rate in (0.9, 0.2)
    ]
    candidate, baseline = (score_classes(each, gold=gold, labels=labels) for each in outcomes)
    examples = [
        ComparedExample(
            id=f"{index:064x}",
            group=f"{index:064x}",
            prompt=f"Text {index} {HOSTILE[index % len(HOSTILE)]}",
            reference=truth,
            candidate=Said(
                answer=outcomes[0][index].predicted,
                scores=candidate.examples[index],
                probabilities=outcomes[0][index].probabilities,
            ),
            baseline=Said(
                answer=outcomes[1][index].predicted,
                scores=baseline.examples[index],
                probabilities=outcomes[1][index].probabilities,
            ),
        )
        for index, truth in enumerate(gold)
    ]
    wanted = [{"name": "accuracy", "minImprovement": 0.1}, {"name": "f1", "thresholdRange": {"min": 0.7}}]
    return _report(
        wanted,
        candidate,
        baseline,
        examples,
        task="SequenceClassification",
        classes={
            "candidate": class_table(candidate.columns["f1"], labels=labels),
            "baseline": class_table(baseline.columns["f1"], labels=labels),
        },
    )


def _report(wanted, candidate: Scores, baseline: Scores, examples, *, task, notes=(), classes=None) -> Report:  # type: ignore[no-untyped-def]
    return Report(
        title="ml/support-router-7",
        attempt=2,
        created=datetime(2026, 11, 21, 5, 30, tzinfo=UTC),
        baseline="support-router-6",
        comparison=compare(
            wanted=[EvaluationMetric.model_validate(metric) for metric in wanted],
            task=task,
            candidate=candidate,
            baseline=baseline,
            groups=[example.group for example in examples],
            seed=0,
        ),
        notes=notes,
        sections=(
            Section(title="Data", facts={"digest": "sha256:" + "ab" * 32, "rows read": 1200, HOSTILE[0]: HOSTILE[1]}),
            Section(title="Settings", facts={"precision": "FP32", "batch size": 16, "licence": None}),
            Section(title="Software", facts={"torch": "2.15.0", "transformers": "5.23.0"}),
        ),
        training=[
            TrainingPoint(
                step=step,
                loss=2.5 * math.exp(-step / 60) + 0.3 + 0.08 * math.sin(step),
                validation_loss=2.4 * math.exp(-step / 60) + 0.4 if step % 30 == 0 else None,
            )
            for step in range(3, 241, 3)
        ],
        classes=classes,
        changes=find_changes(examples),
    )


def _answered(reference: str, rate: float, draw: random.Random) -> TextOutcome:
    right = draw.random() < rate
    answer = reference if right else draw.choice([*TOPICS, "I think that it is about " + reference, "", *HOSTILE])
    return TextOutcome(nll=draw.uniform(0.1, 0.6) if right else draw.uniform(2, 6), tokens=3, answer=answer)
