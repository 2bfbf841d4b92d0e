"""What the report says about a run beside its scores: data, models, settings, training, software, and warnings."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_api.results import TrainResult
from finetune_api.run import EvaluateRun
from finetune_api.training_log import FILE_NAME, TrainingPoint, read_training_log
from finetune_trainer.data.dataset import Manifest
from finetune_trainer.evaluation.contest import Contest
from finetune_trainer.evaluation.report import Section
from finetune_trainer.process.errors import StageError
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.scores import UNKNOWN_CLASS_PROBABILITY

Fact = str | int | float | None


def notes_of(run: EvaluateRun, *, leaked: int, contest: Contest) -> list[str]:
    """What a reader must know to read the numbers right."""
    candidate, baseline = contest.candidate, contest.baseline
    notes = []
    if leaked:
        notes.append(
            f"{leaked} held-out examples were left out, since {run.baseline.name} was trained on them or on"
            " near-duplicates of them."
        )
    if contest.new_head:
        notes.append(
            f"{run.baseline.name} has a new classifier head of random weights (seed {run.seed}): it shows what chance"
            " and the encoder as it was give."
        )
    if contest.unknown_classes:
        notes.append(
            f"{run.baseline.name} does not know {', '.join(contest.unknown_classes)}: it is taken to give such a class"
            f" a probability of {UNKNOWN_CLASS_PROBABILITY:g}."
        )
    if candidate.cut_examples:
        notes.append(
            f"{candidate.cut_examples} examples are longer than {run.max_length} tokens; what lies behind was not"
            " scored."
        )
    if candidate.cut_prompts or baseline.cut_prompts:
        notes.append(
            f"{max(candidate.cut_prompts, baseline.cut_prompts)} prompts are too long for the model together with an"
            " answer; their beginning was left out."
        )
    return notes


def sections_of(
    run: EvaluateRun,
    *,
    manifest: Manifest,
    storage: Storage,
    timing: Mapping[str, Fact],
    packages: Mapping[str, str],
) -> list[Section]:
    """The tables of facts."""
    trained = _train_result(run, storage=storage)
    return [
        Section(title="Data", facts={"digest": run.data_digest, **_summary(manifest.statistics)}),
        Section(title="Candidate", facts=_candidate_facts(run)),
        Section(title="Baseline", facts=_baseline_facts(run)),
        *([] if trained is None else [Section(title="Training", facts=_training_facts(trained))]),
        Section(
            title="Evaluation",
            facts={
                "decoding": "greedy",
                "new tokens at most": run.max_new_tokens,
                "tokens an example at most": run.max_length,
                "precision": run.precision,
                "batch size": run.batch_size,
                "seed": run.seed,
                **timing,
            },
        ),
        Section(title="Software", facts={"python": platform.python_version(), **packages}),
    ]


def training_points(run: EvaluateRun, *, storage: Storage) -> list[TrainingPoint]:
    """The training's log, where there is one: a report without a curve is better than none."""
    uri = join(run.locations.run, FILE_NAME)
    try:
        return read_training_log(storage.read_text(uri)) if storage.exists(uri) else []
    except (StageError, UnicodeDecodeError):
        return []


def _train_result(run: EvaluateRun, *, storage: Storage) -> TrainResult | None:
    """What training said about itself, from the artifact's COMPLETE; None for artifacts of other origin."""
    complete = storage.read_complete(run.candidate.uri, verify_content=False)
    try:
        return None if complete is None else TrainResult.model_validate(complete.extra["result"])
    except (KeyError, ValueError):
        return None


def _candidate_facts(run: EvaluateRun) -> dict[str, Fact]:
    return {
        "artifact": run.candidate.uri,
        "digest": run.candidate.digest,
        "format": run.candidate.format,
        "bytes": run.candidate.size_bytes,
        "base model": run.base.uri,
        "base revision": run.base.revision,
        "base digest": run.base.digest,
        "base licence": run.base.licence,
    }


def _baseline_facts(run: EvaluateRun) -> dict[str, Fact]:
    baseline, artifact = run.baseline, run.baseline.artifact
    facts: dict[str, Fact] = {"name": baseline.name}
    if artifact is not None:
        facts |= {"artifact": artifact.uri, "digest": artifact.digest, "format": artifact.format}
    return facts | {"base model": baseline.base.uri, "base digest": baseline.base.digest}


def _training_facts(trained: TrainResult) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "steps": trained.steps,
        "stopped early": "yes" if trained.stopped_early else "no",
        "training loss": trained.train_loss,
        "validation loss": trained.validation_loss,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "trained parameters": trained.trainable_parameters,
        "all parameters": trained.total_parameters,
    }
    if trained.strategy is not None:
        facts["shared by"] = trained.strategy
    if trained.deepspeed is not None:
        facts["DeepSpeed configuration"] = trained.deepspeed
    if trained.base_bits is not None:
        facts["base while it was trained on"] = f"{trained.base_bits} bits (what is compared here is not quantised)"
    if trained.rolled_back_to:
        facts["went back to step, with half the learning rate"] = ", ".join(map(str, trained.rolled_back_to))
    return facts if trained.resumed_from_step is None else facts | {"resumed from step": trained.resumed_from_step}


def _summary(statistics: Mapping[str, Any]) -> dict[str, Fact]:
    """The manifest's statistics as one flat table; lists by label or source are left to the manifest."""
    return dict(_flat({name: value for name, value in statistics.items() if name not in ("labels", "sources")}))


def _flat(document: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Fact]]:
    for name, value in document.items():
        path: Sequence[str] = (*above, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())
        if isinstance(value, Mapping):
            yield from _flat(value, *path)
        elif isinstance(value, str | int | float) or value is None:
            yield ": ".join(path), value
