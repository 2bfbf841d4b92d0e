"""Which examples a person should look at, and which words of an answer are not those of the reference."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Change = Literal["Gained", "Lost", "Same"]

_PARTS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_PARTS = 1500
_LONGEST_TEXT = 2000


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one model made of an example."""

    answer: str | None
    """The answer, or the predicted class; None where nothing was generated."""
    scores: Mapping[str, float]
    probabilities: Mapping[str, float] | None = None
    """Of the likeliest classes."""


@dataclass(frozen=True, kw_only=True)
class ComparedExample:
    """One held-out example with what both models made of it: a line of examples.jsonl."""

    id: str
    group: str
    prompt: Sequence[Mapping[str, str]] | str
    """The chat before the answer (`role`, `content`), or the text."""
    reference: str | None
    """The right answer or class; None for plain texts."""
    candidate: Said
    baseline: Said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is not known is left out."""
        return {
            "id": self.id,
            "group": self.group,
            "prompt": self.prompt if isinstance(self.prompt, str) else [dict(turn) for turn in self.prompt],
            **({} if self.reference is None else {"reference": self.reference}),
            "candidate": _said(self.candidate),
            "baseline": _said(self.baseline),
        }

    def change(self, *, metric: str, better: Literal["Higher", "Lower"]) -> float:
        """By how much the candidate is better on one metric; 0 where either has no score."""
        mine, theirs = self.candidate.scores.get(metric), self.baseline.scores.get(metric)
        if mine is None or theirs is None:
            return 0.0
        return mine - theirs if better == "Higher" else theirs - mine


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The examples on which the models differ, the largest change first, cut to what a page can show."""

    metric: str
    """The score that decides what is better."""
    counts: Mapping[Change, int]
    """How many there are before cutting. Same: another answer with the same score."""
    shown: Mapping[Change, Sequence[ComparedExample]]


def deciding_metric(examples: Sequence[ComparedExample]) -> str:
    """The score by which an example is called better or worse: right or wrong where any answer is right."""
    scores = [said.scores for example in examples for said in (example.candidate, example.baseline)]
    for metric in ("accuracy", "exact_match"):
        if any(score.get(metric) for score in scores):
            return metric
    return next((metric for metric in ("rouge_l", "token_f1") if any(metric in score for score in scores)), "loss")


def find_changes(examples: Sequence[ComparedExample], *, most: int = 200) -> Changes:
    """Sort the examples that changed into gained, lost and same, and keep `most` of them, in turn from each."""
    metric = deciding_metric(examples)
    better: Literal["Higher", "Lower"] = "Lower" if metric == "loss" else "Higher"
    change = {example.id: example.change(metric=metric, better=better) for example in examples}
    found: dict[Change, list[ComparedExample]] = {"Gained": [], "Lost": [], "Same": []}
    for example in sorted(examples, key=lambda example: -abs(change[example.id])):
        if change[example.id] > 0:
            found["Gained"].append(example)
        elif change[example.id] < 0:
            found["Lost"].append(example)
        elif (example.candidate.answer or "").strip() != (example.baseline.answer or "").strip():
            found["Same"].append(example)
    shown: dict[Change, list[ComparedExample]] = {kind: [] for kind in found}
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(_labelled(kind, found[kind]) for kind in found)))
    for kind, example in itertools.islice((pair for pair in in_turn if pair is not None), most):
        shown[kind].append(example)
    return Changes(metric=metric, counts={kind: len(found[kind]) for kind in found}, shown=shown)


def marked(text: str, *, reference: str | None) -> list[tuple[str, bool]]:
    """The text in pieces; True for those that are not in the reference at this place."""
    if reference is None or not text:
        return [(text, False)]
    ours, theirs = _PARTS.findall(text), _PARTS.findall(reference)
    if max(len(ours), len(theirs)) > _MOST_PARTS:
        # The comparison takes time that grows with the square of the length.
        return [(text, text.strip() != reference.strip())]
    matcher = difflib.SequenceMatcher(a=theirs, b=ours, autojunk=False)
    return [
        ("".join(ours[first:last]), kind != "equal")
        for kind, _, _, first, last in matcher.get_opcodes()
        if first != last
    ]


def printable(text: str, *, longest: int = _LONGEST_TEXT) -> str:
    """The text as it can be shown on a page: control characters visible, very long ones cut."""
    cut = text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more characters)"
    return "".join(_visible(character) for character in cut)


def _visible(character: str) -> str:
    if character in "\n\t" or ord(character) >= 0xA0 or 0x20 <= ord(character) < 0x7F:
        return character
    # The picture of a control character (U+2400 and on); C1 controls have none.
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "\u2421" if ord(character) == 0x7F else "\ufffd"


def _labelled(kind: Change, examples: Sequence[ComparedExample]) -> list[tuple[Change, ComparedExample]]:
    return [(kind, example) for example in examples]


def _said(said: Said) -> dict[str, Any]:
    return {
        **({} if said.answer is None else {"answer": said.answer}),
        "scores": {name: float(f"{value:.6g}") for name, value in said.scores.items()},
        **({} if said.probabilities is None else {"probabilities": dict(said.probabilities)}),
    }
