"""training_log.jsonl in a run's folder: how training went, one JSON object per logged step, read for curves.

{"step": 10, "loss": 1.83, "learning_rate": 0.0005, "tokens_per_second": 2100, "time": "2026-11-21T05:00:00Z"}
{"step": 20, "validation_loss": 1.71}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FILE_NAME = "training_log.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """What was logged at a step."""

    step: int
    loss: float | None = None
    """Of the training examples since the last point."""
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None

    def to_dict(self) -> dict[str, float | int]:
        """What is known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_training_log(text: str) -> list[TrainingPoint]:
    """The points by step. Of a step that a restart repeated, the last values count; torn lines are skipped."""
    known: dict[int, dict[str, float]] = {}
    for document in _documents(text.split("\n")):
        step = document.get("step")
        if not isinstance(step, int):
            continue
        fields = ("loss", "validation_loss", "learning_rate", "tokens_per_second")
        known.setdefault(step, {}).update({name: document[name] for name in fields if _is_number(document.get(name))})
    return [TrainingPoint(step=step, **known[step]) for step in sorted(known)]


def _documents(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            yield document


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
