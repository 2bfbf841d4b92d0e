"""What a paired comparison of one metric found. The gate judges these rows; nothing in them depends on a policy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """How an example's score enters the metric; it decides the method."""

    PROPORTION = "proportion"
    """Each example is right (1) or wrong (0): accuracy, exact match, toxic yes/no."""
    MEAN = "mean"
    """Each example has a number and the metric is their mean: loss, ROUGE-L, a judge's mark."""
    CORPUS = "corpus"
    """The metric is a function of summed counts: BLEU, F1, precision, recall, perplexity."""


class Orientation(StrEnum):
    """Which way is better. Differences are always turned so that positive means: the candidate is better."""

    HIGHER_IS_BETTER = "HigherIsBetter"
    LOWER_IS_BETTER = "LowerIsBetter"

    @property
    def sign(self) -> int:
        """Factor that turns candidate less baseline into "better by"."""
        return 1 if self is Orientation.HIGHER_IS_BETTER else -1


class Method(StrEnum):
    """How the interval of the difference was computed."""

    TANGO = "Tango"
    """Score interval of a paired difference of proportions (Tango 1998)."""
    TANGO_RAO_SCOTT = "TangoRaoScott"
    """The same on counts divided by the design effect of the groups (Rao and Scott 1992)."""
    T_AND_BCA = "TAndBca"
    """The wider, at each end, of a cluster-robust t interval and a BCa bootstrap over groups."""
    JACKKNIFE_AND_BCA = "JackknifeAndBca"
    """The wider, at each end, of a jackknife t interval and a BCa bootstrap over groups, from summed counts."""
    BETTING = "Betting"
    """Betting interval for bounded scores (Waudby-Smith and Ramdas 2024): few examples differ."""
    NONE = "None"
    """No interval could be computed; the reason says why."""


class Inconclusive(StrEnum):
    """Why this row can prove nothing, whatever the policy."""

    TOO_FEW_GROUPS = "TooFewGroups"
    NO_VARIANCE = "NoVariance"
    TOO_FEW_DIFFERENCES = "TooFewDifferences"
    NOTHING_RIGHT = "NothingRight"
    """Both models have the worst score there is: that neither is worse says nothing."""


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """Candidate against baseline on the same examples, for one metric.

    `candidate` and `baseline` are the metric's plain values. `difference`, `low` and `high` are in the metric's unit,
    turned so that positive means the candidate is better; `low` and `high` are two one-sided `1 - alpha` bounds (with
    0.025: a 95 % interval). A candidate is non-inferior where `low > -margin`.
    """

    metric: str
    kind: MetricKind
    orientation: Orientation
    method: Method
    candidate: float
    baseline: float
    difference: float
    low: float | None
    high: float | None
    candidate_low: float | None
    """Bounds on the candidate's own value, for absolute thresholds."""
    candidate_high: float | None
    n: int
    """Examples."""
    groups: int
    """Near-duplicate groups: the independent units."""
    alpha: float
    margin: float
    """The largest loss that is still acceptable; negative: the improvement that is demanded."""
    p_loss: float
    """p-value of H0 "difference >= -margin". Small: the loss is proven larger than the margin. 1 if inconclusive."""
    p_outside: float | None
    """p-value of H0 "the candidate's value is inside the threshold range"; None without a range."""
    inconclusive: Inconclusive | None
    reason: str
    """Plain words for `inconclusive`; empty otherwise."""
    power: float | None
    """Chance of a pass (enough groups, and `low > -margin`) at this size if the models were equally good (with a margin
    of 0 or less: if the true difference were the observed one); None where that cannot be said."""
    needed_n: int | None
    """Examples for a power of 80 % on the same assumption; None where no number of examples would do."""

    @property
    def floor(self) -> float:
        """The difference that `low` has to exceed."""
        return -self.margin
