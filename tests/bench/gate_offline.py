"""Simulated evaluations: how often does the offline gate pass a bad candidate, fail a good one, or not decide?

The data are meant to be as awkward as real ones: near-duplicate groups whose members are alike, differences with heavy
or one-sided tails, scores that mostly tie, rare total losses, rare labels, answers of very different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune_stats import corpus
from finetune_stats.compare import compare_metric
from finetune_stats.result import MetricKind, Orientation, PairedResult
from finetune_stats.verdict import MetricRow, OverallVerdict, Verdict, judge

Generator = np.random.Generator
Array = np.ndarray
Scores = tuple[Array, Array, Array]
"""Candidate, baseline, groups."""

LARGEST_N = 20_000


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A metric on simulated data. `draw(rng, n, effect)` makes a candidate that is worse by `effect`, in any unit."""

    name: str
    kind: MetricKind
    n: int
    margin: float
    draw: Callable[[Generator, int, float], Scores]
    at_the_margin: int
    """Repetitions with the true loss at the margin."""
    equal: int
    """Repetitions without a difference; dearer, since each is followed by one at a sufficient n."""
    orientation: Orientation = Orientation.HIGHER_IS_BETTER
    statistic: Callable[[Array], Array] | None = None
    score_range: tuple[float, float] | None = None

    def compare(self, scores: Scores, *, seed: int = 0) -> PairedResult:
        """What the evaluation would report."""
        return compare_metric(
            metric=self.name,
            kind=self.kind,
            candidate=scores[0],
            baseline=scores[1],
            groups=scores[2],
            margin=self.margin,
            orientation=self.orientation,
            statistic=self.statistic,
            score_range=self.score_range,
            seed=seed,
        )

    def effect_at_the_margin(self) -> float:
        """The effect whose true loss is the margin; for corpus metrics found on a sample of 200,000 examples."""
        if self.statistic is None:
            return self.margin
        low, high = 0.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            candidate, baseline, _ = self.draw(np.random.default_rng(1), 200_000, middle)
            loss = -self.orientation.sign * float(
                self.statistic(candidate.sum(axis=0)) - self.statistic(baseline.sum(axis=0))
            )
            low, high = (middle, high) if loss < self.margin else (low, middle)
        return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the gate did with the candidates of one scenario."""

    name: str
    n: int
    false_promote: float
    """Share of candidates with a true loss of exactly the margin that passed, at `n`."""
    false_reject: float
    """Share of equal candidates that failed, at `n`."""
    sufficient_n: int
    """Median of the n that the reports at `n` call sufficient."""
    pass_equal: float
    """Share of equal candidates that passed, each at the n that a report before it called sufficient."""
    inconclusive: float
    """Share of the same candidates on which the gate did not decide."""


def measure(scenario: Scenario) -> Rates:
    """Simulate one scenario."""
    rng = np.random.default_rng(abs(hash_of(scenario.name)))
    effect = scenario.effect_at_the_margin()
    promoted = rejected = passed = undecided = 0
    sufficient = []
    for seed in range(scenario.at_the_margin):
        promoted += _verdict(scenario.compare(scenario.draw(rng, scenario.n, effect), seed=seed)) is Verdict.PASS
    for seed in range(scenario.equal):
        equal = scenario.compare(scenario.draw(rng, scenario.n, 0.0), seed=seed)
        rejected += _verdict(equal) is Verdict.FAIL
        enough = min(equal.needed_n or LARGEST_N, LARGEST_N)
        sufficient.append(enough)
        again = _verdict(scenario.compare(scenario.draw(rng, enough, 0.0), seed=seed))
        passed += again is Verdict.PASS
        undecided += again is Verdict.INCONCLUSIVE
    return Rates(
        name=scenario.name,
        n=scenario.n,
        false_promote=promoted / scenario.at_the_margin,
        false_reject=rejected / scenario.equal,
        sufficient_n=int(np.median(sufficient)),
        pass_equal=passed / scenario.equal,
        inconclusive=undecided / scenario.equal,
    )


def hash_of(name: str) -> int:
    """A seed that is the same in each process, unlike hash()."""
    return int.from_bytes(name.encode()[-6:], "big")


def _verdict(result: PairedResult) -> Verdict:
    return judge([MetricRow(result=result)]).verdict


def near_duplicates(rng: Generator, n: int, *, mean_size: float) -> Array:
    """Group numbers of n examples; group sizes are geometric with the given mean."""
    sizes = rng.geometric(1 / mean_size, n)
    return np.repeat(np.arange(n), sizes)[:n]


def right_or_wrong(*, discordance: float, mean_size: float, alike: float) -> Callable[[Generator, int, float], Scores]:
    """Right/wrong scores; with probability `alike` an example shares its group's fate."""

    def draw(rng: Generator, n: int, effect: float) -> Scores:
        groups = near_duplicates(rng, n, mean_size=mean_size)
        shared, own = rng.random(n)[groups], rng.random(n)
        fate = np.where(rng.random(n) < alike, shared, own)
        spread = max(discordance, effect)
        step = np.where(fate < (spread + effect) / 2, -1.0, np.where(fate < spread, 1.0, 0.0))
        baseline = np.where(step == 0, rng.random(n) < 0.75, step < 0).astype(float)
        return baseline + step, baseline, groups

    return draw


