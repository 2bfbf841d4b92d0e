"""What a stage's digest takes in: a field that is added to its orders later as well, and not who asks or where."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.run import EvaluateRun, ModelOrder, PrepareRun, TrainRun
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.evaluation import evaluate
from finetune_trainer.preparation import prepare
from finetune_trainer.training import train

SHA = "sha256:" + "0" * 64
BASE: dict[str, Any] = {"uri": "file:///models/base", "digest": SHA}
COMMON: dict[str, Any] = {
    "identity": {"namespace": "team", "job": "chat", "uid": "uid", "attempt": 1},
    "locations": {"run": "file:///runs/1", "cache": "file:///cache", "allowedRoots": []},
    "model": {"uri": "file:///models/base", "task": "Chat"},
}
OPTIMISATION = {
    "learningRate": 0.01, "scheduler": "Cosine", "warmupFraction": 0.0, "weightDecay": 0.0, "maxGradNorm": 1.0,
    "globalBatchSize": 8, "microBatchSize": 2, "maxLength": 64, "packing": False, "precision": "Auto", "seed": 3,
}  # fmt: skip
SPLIT = {"fractions": {"train": 0.8, "validation": 0.1, "test": 0.1}, "salt": "team"}


class LaterModel(ModelOrder):
    another: int = 0


class LaterTrain(TrainRun):
    another: int
    model: LaterModel


class LaterEvaluate(EvaluateRun):
    another: int
    model: LaterModel


class LaterPrepare(PrepareRun):
    another: int
    model: LaterModel


def train_digest(**changes: Any) -> str:
    order = COMMON | {
        "base": BASE,
        "dataDigest": SHA,
        "method": {"type": "Full"},
        "optimisation": OPTIMISATION,
        "checkpoint": {"everySteps": 4, "keep": 2, "resume": "Latest"},
        "nodes": 1,
        "processesPerNode": 1,
        "strategy": "DDP",
    }
    return train.input_digest(LaterTrain.model_validate(order | changes))


def evaluate_digest(**changes: Any) -> str:
    artifact = {"uri": "file:///runs/1/model", "digest": SHA, "format": "Full", "sizeBytes": 1}
    order = COMMON | {
        "base": BASE,
        "candidate": artifact,
        "dataDigest": SHA,
        "baseline": {"name": "base", "base": BASE},
        "metrics": [{"name": "loss"}],
        "maxLength": 64,
        "maxNewTokens": 8,
        "batchSize": 4,
        "precision": "Auto",
        "seed": 3,
    }
    return evaluate.input_digest(LaterEvaluate.model_validate(order | changes))


def prepare_digest(**changes: Any) -> str:
    order = COMMON | {"sources": [], "maxBadRows": 0, "maxTruncatedFraction": 0.0, "maxLength": 64, "split": SPLIT}
    run = LaterPrepare.model_validate(order | changes)
    nothing = prepare._Sources[Any](training=(), evaluation=None)
    return prepare._input_digest(run, base=ResolvedModel.model_validate(BASE), opened=nothing)


@pytest.mark.parametrize("digest", [train_digest, evaluate_digest, prepare_digest])
def test_a_digest_takes_in_all_but_who_asks_and_where(digest: Any) -> None:
    one = digest(another=1)
    assert digest(another=1) == one
    assert digest(another=2) != one
    assert digest(another=1, model=COMMON["model"] | {"another": 1}) != one
    elsewhere = {"run": "file:///runs/2", "cache": "file:///cache", "allowedRoots": ["file:///"]}
    assert digest(another=1, locations=elsewhere, identity=COMMON["identity"] | {"attempt": 2}) == one


def test_a_run_goes_on_with_other_machines_and_checkpoints_and_not_with_another_seed() -> None:
    one = train_digest(another=1)
    often = {"everySteps": 9, "keep": 1, "resume": "Latest"}
    assert train_digest(another=1, nodes=2, processesPerNode=4, checkpoint=often) == one
    assert train_digest(another=1, base=BASE | {"uri": "file:///elsewhere"}) == one
    assert train_digest(another=1, optimisation=OPTIMISATION | {"seed": 4}) != one


def test_the_same_rows_elsewhere_are_the_same_and_another_baseline_is_not() -> None:
    assert prepare_digest(another=1, maxLength=65) != prepare_digest(another=1)
    labels = {"name": "base", "base": BASE, "labels": ["a", "b"]}
    assert evaluate_digest(another=1, baseline=labels) != evaluate_digest(another=1)
    assert evaluate_digest(another=1, batchSize=8) == evaluate_digest(another=1)
