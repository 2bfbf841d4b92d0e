"""A base that has a head for as many classes as the data: its outputs are known by name, never by place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models
from tests.trainer.test_matrix import FULL, Stages

from finetune_trainer.models.base_model import load_model
from finetune_trainer.process.errors import StageError

hf: Any = transformers


def classifier(folder: Path, *, name: str, classes: list[str]) -> Path:
    tiny_models.make(name, to=folder)
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=len(classes), id2label=dict(enumerate(classes))
    )
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_outputs_come_in_the_order_of_the_data(name: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "base", name=name, classes=["b", "c", "a"])
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        logits = [
            load_model(folder, task="SequenceClassification", dtype="float32", labels=labels)(input_ids=tokens).logits
            for labels in (["b", "c", "a"], ["a", "b", "c"])
        ]
    torch.testing.assert_close(logits[0][:, [2, 0, 1]], logits[1])


@pytest.mark.parametrize(
    ("classes", "refused"),
    [
        (["one", "two", "three"], False),
        (["x", "two", "three"], True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
        (["x", "y"], False),  # its head is made anew
    ],
)
def test_a_head_for_other_classes_is_refused(classes: list[str], *, refused: bool, tmp_path: Path) -> None:
    model = classifier(tmp_path / "base", name="bert", classes=classes)
    case = Stages(root=tmp_path / "case", model=model, task="SequenceClassification", method=FULL, packing=False)
    case.root.mkdir()
    if not refused:
        assert case.prepare().labels == ["one", "three", "two"]
        return
    with pytest.raises(StageError, match=r"model.uri: .* tells the classes x, two, three apart") as found:
        case.prepare()
    assert (found.value.reason, found.value.exit_code) == ("ClassesDiffer", 78)