def losses(*, tail: str, alike: float) -> Callable[[Generator, int, float], Scores]:
    """Per-example losses; the paired differences have a standard deviation of 0.15 and the given tail."""

    def noise(rng: Generator, n: int) -> Array:
        if tail == "t3":
            return rng.standard_t(3, n) / math.sqrt(3)
        return (rng.lognormal(0, 0.75, n) - math.exp(0.28125)) / math.sqrt(math.expm1(0.5625) * math.exp(0.5625))

    def draw(rng: Generator, n: int, effect: float) -> Scores:
        groups = near_duplicates(rng, n, mean_size=1.3)
        baseline = rng.lognormal(0.3, 0.6, n)
        difference = math.sqrt(alike) * noise(rng, n)[groups] + math.sqrt(1 - alike) * noise(rng, n)
        return baseline + 0.15 * difference + effect, baseline, groups

    return draw


def tying_scores(rng: Generator, n: int, effect: float) -> Scores:
    """ROUGE-L-like: 60 % of the answers are the same, the others differ in either direction."""
    groups = near_duplicates(rng, n, mean_size=1.2)
    baseline = rng.beta(4, 2, n)
    differs = (rng.random(n) < 0.4)[groups]
    # Scores shrink towards a fresh draw of the same distribution, then lose a share that gives the wanted mean.
    changed = np.where(differs, rng.beta(4, 2, n), baseline)
    return changed * (1 - effect / (4 / 6)), baseline, groups


def rare_total_losses(rng: Generator, n: int, effect: float) -> Scores:
    """Nearly always the same score, and rarely everything is lost: the variance is in events that may not occur."""
    baseline = rng.uniform(0.9, 1, n)
    lost = rng.random(n) < effect / 0.95
    return np.where(lost, 0.0, baseline), baseline, np.arange(n)


def token_losses(rng: Generator, n: int, effect: float) -> Scores:
    """Summed negative log likelihoods and token counts of answers of very different lengths."""
    groups = near_duplicates(rng, n, mean_size=1.2)
    tokens = rng.geometric(0.02, n) + 1.0
    rate = np.log(3) + rng.normal(0, 0.4, n)[groups]
    worse = rate + 0.15 * rng.standard_t(4, n) + 0.2 * effect
    return np.stack([worse * tokens, tokens], axis=1), np.stack([rate * tokens, tokens], axis=1), groups


def imbalanced_labels(rng: Generator, n: int, effect: float) -> Scores:
    """Eight labels, the rarest with 3 % of the examples; the models agree on most mistakes."""
    groups = near_duplicates(rng, n, mean_size=1.2)
    shares = np.array([0.3, 0.22, 0.16, 0.12, 0.08, 0.05, 0.04, 0.03])
    gold = rng.choice(8, size=n, p=shares)[groups]
    hard = rng.random(n) < 0.2
    baseline = np.where(hard, rng.integers(0, 8, n), gold)
    redone = rng.random(n) < 0.12
    candidate = np.where(redone, np.where(rng.random(n) < 0.2, rng.integers(0, 8, n), gold), baseline)
    candidate = np.where(rng.random(n) < 0.3 * effect, rng.integers(-1, 8, n), candidate)
    return (
        corpus.label_counts(gold=gold, predicted=candidate, labels=8),
        corpus.label_counts(gold=gold, predicted=baseline, labels=8),
        groups,
    )


def translations(rng: Generator, n: int, effect: float) -> Scores:
    """N-gram counts of answers: longer n-grams match less, both models find the same examples easy."""
    groups = near_duplicates(rng, n, mean_size=1.2)
    reference = rng.geometric(0.06, n) + 5
    ease = rng.beta(5, 3, n)[groups]

    def counts(quality: Array) -> Array:
        length = np.maximum(4, reference + rng.integers(-2, 3, n))
        totals = np.stack([length - order for order in range(4)], axis=1)
        matches = np.empty_like(totals)
        matches[:, 0] = rng.binomial(totals[:, 0], quality)
        for order in range(1, 4):
            matches[:, order] = np.minimum(
                rng.binomial(totals[:, order], quality ** (1 + 0.6 * order)), totals[:, order]
            )
        return np.concatenate([matches, totals, length[:, None], reference[:, None]], axis=1).astype(float)

    return counts(ease * (1 - 0.2 * effect)), counts(ease), groups


