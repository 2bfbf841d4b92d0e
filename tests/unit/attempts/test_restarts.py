"""The table of restarts is complete, and the page for users shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.finetunejob import Restarts
from finetune_operator.attempts.restarts import Budget, Cause, steps_lost

PAGE = Path(__file__).resolve().parents[3] / "docs" / "restarts.md"


@pytest.mark.parametrize("cause", Cause)
def test_users_can_read_every_cause(cause: Cause) -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{cause}` |")]
    assert len(lines) == 1, f"{PAGE.name} has no row for {cause}"
    assert (f"`{cause.budget}`" if cause.budget is not Budget.NONE else "never") in lines[0]


@pytest.mark.parametrize(
    ("step", "checkpoint", "resume", "lost"),
    [(None, None, True, 0), (57, 40, True, 17), (57, None, True, 57), (57, 40, False, 57), (40, 60, True, 0)],
)
def test_steps_lost(step: int | None, checkpoint: int | None, resume: bool, lost: int) -> None:
    assert steps_lost(step=step, checkpoint_step=checkpoint, resume=resume) == lost


def test_nothing_is_used_at_the_start() -> None:
    assert (Restarts().preemptions, Restarts().failures, Restarts().steps_lost) == (0, 0, 0)
