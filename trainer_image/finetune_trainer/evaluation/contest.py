"""Baseline and candidate, asked the same examples one after the other, so that only one has to fit into memory."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from finetune_api.metrics import metrics_of
from finetune_api.run import EvaluateRun
from finetune_trainer.data.dataset import Example, Manifest, read_manifest
from finetune_trainer.evaluation.outcomes import cached_run, keep_run, run_model
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.models.classes import has_head
from finetune_trainer.models.placing import placed
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.process.packages import versions
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.task import Decoding, ModelRun

# Part of the cache's key: raise it when the same model would be asked otherwise.
_VERSION = 4
# Those that a model's outcomes depend on.
_PACKAGES = ("torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Both models' runs over the same examples."""

    candidate: ModelRun
    baseline: ModelRun
    unknown_classes: Sequence[str]
    """Classes of the examples that a baseline classifier does not know."""
    new_head: bool
    """Whether the baseline's head for the classes is random."""
    timing: Mapping[str, str | float]
    """For the report: how long each took, and on what."""


def run_both(run: EvaluateRun, examples: Sequence[Example], *, manifest: Manifest, storage: Storage) -> Contest:
    """Ask both models. The baseline's run is taken from the cache where it is there, and kept there where it is new;
    base weights that both models share are loaded once.
    """
    contestants = _Contestants(run, examples, manifest=manifest, storage=storage)
    began = time.monotonic()
    key = contestants.baseline_key()
    baseline = kept = cached_run(storage, key=key)
    if baseline is None:
        baseline = contestants.ask_baseline()
        keep_run(baseline, storage, key=key)
    baseline_seconds = time.monotonic() - began
    candidate = contestants.ask_candidate()
    return Contest(
        candidate=candidate,
        baseline=baseline,
        unknown_classes=contestants.unknown_classes(),
        new_head=contestants.new_head(),
        timing={
            "baseline seconds": round(baseline_seconds, 1) if kept is None else "scored before",
            "candidate seconds": round(time.monotonic() - began - baseline_seconds, 1),
            "device": device_name(),
        },
    )


def baseline_digest(run: EvaluateRun) -> str:
    """Of the baseline's artifact, or of the base model where that is the baseline."""
    return run.baseline.base.digest if run.baseline.artifact is None else run.baseline.artifact.digest


def device_name() -> str:
    """What the models run on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


class _Contestants:
    """Loads and asks the models of one run. A baseline of its own is gone before the candidate is loaded."""

    def __init__(self, run: EvaluateRun, examples: Sequence[Example], *, manifest: Manifest, storage: Storage) -> None:
        self._run = run
        self._examples = examples
        self._storage = storage
        self._dtype = base_model.DTYPES[base_model.precision_here(run.precision)]
        self._task = task_of(run.model.task)
        metrics = metrics_of(run.model.task)
        self._decoding = Decoding(
            task=run.model.task,
            max_length=run.max_length,
            max_new_tokens=run.max_new_tokens,
            batch_size=run.batch_size,
            generate=any(metrics[metric.name].from_answers for metric in run.metrics),
        )
        self._labels = run.labels or manifest.labels or ()
        self._baseline_labels = self._find_baseline_labels()
        self._candidate: tuple[Any, Any] | None = None

    @property
    def _share_base(self) -> bool:
        """Whether the baseline is the candidate without its adapter. Not where the head is part of that."""
        run = self._run
        return (
            run.baseline.artifact is None
            and run.candidate.format == "Adapter"
            and run.base.digest == run.baseline.base.digest
            and not self._task.own_head
        )

    def ask_candidate(self) -> ModelRun:
        """The candidate's run."""
        return self._ask(*self._load_candidate(), labels=self._labels, who="candidate")

    def ask_baseline(self) -> ModelRun:
        """The baseline's run."""
        if self._share_base:
            model, _ = self._load_candidate()
            with base_model.local_folder(self._run.base, storage=self._storage, verify=False) as folder:
                tokenizer = base_model.load_tokenizer(folder)
            with model.disable_adapter():
                return self._ask(model, tokenizer, labels=self._baseline_labels, who="baseline")
        found = self._ask(*self._load_baseline(), labels=self._baseline_labels, who="baseline")
        _free_memory()
        return found

    def unknown_classes(self) -> list[str]:
        """Classes of the examples that the baseline does not know."""
        return sorted({example.label for example in self._examples if example.label} - set(self._baseline_labels))

    def new_head(self) -> bool:
        """Whether the baseline is a base whose head for the classes is random."""
        order = self._run.baseline
        if order.artifact is not None or not self._task.own_head:
            return False
        config = json.loads(self._storage.read_bytes(join(order.base.loadable_uri, "config.json")))
        classes = len(config.get("id2label") or ("no", "yes"))  # not written where there are two without names
        return not has_head(config.get("architectures")) or classes != len(self._baseline_labels)

    def baseline_key(self) -> dict[str, Any]:
        """All that the baseline's run depends on."""
        run = self._run
        ids = "\n".join(example.id for example in self._examples)
        return {
            "version": _VERSION,
            "baseline": baseline_digest(run),
            "base": run.baseline.base.digest,
            "head": run.seed if run.baseline.artifact is None else None,
            "labels": list(self._baseline_labels),
            "data": run.data_digest,
            "examples": hashlib.sha256(ids.encode()).hexdigest(),
            "decoding": asdict(self._decoding),
            "dtype": self._dtype,
            "device": device_name(),
            "packages": versions(_PACKAGES),
        }

    def _ask(self, model: Any, tokenizer: Any, *, labels: Sequence[str], who: str) -> ModelRun:
        model = placed(model).eval()
        return run_model(model, tokenizer, self._examples, decoding=self._decoding, labels=labels, who=who)

    def _load_candidate(self) -> tuple[Any, Any]:
        if self._candidate is None:
            run = self._run
            self._candidate = saved_model.load_artifact(
                run.candidate,
                base=run.base,
                task=run.model.task,
                labels=self._labels,
                storage=self._storage,
                dtype=self._dtype,
            )
        return self._candidate

    def _load_baseline(self) -> tuple[Any, Any]:
        order, task = self._run.baseline, self._run.model.task
        if order.artifact is not None:
            return saved_model.load_artifact(
                order.artifact,
                base=order.base,
                task=task,
                labels=self._baseline_labels,
                storage=self._storage,
                dtype=self._dtype,
            )
        with base_model.local_folder(order.base, storage=self._storage) as folder:
            torch.manual_seed(self._run.seed)  # for a classifier's head, which a base model does not have
            model = base_model.load_model(folder, task=task, dtype=self._dtype, labels=self._baseline_labels)
            return model, base_model.load_tokenizer(folder)

    def _find_baseline_labels(self) -> Sequence[str]:
        """The baseline's classes in the order of its outputs; a base model gets the candidate's with its new head."""
        baseline = self._run.baseline
        if baseline.artifact is None or not self._task.own_head:
            return self._labels
        labels: Sequence[str] | None = baseline.labels
        if labels is None and baseline.data_manifest is not None:
            labels = read_manifest(self._storage, uri=baseline.data_manifest).labels
        if labels is None:
            raise bad_configuration(
                "LabelsUnknown", f"evaluation.baseline: the classes of {baseline.name} are not recorded; use Base"
            )
        return labels


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
