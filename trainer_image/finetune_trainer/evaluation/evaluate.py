"""Evaluate: is the candidate better than what it would replace, on the same held-out examples?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api.metrics import metric_problems, metrics_of
from finetune_api.results import EvaluateResult
from finetune_api.run import EvaluateRun
from finetune_trainer.data.dataset import MANIFEST, Example, Manifest, data_folder, read_manifest, read_split
from finetune_trainer.evaluation.changed_examples import ComparedExample, Said, find_changes
from finetune_trainer.evaluation.compare import Comparison, compare
from finetune_trainer.evaluation.contest import Contest, baseline_digest, run_both
from finetune_trainer.evaluation.evaluation_facts import notes_of, sections_of, training_points
from finetune_trainer.evaluation.report import Report, console_table, to_html, to_json
from finetune_trainer.models.base_model import precision_here
from finetune_trainer.process.errors import bad_configuration, bad_data, not_found
from finetune_trainer.process.packages import versions
from finetune_trainer.store import json_lines
from finetune_trainer.store.locations import join
from finetune_trainer.store.orders import but_for_the_place, orders_digest
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.scores import Outcome, class_table
from finetune_trainer.tasks.task import Judged

log = logging.getLogger(__name__)

# Part of the input digest: raise it when the same input would give other scores or another verdict.
_VERSION = 4
_NOT_IN_DIGEST = {"stage", "identity", "locations", "batchSize", "output"}
"""Who asks, where it is written, and how many examples at once."""
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "sacrebleu", "rouge-score", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The examples of the comparison."""

    examples: Sequence[Example]
    leaked: int
    """Left out, since the baseline has learned from them or from near-duplicates."""
    manifest: Manifest

    @property
    def are_chats(self) -> bool:
        """Whether each has an answer to compare with."""
        return all(example.messages is not None for example in self.examples)


def evaluate(run: EvaluateRun) -> EvaluateResult:
    """Do the stage. Raises StageError."""
    problems = metric_problems(run.metrics, task=run.model.task)
    if problems:
        raise bad_configuration("BadMetric", "; ".join(problems))
    storage = Storage(locations=run.locations)
    folder, digest = run.output or join(run.locations.run, "evaluation"), input_digest(run)
    finished = storage.read_complete(folder)
    if finished is not None and finished.input_digest == digest:
        log.info("an earlier attempt finished this very comparison; nothing to do")
        return EvaluateResult.model_validate(finished.extra["result"]).model_copy(update={"reused": True})
    held_out = _held_out(run, storage=storage)
    contest = run_both(run, held_out.examples, manifest=held_out.manifest, storage=storage)
    judged = task_of(run.model.task).judge(
        contest.candidate, contest.baseline, examples=held_out.examples, metrics=run.metrics
    )
    comparison = compare(
        wanted=run.metrics,
        task=run.model.task,
        candidate=judged.candidate,
        baseline=judged.baseline,
        groups=[example.group for example in held_out.examples],
        seed=run.seed,
    )
    compared = _compared(held_out.examples, contest, judged)
    report = Report(
        title=f"{run.identity.namespace}/{run.identity.job}",
        attempt=run.identity.attempt,
        created=datetime.now(UTC),
        baseline=run.baseline.name,
        comparison=comparison,
        notes=notes_of(run, leaked=held_out.leaked, contest=contest),
        sections=sections_of(
            run,
            manifest=held_out.manifest,
            storage=storage,
            timing=contest.timing,
            packages=versions(_PACKAGES),
        ),
        training=training_points(run, storage=storage),
        classes=_classes(judged),
        changes=find_changes(compared),
    )
    result = _result(run, comparison, report_uri=join(folder, "report.html"), leaked=held_out.leaked)
    with storage.staging_folder(folder) as staging:
        lines = json_lines.to_text(example.to_dict() for example in compared)
        (staging / "examples.jsonl").write_text(lines, encoding="utf-8")
        (staging / "report.json").write_text(to_json(report), encoding="utf-8")
        (staging / "report.html").write_text(to_html(report), encoding="utf-8")
        storage.publish(staging, to=folder, input_digest=digest, extra={"result": result.to_dict()})
    print(
        f"\n{console_table(comparison)}\n\n{comparison.verdict.value}: {report.headline}\n{result.report}", flush=True
    )
    return result


