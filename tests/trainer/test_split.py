"""Who is held out: groups together, the same in every run, in proportion where asked for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from demo import assets
from tests.harness.store import ROOT

from finetune_api.finetunejob import Split
from finetune_api.results import ExitCode
from finetune_trainer.data.dataset import SPLITS, SplitName
from finetune_trainer.data.split import Member, Shares, split
from finetune_trainer.process.errors import StageError

USUAL = Shares(train=0.8, validation=0.1, test=0.1)


def group(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def members(count: int, *, stratum: str | None = None, start: int = 0) -> list[Member]:
    return [Member(group=group(number), stratum=stratum) for number in range(start, start + count)]


def divide(
    rows: list[Member], *, shares: Shares = USUAL, salt: str = "endpoint", seed: int = 0, by: str | None = None
) -> list[SplitName]:
    return split(rows, shares=shares, salt=salt, seed=seed, stratify_by=by)


def test_shares_come_out_and_depend_on_salt_and_seed() -> None:
    rows = members(20_000)
    found = divide(rows)
    counts = Counter(found)
    # Four standard deviations of a binomial count.
    for name in SPLITS:
        share = USUAL.share(name)
        assert abs(counts[name] - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5
    assert found == divide(rows)
    assert found != divide(rows, salt="another")
    assert found != divide(rows, seed=1)


def test_a_group_is_never_parted() -> None:
    rows = [Member(group=group(number // 7)) for number in range(2000)]
    for by in (None, "label"):
        where: dict[str, set[str]] = {}
        for row, name in zip(rows, divide(rows, by=by), strict=True):
            where.setdefault(row.group, set()).add(name)
        assert all(len(names) == 1 for names in where.values())


def test_an_example_stays_where_it_is_when_others_come_and_go() -> None:
    rows = members(500)
    before = dict(zip((row.group for row in rows), divide(rows), strict=True))
    more = [*members(500, start=1000), *rows[100:]]
    after = dict(zip((row.group for row in more), divide(more), strict=True))
    assert all(before[key] == after[key] for key in before.keys() & after.keys())


def test_a_larger_test_share_only_adds_to_the_test_split() -> None:
    rows = members(1000)
    small = divide(rows)
    large = divide(rows, shares=Shares(train=0.7, validation=0.1, test=0.2))
    assert all(after == "test" for before, after in zip(small, large, strict=True) if before == "test")


# -- stratified -------------------------------------------------------------------------------------------------------


def test_each_stratum_keeps_its_proportions() -> None:
    sizes = {"common": 1000, "usual": 100, "rare": 10, "rarest": 3}
    rows = [
        row
        for start, (name, size) in enumerate(sizes.items())
        for row in members(size, stratum=name, start=start * 5000)
    ]
    found = Counter(zip((row.stratum for row in rows), divide(rows, by="label"), strict=True))
    assert [found["common", name] for name in ("train", "validation", "test")] == [800, 100, 100]
    assert [found["usual", name] for name in ("train", "validation", "test")] == [80, 10, 10]
    assert [found["rare", name] for name in ("train", "validation", "test")] == [8, 1, 1]
    assert [found["rarest", name] for name in ("train", "validation", "test")] == [1, 1, 1]


def test_two_of_a_kind_are_learned_and_held_out() -> None:
    rows = [*members(50, stratum="common"), *members(2, stratum="rare", start=100)]
    found = divide(rows, by="label")
    assert sorted(found[50:]) == ["test", "train"]


def test_a_group_that_is_larger_than_the_held_out_share_is_learned() -> None:
    rows = [*(Member(group=group(0), stratum="a") for _ in range(50)), *members(50, stratum="a", start=1)]
    assert set(divide(rows, by="label")[:50]) == {"train"}


@pytest.mark.parametrize("copies", [1, 4])
def test_a_label_seen_once_cannot_be_stratified(copies: int) -> None:
    rows = [*members(50, stratum="common"), *(Member(group=group(999), stratum="lonely") for _ in range(copies))]
    rows += [Member(group=group(1000 + number), stratum=f"rare {number}") for number in range(3)]
    with pytest.raises(StageError, match="label 'lonely' is seen") as refused:
        divide(rows, by="label")
    assert (refused.value.reason, refused.value.exit_code) == ("StratumTooSmall", ExitCode.BAD_DATA)
    assert "(the same is true of 'rare 0', 'rare 1', 'rare 2')" in refused.value.message


# -- what cannot be split ---------------------------------------------------------------------------------------------


def test_no_examples() -> None:
    with pytest.raises(StageError) as refused:
        divide([])
    assert refused.value.reason == "EmptyData"


def test_a_split_that_would_be_empty_says_how_many_are_needed() -> None:
    rows = [Member(group=group(0)) for _ in range(30)]
    with pytest.raises(StageError) as refused:
        divide(rows)
    assert (refused.value.reason, refused.value.exit_code) == ("EmptySplit", ExitCode.BAD_DATA)
    assert "30 examples make 1 groups of near-duplicates (the largest has 30)" in refused.value.message
    # 1 - 0.9 ^ 44 = 0.990
    assert "about 44 groups are needed" in refused.value.message


def test_as_many_groups_as_the_message_asks_for_are_enough() -> None:
    rows = members(44)
    failures = 0
    for number in range(300):
        try:
            divide(rows, salt=str(number), shares=Shares(train=0.9, validation=0.0, test=0.1))
        except StageError:
            failures += 1
    assert failures <= 12  # 1 % expected; P(more than 12 of 300) < 1e-4


def test_a_share_of_zero_stays_empty() -> None:
    found = divide(members(200), shares=Shares(train=0.9, validation=0.0, test=0.1))
    assert set(found) == {"train", "test"}


def test_a_fixed_evaluation_set_leaves_its_share_to_the_others() -> None:
    fractions = Split(train=0.6, validation=0.2, test=0.2)
    assert Shares.of(fractions, fixed_evaluation=False) == Shares(train=0.6, validation=0.2, test=0.2)
    shares = Shares.of(fractions, fixed_evaluation=True)
    assert (round(shares.train, 6), round(shares.validation, 6), shares.test) == (0.75, 0.25, 0.0)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_demo_learns_every_topic_in_any_namespace(number: int, tmp_path: Path) -> None:
    """The namespace is part of the salt."""
    assets.fill_topics(tmp_path)
    data = yaml.safe_load((ROOT / "demo" / f"job-topics-{number}.yaml").read_text())["spec"]["data"]
    ordered = Split.model_validate(data["split"])
    (source,) = data["sources"]
    lines = (tmp_path / source["uri"].removeprefix("pvc://models/")).read_text().splitlines()
    rows = [Member(group=each["text"], stratum=each["label"]) for each in map(json.loads, lines)]
    shares = Shares.of(ordered, fixed_evaluation=True)
    by = "label" if ordered.strategy == "Stratified" else None
    for namespace in range(200):
        found = divide(rows, shares=shares, salt=f"team-{namespace}/topics", by=by)
        learned = {row.stratum for row, place in zip(rows, found, strict=True) if place == "train"}
        assert learned == {row.stratum for row in rows}, namespace
