"""Objects for tests of the operator: a job that is right in every field, its results, its plan."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelversion import RowCounts
from finetune_api.results import DataSummary, EvaluateResult, PrepareResult, TrainResult
from finetune_api.shared_fields import Artifact, MetricResult, ResolvedModel, Verdict
from finetune_operator.core.config import OperatorConfig
from finetune_operator.job.plan import ResolvedPlan
from finetune_operator.job.resolve import resolve
from finetune_operator.job.stages import Results

START = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)
UID = "5a0c1e7e-1111-4222-8333-444455556666"
CONFIG = OperatorConfig(trainer_image="ghcr.io/acme/finetune-trainer:1", instance="finetune-system")

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
"""The config.json of a Llama of 8 billion parameters, as far as it says how large that is."""
UNSEEN = {"observedGeneration": -1}
"""The status of an object that no operator has looked at: the default of its type."""


def digest(letter: str) -> str:
    """A sha256 that can be told from others."""
    return f"sha256:{letter * 64}"


def job_manifest(*, name: str = "router", namespace: str = "ml", **changes: Any) -> dict[str, Any]:
    """A FineTuneJob as a user writes it. `changes` are merged into the spec; None removes."""
    spec: dict[str, Any] = {
        "artifacts": {"uri": "pvc://models/runs"},
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "12fd25f", "task": "Chat"},
        "data": {"sources": [{"name": "tickets", "uri": "pvc://models/tickets.jsonl", "format": "Chat"}]},
        "method": {"type": "LoRA", "lora": {"rank": 16}},
        "training": {"epochs": 2, "seed": 7},
        "evaluation": {"baseline": "Base", "metrics": [{"name": "exact_match", "maxRegression": 0.01}]},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged(spec, changes),
    }


def job(
    *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **changes: Any
) -> FineTuneJob:
    """A FineTuneJob as the apiserver returns it."""
    manifest = job_manifest(**changes)
    manifest["metadata"] |= {
        "uid": UID,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-05T12:00:00Z",
        "labels": labels or {},
        "annotations": annotations or {},
    }
    return FineTuneJob.from_object(manifest)


def plan_of(of: FineTuneJob, *, config: OperatorConfig = CONFIG) -> ResolvedPlan:
    """The plan of a job that is compared with its base model."""
    return resolve(job=of, config=config, baseline=None)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`; None removes."""
    result = deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


# -- what stages report -----------------------------------------------------------------------------------------------

BASE = ResolvedModel(
    uri="hf://HuggingFaceTB/SmolLM2-135M-Instruct", revision="12fd25f0", digest=digest("b"), licence="apache-2.0"
)


def prepare_result() -> PrepareResult:
    """Data and base model are ready."""
    rows = RowCounts(train=800, validation=100, test=100)
    return PrepareResult(
        data_digest=digest("d"),
        manifest="pvc://models/runs/ml/router-5a0c1e7e/data/manifest.json",
        summary=DataSummary(
            rows_read=1010,
            bad_rows=4,
            duplicate_rows=6,
            near_duplicate_groups=950,
            rows=rows,
            token_length_p50=40,
            token_length_p95=90,
            token_length_max=140,
            truncated_fraction=0.0,
        ),
        base=BASE,
    )


def train_result() -> TrainResult:
    """The model is saved."""
    return TrainResult(
        artifact=Artifact(
            uri="pvc://models/runs/ml/router-5a0c1e7e/model", digest=digest("a"), format="Adapter", size_bytes=1 << 20
        ),
        steps=100,
        train_loss=0.5,
        validation_loss=0.6,
        tokens=64000,
        seconds=30.0,
        strategy="DDP, 1 process",
        packages={"torch": "2.15.0"},
    )


def evaluate_result(*, verdict: Verdict = "Pass") -> EvaluateResult:
    """The comparison."""
    row = MetricResult(
        metric="exact_match",
        candidate=0.89,
        baseline=0.81,
        difference=0.08,
        low=0.03,
        high=0.13,
        n=100,
        groups=95,
        verdict=verdict,
        reason=None if verdict == "Pass" else "the difference may be below -0.01",
        needed_n=900 if verdict == "Inconclusive" else None,
    )
    return EvaluateResult(
        verdict=verdict,
        results=[row],
        report="pvc://models/runs/ml/router-5a0c1e7e/evaluation/report.html",
        examples=100,
        baseline_digest=digest("b"),
        precision="BF16",
    )


def all_results(*, verdict: Verdict = "Pass") -> Results:
    """The results of a whole run."""
    return Results(prepare=prepare_result(), train=train_result(), evaluate=evaluate_result(verdict=verdict))
