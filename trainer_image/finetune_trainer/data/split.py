"""Who is trained on, who validates, who is held out. Groups of relatives are never parted, and chance is a salted hash:
the same salt gives the same answer in every run, whatever else is in the data.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetune_api.finetunejob import Split
from finetune_trainer.data.dataset import SPLITS, SplitName
from finetune_trainer.data.fields import listed
from finetune_trainer.process.errors import bad_data

# A needed number of examples is one with which the split has at least one group this likely.
_LIKELY = 0.99


@dataclass(frozen=True, kw_only=True)
class Member:
    """What the split needs to know of an example."""

    group: str
    stratum: str | None = None
    """The value whose proportions are kept, for a stratified split."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which share of the examples each split gets; they add up to 1."""

    train: float
    validation: float
    test: float

    @classmethod
    def of(cls, fractions: Split, *, fixed_evaluation: bool) -> Shares:
        """As ordered; where a fixed evaluation set is the test split, the rest is shared out among the other two."""
        if not fixed_evaluation:
            return cls(train=fractions.train, validation=fractions.validation, test=fractions.test)
        rest = fractions.train + fractions.validation
        return cls(train=fractions.train / rest, validation=fractions.validation / rest, test=0.0)

    def share(self, name: SplitName) -> float:
        """Of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def split(
    members: Sequence[Member],
    *,
    shares: Shares,
    salt: str,
    seed: int,
    stratify_by: str | None,
    likeness: Callable[[str], str] = lambda group: "",
) -> list[SplitName]:
    """The split of each example.

    By group hash, a group is placed by its hash alone: it stays where it is when others come or go. With
    `stratify_by` (the field that `Member.stratum` is from), the groups of each stratum are dealt in order of their
    hashes, so that its proportions come out as near as whole groups allow. `likeness` says in words why a group is one.
    Raises StageError (65): EmptySplit, StratumTooSmall, EmptyData.
    """
    if not members:
        raise bad_data(
            "EmptyData", "data.sources: no example is left to split; look at the rows read, bad and duplicate above"
        )
    draws = {group: _draw(f"{salt}\n{seed}\n{group}") for group in {member.group for member in members}}
    if stratify_by is not None:
        places = _stratified(members, shares=shares, draws=draws, by=stratify_by, likeness=likeness)
    else:
        places = {group: _by_threshold(draw, shares) for group, draw in draws.items()}
    found = [places[member.group] for member in members]
    _check_none_empty(found, members, shares, likeness)
    return found


def _draw(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _by_threshold(draw: float, shares: Shares) -> SplitName:
    # The held-out end comes first, so that a larger test share only adds to the test split.
    if draw < shares.test:
        return "test"
    return "validation" if draw < shares.test + shares.validation else "train"


def _stratified(
    members: Sequence[Member],
    *,
    shares: Shares,
    draws: Mapping[str, float],
    by: str,
    likeness: Callable[[str], str],
) -> dict[str, SplitName]:
    sizes = Counter(member.group for member in members)
    strata: defaultdict[str, list[str]] = defaultdict(list)
    for group, stratum in _stratum_of_groups(members).items():
        strata[stratum].append(group)
    places: dict[str, SplitName] = {}
    small = [stratum for stratum, groups in sorted(strata.items()) if len(groups) < 2 and shares.train < 1]
    if small:
        (group,) = strata[small[0]]
        seen = "once" if sizes[group] == 1 else f"in {sizes[group]} examples that all are near-duplicates"
        others = f" (the same is true of {listed(map(repr, small[1:]))})" if len(small) > 1 else ""
        raise bad_data(
            "StratumTooSmall",
            f"data.split.by: {by} {small[0]!r} is seen {seen}: it cannot be both learned and held out{others}. Add"
            f" examples of it, remove it, or use data.split.strategy: GroupHash{likeness(group)}",
        )
    for groups in (strata[stratum] for stratum in sorted(strata)):
        # A group larger than the whole held-out share is learned from, if others can be held out.
        room = max(1.0, (1 - shares.train) * sum(sizes[group] for group in groups))
        ordered = sorted(groups, key=lambda group: (sizes[group] > room, draws[group], group))
        places |= _fill(ordered, sizes=sizes, shares=shares)
    return places


def _stratum_of_groups(members: Sequence[Member]) -> dict[str, str]:
    """The most frequent stratum among each group's members."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for member in members:
        counts[member.group][member.stratum or ""] += 1
    return {group: min(found, key=lambda stratum: (-found[stratum], stratum)) for group, found in counts.items()}


def _fill(groups: Sequence[str], *, sizes: Mapping[str, int], shares: Shares) -> dict[str, SplitName]:
    """Deal a stratum's groups: test first, then validation, the rest to train.

    Each split that has a share gets its rounded number of rows, and a group at least where there are enough groups;
    train always keeps one.
    """
    places: dict[str, SplitName] = {}
    rows = sum(sizes[group] for group in groups)
    left = list(groups)
    held_out: tuple[SplitName, ...] = ("test", "validation")
    for name in held_out:
        quota = math.floor(shares.share(name) * rows + 0.5)
        taken = 0
        while len(left) > 1 and shares.share(name) > 0 and (taken == 0 or taken + sizes[left[0]] / 2 <= quota):
            taken += sizes[left[0]]
            places[left.pop(0)] = name
    return places | dict.fromkeys(left, "train")


def _check_none_empty(
    found: Sequence[SplitName], members: Sequence[Member], shares: Shares, likeness: Callable[[str], str]
) -> None:
    counts = Counter(found)
    groups = Counter(member.group for member in members)
    for name in SPLITS:
        if shares.share(name) > 0 and counts[name] == 0:
            needed = math.ceil(math.log(1 - _LIKELY) / math.log(1 - shares.share(name)))
            group, largest = groups.most_common(1)[0]
            raise bad_data(
                "EmptySplit",
                f"data.split.{name}: {shares.share(name):g} would be empty: {len(members)} examples make"
                f" {len(groups)} groups of near-duplicates (the largest has {largest}), and about"
                f" {max(needed, 2)} groups are needed. Add examples, raise the share, or set it to 0"
                f"{likeness(group)}",
            )
