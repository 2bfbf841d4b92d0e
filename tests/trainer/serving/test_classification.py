"""Texts of several requests in one batch: the classes that each text gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.trainer import tiny_models
from tests.trainer.serving.rounds import run

from finetune_trainer.models import base_model
from finetune_trainer.serving.classification import Classes, Classification, Classifier, EncodedText

LABELS = ("one", "two", "three")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return classifier("bert", tmp_path_factory.mktemp("bert"))


def classifier(name: str, folder: Path) -> Classifier:
    made = tiny_models.make(name, to=folder / name)
    model = base_model.load_model(made, task="SequenceClassification", dtype="float32", labels=LABELS).eval()
    return Classifier.of(model=model, tokenizer=base_model.load_tokenizer(made), labels=LABELS)


def texts(lengths: Sequence[int]) -> list[EncodedText]:
    """Of so many tokens, none of which is the one for padding."""
    return [
        EncodedText(ids=tuple(10 + (7 * n + length) % 90 for n in range(length)), truncated=False) for length in lengths
    ]


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta-v2", "llama"])
def test_requests_run_together_get_what_each_gets_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(name, tmp_path)
    batches: list[list[int]] = []
    probabilities = Classifier.probabilities

    def noted(self: Classifier, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        batches.append([len(each) for each in ids])
        return probabilities(self, ids)

    monkeypatch.setattr(Classifier, "probabilities", noted)
    requests = [texts(lengths) for lengths in ([5], [6, 8, 40], [5, 9])]
    found = run(Classification(model), [model.classify(each) for each in requests])
    assert batches == [[40], [9, 8, 6, 5, 5]], "texts of like length, whoever sent them"
    for sent, (classes,) in zip(requests, found, strict=True):
        for text, row in zip(sent, classes.probabilities, strict=True):
            ((single,),) = run(Classification(model), [model.classify([text])])
            assert row == pytest.approx(single.probabilities[0], abs=1e-5)


def test_a_request_of_many_texts_does_not_hold_up_one_of_a_single_text(bert: Classifier) -> None:
    runner = Classification(bert)
    many, one = bert.classify(texts([3] * 60)), bert.classify(texts([4]))
    assert [work for work, _ in runner.round([many, one])] == [one]
    ((rest,),) = run(runner, [many])
    assert isinstance(rest, Classes)
    assert len(rest.probabilities) == 60


def test_a_text_that_cannot_be_read_is_the_fault_of_its_own_request(bert: Classifier) -> None:
    unreadable = EncodedText(ids=(1, 10**6, 2), truncated=False)
    works = [bert.classify(each) for each in (texts([1, 2]), [unreadable], texts([3]))]
    fine, (failed,), other = run(Classification(bert), works)
    assert isinstance(failed, IndexError)
    assert [len(classes.probabilities) for (classes,) in (fine, other)] == [2, 1]