def input_digest(run: EvaluateRun) -> str:
    """Of all that the comparison depends on: all of the orders but what is named here, and models by their digests."""
    baseline = run.baseline.to_dict() | {"base": run.baseline.base.digest, "artifact": baseline_digest(run)}
    return orders_digest(
        run,
        apart=_NOT_IN_DIGEST,
        version=_VERSION,
        model=but_for_the_place(run.model),
        base=run.base.digest,
        candidate=run.candidate.digest,
        baseline=baseline,
    )


def _held_out(run: EvaluateRun, *, storage: Storage) -> HeldOut:
    """The test split without what the baseline has learned from."""
    data = data_folder(run.locations.run)
    if storage.read_complete(data) is None:
        raise not_found(f"{data} is gone or damaged; prepare the data again", reason="DataTorn")
    manifest = read_manifest(storage, uri=join(data, MANIFEST))
    if manifest.digest != run.data_digest:
        raise bad_configuration(
            "DataChanged", f"{data} holds the snapshot {manifest.digest}, but the run was given {run.data_digest}"
        )
    examples = read_split(storage, data=data, split="test")
    if not examples:
        raise bad_data("EmptySplit", "data.split.test: it has no examples; raise it, or give evaluation.dataset")
    if any(manifest.learned_from(example) for example in examples):
        raise bad_data("Leakage", f"{data} has examples both held out and to be learned; prepare the data again")
    kept = examples
    if run.baseline.data_manifest is not None:
        kept = without_learned(examples, by=read_manifest(storage, uri=run.baseline.data_manifest))
    if not kept:
        raise bad_data(
            "AllLeaked",
            f"evaluation.baseline: {run.baseline.name} was trained on all {len(examples)} held-out examples or on"
            " near-duplicates; compare on other examples (evaluation.dataset), or with Base",
        )
    held_out = HeldOut(examples=kept, leaked=len(examples) - len(kept), manifest=manifest)
    _check_answers(run, held_out)
    log.info("%d held-out examples, %d left out since the baseline learned from them", len(kept), held_out.leaked)
    return held_out


def without_learned(examples: Sequence[Example], *, by: Manifest) -> list[Example]:
    """The examples that a model trained on the snapshot `by` has not seen, nor near-duplicates of them."""
    seen = by.groups_learned(examples)
    return [example for example in examples if example.group not in seen]


def _check_answers(run: EvaluateRun, held_out: HeldOut) -> None:
    """Refuse metrics of answers for texts that have none."""
    known = metrics_of(run.model.task)
    names = [metric.name for metric in run.metrics if known[metric.name].from_answers]
    if names and not held_out.are_chats:
        raise bad_configuration(
            "NoAnswers",
            f"evaluation.metrics: {', '.join(names)} compare answers, but the held-out examples are plain texts;"
            " use loss or perplexity, or data of format Chat or PromptCompletion",
        )


def _compared(examples: Sequence[Example], contest: Contest, judged: Judged) -> list[ComparedExample]:
    """The lines of examples.jsonl."""
    found = zip(
        examples,
        contest.candidate.outcomes,
        contest.baseline.outcomes,
        judged.candidate.examples,
        judged.baseline.examples,
        strict=True,
    )
    return [
        ComparedExample(
            id=example.id,
            group=example.group,
            prompt=example.text or ""
            if example.messages is None
            else [{"role": message.role, "content": message.text} for message in example.messages[:-1]],
            reference=example.right_answer if example.messages else example.label,
            candidate=_said(ours, scores=our_scores),
            baseline=_said(theirs, scores=their_scores),
        )
        for example, ours, theirs, our_scores, their_scores in found
    ]


def _said(outcome: Outcome, *, scores: Any) -> Said:
    return Said(answer=outcome.answer, scores=scores, probabilities=outcome.probabilities)


def _classes(judged: Judged) -> dict[str, Any] | None:
    if not judged.labels:
        return None
    return {
        "candidate": class_table(judged.candidate.columns["f1"], labels=judged.labels),
        "baseline": class_table(judged.baseline.columns["f1"], labels=judged.labels),
    }


def _result(run: EvaluateRun, comparison: Comparison, *, report_uri: str, leaked: int) -> EvaluateResult:
    return EvaluateResult(
        verdict=comparison.verdict.value,
        results=[row.to_result() for row in comparison.rows],
        report=report_uri,
        examples=comparison.n,
        baseline_digest=baseline_digest(run),
        leaked_examples=leaked,
        precision=precision_here(run.precision),
    )