COUNTED = {"at_the_margin": 3000, "equal": 1500}
BOOTSTRAPPED = {"at_the_margin": 800, "equal": 240}
SCENARIOS = (
    Scenario(
        name="exact match, near-duplicates alike",
        kind=MetricKind.PROPORTION,
        n=1000,
        margin=0.03,
        draw=right_or_wrong(discordance=0.1, mean_size=1.3, alike=0.6),
        **COUNTED,
    ),
    Scenario(
        name="exact match, large groups",
        kind=MetricKind.PROPORTION,
        n=1000,
        margin=0.05,
        draw=right_or_wrong(discordance=0.1, mean_size=3, alike=0.9),
        **COUNTED,
    ),
    Scenario(
        name="exact match, few differences",
        kind=MetricKind.PROPORTION,
        n=500,
        margin=0.02,
        draw=right_or_wrong(discordance=0.03, mean_size=1, alike=0),
        **COUNTED,
    ),
    Scenario(
        name="exact match, small set",
        kind=MetricKind.PROPORTION,
        n=100,
        margin=0.08,
        draw=right_or_wrong(discordance=0.2, mean_size=1, alike=0),
        **COUNTED,
    ),
    Scenario(
        name="loss, heavy tails",
        kind=MetricKind.MEAN,
        n=400,
        margin=0.02,
        draw=losses(tail="t3", alike=0.5),
        orientation=Orientation.LOWER_IS_BETTER,
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="loss, one-sided tail",
        kind=MetricKind.MEAN,
        n=400,
        margin=0.02,
        draw=losses(tail="lognormal", alike=0.5),
        orientation=Orientation.LOWER_IS_BETTER,
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="ROUGE-L, most answers tie",
        kind=MetricKind.MEAN,
        n=600,
        margin=0.02,
        draw=tying_scores,
        score_range=(0, 1),
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="judge score, rare total losses",
        kind=MetricKind.MEAN,
        n=600,
        margin=0.01,
        draw=rare_total_losses,
        score_range=(0, 1),
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="perplexity",
        kind=MetricKind.CORPUS,
        n=400,
        margin=0.08,
        draw=token_losses,
        statistic=corpus.perplexity,
        orientation=Orientation.LOWER_IS_BETTER,
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="macro F1, rare labels",
        kind=MetricKind.CORPUS,
        n=800,
        margin=0.04,
        draw=imbalanced_labels,
        statistic=corpus.macro_f1,
        **BOOTSTRAPPED,
    ),
    Scenario(
        name="BLEU",
        kind=MetricKind.CORPUS,
        n=400,
        margin=1.5,
        draw=translations,
        statistic=corpus.bleu,
        **BOOTSTRAPPED,
    ),
)


def measure_whole_gate(*, at_the_margin: int, equal: int) -> Rates:
    """Five metrics judged together: right/wrong, loss, ROUGE-L, F1, perplexity. Only the first is at its margin.

    `pass_equal` and `inconclusive` are at the n that the verdict calls sufficient for all five.
    """
    chosen = [SCENARIOS[index] for index in (0, 4, 6, 8, 9)]
    n = 1000
    rng = np.random.default_rng(77)
    promoted = rejected = passed = undecided = 0
    enough_for_all = []
    for seed in range(at_the_margin):
        # All must pass, so the other four are looked at only where the bad one did.
        worst = chosen[0].compare(chosen[0].draw(rng, n, chosen[0].margin), seed=seed)
        promoted += _verdict(worst) is Verdict.PASS and _judge_all(chosen[1:], rng, n=n).verdict is Verdict.PASS
    for _ in range(equal):
        pilot = _judge_all(chosen, rng, n=n)
        rejected += pilot.verdict is Verdict.FAIL
        enough = min(pilot.needed_n or LARGEST_N, LARGEST_N)
        enough_for_all.append(enough)
        again = _judge_all(chosen, rng, n=enough).verdict
        passed += again is Verdict.PASS
        undecided += again is Verdict.INCONCLUSIVE
    return Rates(
        name="five metrics together",
        n=n,
        false_promote=promoted / at_the_margin,
        false_reject=rejected / equal,
        sufficient_n=int(np.median(enough_for_all)),
        pass_equal=passed / equal,
        inconclusive=undecided / equal,
    )


def _judge_all(chosen: list[Scenario], rng: Generator, *, n: int) -> OverallVerdict:
    """Judge metrics on which the models are equal."""
    return judge([MetricRow(result=scenario.compare(scenario.draw(rng, n, 0.0))) for scenario in chosen])
