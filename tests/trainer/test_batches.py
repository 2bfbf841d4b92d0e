"""Equally many batches in each process, with each example once; and tokens in files that say what memory does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.test_schedule import schedule

from finetune_trainer.process.gang import Gang
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.encoding import IGNORED, Encoded
from finetune_trainer.tasks.tokens import Tokens
from finetune_trainer.training.batches import Batches


def examples_of(lengths: list[int], *, label: int | None = None) -> Tokens:
    """Example i is made of the number i, so that it is found again."""
    return Tokens.of(
        Encoded(ids=(index,) * length, targets=(False, *[True] * (length - 1)), label=label)
        for index, length in enumerate(lengths)
    )


def batches_of(rank: int, world: int, *, task: Any = "Chat", **order: Any) -> Batches:
    gang = Gang(rank=rank, local_rank=rank, world=world, device=torch.device("cpu"))
    beyond = order.pop("beyond", None)
    return Batches(task=task_of(task), order=schedule(**order).optimisation, pad_id=0, gang=gang, beyond=beyond)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=40), st.integers(1, 4), st.booleans(), st.sampled_from([None, 10])
)
def test_each_process_runs_as_many_batches_and_each_example_is_there_once(
    lengths: list[int], world: int, packing: bool, beyond: int | None
) -> None:
    """And none with examples of which the longer ones would have the shorter ones' positions turned otherwise."""
    examples = examples_of(lengths)
    for kind in ("step", "validation"):
        made = []
        for rank in range(world):
            batches = batches_of(rank, world, packing=packing, micro_batch_size=3, max_length=40, beyond=beyond)
            chosen = list(range(len(examples)))
            made.append(batches.of_step(examples, chosen) if kind == "step" else list(batches.of_validation(examples)))
        assert len({len(each) for each in made}) == 1, kind
        together = [batch for each in made for batch in each]
        learned = Counter(int(label) for batch in together for label in batch.labels.flatten() if int(label) != IGNORED)
        assert learned == {index: length - 1 for index, length in enumerate(lengths)}
        assert sum(batch.real_tokens for batch in together) == batches.tokens(examples, chosen) == sum(lengths)
        for batch in together:
            labels = [int(label) for label in batch.labels.flatten() if int(label) != IGNORED]
            assert len({lengths[label] > (beyond or max(lengths)) for label in labels}) <= 1


def test_a_batch_without_weight_has_no_class_either() -> None:
    last = batches_of(1, 2, task="SequenceClassification").of_step(examples_of([5], label=1), [0])
    assert [batch.labels.tolist() for batch in last] == [[IGNORED]]


def test_mapped_tokens_are_those_that_were_made(tmp_path: Path) -> None:
    encoded = [
        Encoded(ids=(5, 6, 7), targets=(False, True, False)),
        Encoded(ids=(8,), targets=(False,)),  # nothing to learn
        Encoded(ids=(9, 1 << 30), targets=(False, False), label=2),
    ]
    made = Tokens.of(encoded)
    made.write(tmp_path, split="train")
    for tokens in (made, Tokens.mapped(tmp_path, split="train")):
        assert [tokens[index] for index in range(len(tokens))] == [encoded[0], encoded[2]]
        assert (tokens.length(1), tokens.target_counts.tolist()) == (2, [1, 1])
    Tokens.of([]).write(tmp_path, split="validation")
    empty = Tokens.mapped(tmp_path, split="validation")
    assert (len(empty), empty.target_counts.tolist()) == (0, [])


@pytest.mark.parametrize("examples", [10_000, 1_000_000])
def test_an_epoch_is_drawn_once(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda size, **options: drawn.append(size) or randperm(size, **options))
    plan = schedule(examples=examples, seed=11)
    first = [plan.indices(step) for step in range(20)]
    assert drawn == [examples]
    assert first[7] == randperm(examples, generator=torch.Generator().manual_seed(11 * 1_000_003))[70:80].tolist()


def test_validation_holds_one_batch_at_a_time_no_larger_than_those_of_a_step() -> None:
    made: list[int] = []

    class Counted(Batches):
        def _filled(self, examples: Any) -> Any:
            made.append(len(examples))
            return super()._filled(examples)

    few = batches_of(0, 1, micro_batch_size=2)
    batches = Counted(task=few.task, order=few.order, pad_id=0, gang=few.gang).of_validation(examples_of([3] * 50))
    next(iter(batches))
    assert made == [2], "what fits in training fits here"
