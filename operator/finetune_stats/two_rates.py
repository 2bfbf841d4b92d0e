"""The e-value of one block of right/wrong outcomes from two arms, against "candidate rate - stable rate = delta".

    E = P_alternative(block) / P_nearest(block)

where `nearest` is, among all pairs of rates that differ by delta, the one closest to the alternative in the block's
relative entropy. Under every pair with a difference on the far side of delta from the alternative E has expectation at
most 1. Sources: R. J. Turner, A. Ly, P. Grünwald, "Generic E-variables for exact sequential k-sample tests that allow
for optional stopping", J. Statistical Planning and Inference 230 (2024) 106116; R. J. Turner, P. Grünwald, "Exact
anytime-valid confidence intervals for contingency tables and beyond", Statistics and Probability Letters 198 (2023)
109835. The nearest pair is the restricted maximum-likelihood estimate of O. Miettinen and M. Nurminen, Statistics in
Medicine 4 (1985) 213-226, at the alternative's expected counts, hence in closed form.

Why it holds for any block size, and for weights: log E[E] is at most the sum of weight times log of a function affine
in the two rates, so it is concave in them; at the nearest pair it is 0 and its gradient is that of the relative
entropy, which points out of the half-plane. Hence it is at most 0 on the whole half-plane. Weights in [0, 1] are
exponents of single outcomes' factors (Jensen).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_stats.distributions import FloatArray
from finetune_stats.documents import Document, numbers

SMALLEST_RATE = 1e-4
"""Alternatives keep this distance from 0 and 1, so that no single outcome is impossible under one."""


@dataclass(frozen=True, kw_only=True)
class ArmCounts:
    """Bad outcomes among all outcomes of one arm; sums of weights where outcomes are weighted."""

    bad: float = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.total) and 0 <= self.bad <= self.total * (1 + 1e-9)):
            raise ValueError(f"counts of an arm need 0 <= bad <= total; got bad {self.bad} of {self.total}")

    def plus(self, other: ArmCounts) -> ArmCounts:
        """The counts of both together."""
        return ArmCounts(bad=self.bad + other.bad, total=self.total + other.total)

    @property
    def rate(self) -> float | None:
        """Share of bad outcomes; None before the first one."""
        return self.bad / self.total if self.total > 0 else None


NO_OUTCOMES = ArmCounts()


@dataclass(frozen=True, kw_only=True)
class Block:
    """What two arms showed at the same time."""

    candidate: ArmCounts = NO_OUTCOMES
    stable: ArmCounts = NO_OUTCOMES

    def plus(self, other: Block) -> Block:
        """Both blocks as one."""
        return Block(candidate=self.candidate.plus(other.candidate), stable=self.stable.plus(other.stable))

    @property
    def has_both_arms(self) -> bool:
        """A block with one arm only says nothing about a difference."""
        return self.candidate.total > 0 and self.stable.total > 0

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values: bad outcomes and all outcomes of each arm."""
        return {
            "candidate": [self.candidate.bad, self.candidate.total],
            "stable": [self.stable.bad, self.stable.total],
        }


NO_BLOCK = Block()


def block_from_dict(document: Document) -> Block:
    """Read back `Block.to_dict`. Raises ValueError for a malformed document."""
    return Block(candidate=_arm(document, "candidate"), stable=_arm(document, "stable"))


def log_e_values(
    *, block: Block, candidate_rates: FloatArray, stable_rates: FloatArray, differences: FloatArray
) -> FloatArray:
    """Log E of the block: shape (differences, alternatives), for alternatives of shape (alternatives,).

    An entry is evidence for the alternative's side of that difference: for "greater" where the alternative's own
    difference is greater, for "smaller" where it is smaller.
    """
    candidate = np.clip(candidate_rates, SMALLEST_RATE, 1 - SMALLEST_RATE)[None, :]
    stable = np.clip(stable_rates, SMALLEST_RATE, 1 - SMALLEST_RATE)[None, :]
    null_stable = nearest_stable_rates(
        candidate_rates=candidate,
        stable_rates=stable,
        candidate_total=block.candidate.total,
        stable_total=block.stable.total,
        differences=differences[:, None],
    )
    null_candidate = null_stable + differences[:, None]
    return _log_ratio(arm=block.candidate, rate=candidate, null=null_candidate) + _log_ratio(
        arm=block.stable, rate=stable, null=null_stable
    )


def nearest_stable_rates(
    *,
    candidate_rates: FloatArray,
    stable_rates: FloatArray,
    candidate_total: float,
    stable_total: float,
    differences: FloatArray,
) -> FloatArray:
    """The stable arm's rate of the nearest pair with the given difference; arguments broadcast against each other."""
    share = candidate_total / (candidate_total + stable_total)
    c, s, d = candidate_rates * share, stable_rates * (1 - share), differences
    # The stationary point of the likelihood is a root of x^3 + l2 x^2 + l1 x + l0.
    l2 = (2 - share) * d - 1 - (c + s)
    l1 = ((1 - share) * d - 1 - 2 * s) * d + c + s
    l0 = s * d * (1 - d)
    q = l2**3 / 27 - l1 * l2 / 6 + l0 / 2
    p = np.copysign(np.sqrt(np.maximum(l2 * l2 / 9 - l1 / 3, 1e-300)), q)
    angle = (math.pi + np.arccos(np.clip(q / p**3, -1, 1))) / 3
    low, high = np.maximum(0.0, -d), np.minimum(1.0, 1 - d)
    edge = 1e-12 * (high - low)
    rate = np.clip(2 * p * np.cos(angle) - l2 / 3, low + edge, high - edge)
    for _ in range(2):  # Newton's steps wash out the closed form's rounding.
        other = rate + d
        slope = s / rate - ((1 - share) - s) / (1 - rate) + c / other - (share - c) / (1 - other)
        bend = s / rate**2 + ((1 - share) - s) / (1 - rate) ** 2 + c / other**2 + (share - c) / (1 - other) ** 2
        rate = np.clip(rate + slope / bend, low + edge, high - edge)
    return np.asarray(rate, dtype=np.float64)


def _arm(document: Document, key: str) -> ArmCounts:
    counts = numbers(document, key)
    if len(counts) != 2:
        raise ValueError(f"stored state: {key} must be [bad, total]; got {list(counts)}")
    return ArmCounts(bad=counts[0], total=counts[1])


def _log_ratio(*, arm: ArmCounts, rate: FloatArray, null: FloatArray) -> FloatArray:
    return np.asarray(
        arm.bad * np.log(rate / null) + (arm.total - arm.bad) * np.log((1 - rate) / (1 - null)), dtype=np.float64
    )
