"""The course of a run: every example once in each epoch, and the learning rate over the steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.run import Optimisation
from finetune_trainer.process.gang import joined
from finetune_trainer.process.progress import ProgressReporter
from finetune_trainer.training.checkpoint import TrainingState
from finetune_trainer.training.meter import Meter
from finetune_trainer.training.schedule import Schedule, back_to


def schedule(*, examples: int = 100, **changes: Any) -> Schedule:
    order = {
        "epochs": 1.0,
        "max_steps": None,
        "learning_rate": 0.01,
        "scheduler": "Cosine",
        "warmup_fraction": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "global_batch_size": 10,
        "micro_batch_size": 5,
        "max_length": 64,
        "packing": False,
        "precision": "Auto",
        "seed": 3,
    } | changes
    return Schedule(optimisation=Optimisation(**order), examples=examples)


sizes = st.integers(1, 60)
batches = st.integers(1, 17)


@settings(max_examples=60, deadline=None)
@given(sizes, batches, st.integers(0, 5), st.integers(0, 2**31))
def test_each_epoch_sees_each_example_once(examples: int, batch: int, epoch: int, seed: int) -> None:
    plan = schedule(examples=examples, global_batch_size=batch, seed=seed)
    steps = [plan.indices(epoch * plan.steps_per_epoch + step) for step in range(plan.steps_per_epoch)]
    assert sorted(itertools.chain(*steps)) == list(range(examples))
    assert all(len(step) == batch for step in steps[:-1])
    assert steps[-1], "no step without an example"


def test_the_order_is_another_in_each_epoch_and_of_each_seed() -> None:
    plan, other = schedule(), schedule(seed=4)
    first, second = ([index for step in range(10) for index in plan.indices(epoch * 10 + step)] for epoch in range(2))
    assert first != second
    assert first[:10] != other.indices(0)
    assert plan.indices(7) == schedule().indices(7), "a run that goes on sees what it would have seen"


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1.0, None, 10), (2.5, None, 25), (0.01, None, 1), (None, 7, 7), (3.0, 7, 7), (None, None, 10)],
)
def test_the_number_of_steps(epochs: float | None, max_steps: int | None, expected: int) -> None:
    assert schedule(examples=95, epochs=epochs, max_steps=max_steps).total_steps == expected


@pytest.mark.parametrize("scheduler", ["Constant", "Linear", "Cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_learning_rate_rises_then_falls(scheduler: Literal["Constant", "Linear", "Cosine"], warmup: float) -> None:
    plan = schedule(max_steps=40, scheduler=scheduler, warmup_fraction=warmup)
    rates = [plan.learning_rate(step) for step in range(40)]
    top = round(warmup * 40)
    assert all(0 < rate <= 0.01 for rate in rates), "no step is wasted"
    assert all(before < after for before, after in itertools.pairwise(rates[: top + 1]))
    if top == 40:
        return
    assert rates[top] == pytest.approx(0.01)
    falling = list(itertools.pairwise(rates[top:]))
    if scheduler == "Constant":
        assert all(before == after for before, after in falling)
    else:
        assert all(before > after for before, after in falling)
        assert rates[-1] < 0.001, "close to zero at the end"


def test_the_cosine_is_above_the_line_at_first_and_below_it_at_last() -> None:
    cosine, linear = (schedule(max_steps=40, warmup_fraction=0.0, scheduler=name) for name in ("Cosine", "Linear"))
    assert cosine.learning_rate(10) > linear.learning_rate(10)
    assert cosine.learning_rate(20) == pytest.approx(linear.learning_rate(20))
    assert cosine.learning_rate(30) < linear.learning_rate(30)


def test_epochs_end_with_their_last_step_and_with_the_run() -> None:
    plan = schedule(examples=95, epochs=None, max_steps=23)
    assert [step for step in range(23) if plan.ends_epoch(step)] == [9, 19, 22]


@pytest.mark.parametrize(("diverged_at", "before", "step"), [(6, 0, 4), (5, 0, 4), (4, 0, 0), (14, 1, 8), (3, 2, 0)])
def test_what_diverged_goes_back_to_a_step_that_only_the_divergence_decides(
    diverged_at: int, before: int, step: int
) -> None:
    assert back_to(diverged_at=diverged_at, before=before, every=4) == step


def test_from_each_step_that_was_gone_back_to_the_learning_rate_is_half() -> None:
    plan = schedule(max_steps=40)
    halved = replace(plan, roll_backs=(8, 8, 4))
    rates = [halved.learning_rate(step) / plan.learning_rate(step) for step in (3, 4, 7, 8)]
    assert rates == [1.0, 0.5, 0.5, 0.125]


@pytest.mark.parametrize("step", [199, 200])
def test_the_whole_is_told_once_the_model_is_saved(step: int) -> None:
    told: list[float] = []

    class Told(ProgressReporter):
        def report(self, *, fraction: float, remaining_seconds: float | None, metrics: Mapping[str, float]) -> None:
            told.append(fraction)

    with joined(gpus=False, meets=False) as gang:
        meter = Meter(
            flops_per_token=1.0,
            schedule=schedule(epochs=None, max_steps=200),
            gang=gang,
            progress=Told(environment={}),
            grad_norm=lambda: None,
            state=TrainingState(world=1, step=step),
            resumed_from=None,
        )
        meter.tell()
        meter.finished()
    assert told == [0.99, 1.0]
