"""One error probability for a whole rollout, shared by its steps and metrics.

A rollout with four steps and five metrics looks at twenty sequential tests. Each false alarm rolls a good candidate
back, so their probabilities add up (union bound). The shares follow weights, so that what matters more, or lasts
longer, can have more of it. No share depends on what was observed.

The other direction needs no sharing over metrics: a pass of a step demands that all of its metrics are proven
acceptable, so each may use the full alpha (Berger 1982, see verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Key = tuple[str, str]
"""(step, metric)."""


def allocate(*, alpha: float, steps: Mapping[str, float], metrics: Mapping[str, float]) -> dict[Key, float]:
    """Alpha for each (step, metric), proportional to the product of their weights; together at most `alpha`.

    Raises ValueError for an alpha outside (0, 1), for no step or metric, and for weights that are not above 0.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1); got {alpha}")
    for name, weights in (("steps", steps), ("metrics", metrics)):
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights.values()):
            raise ValueError(f"{name} need weights above 0; got {dict(weights)}")
    whole = math.fsum(steps.values()) * math.fsum(metrics.values())
    # Rounded down a little, so that the sum cannot exceed alpha by the last digit.
    unit = alpha / whole * (1 - 1e-12)
    return {
        (step, metric): unit * step_weight * metric_weight
        for step, step_weight in steps.items()
        for metric, metric_weight in metrics.items()
    }
