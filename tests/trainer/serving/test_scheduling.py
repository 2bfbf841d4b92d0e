"""Who may begin, how much is read, and which texts run together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.serving.classification import alike
from finetune_trainer.serving.together import may_join, shares


@pytest.mark.parametrize(
    ("length", "others", "most", "expected"),
    [
        (500, [], 100, True),  # alone: else it never could
        (10, [10], None, True),
        (10, [10], 20, True),
        (10, [10], 19, False),
        (5, [40, 5], 120, True),  # each may come to be as wide as the longest
        (5, [40, 5], 119, False),
        (50, [5, 5], 149, False),
    ],
)
def test_who_may_begin(length: int, others: list[int], most: int | None, expected: bool) -> None:
    assert may_join(length, others=others, most=most) is expected


@pytest.mark.parametrize(
    ("unread", "expected"),
    [([], []), ([3, 4], [3, 4]), ([8, 5], [8, 2]), ([90, 1], [10, 0]), ([10, 1, 1], [10, 0, 0])],
)
def test_prompts_are_read_in_their_order_as_far_as_a_round_goes(unread: list[int], expected: list[int]) -> None:
    assert shares(unread, budget=10) == expected


@given(unread=st.lists(st.integers(1, 50), max_size=8), budget=st.integers(1, 20))
def test_a_queue_that_is_read_in_rounds_ends_and_nobody_waits_for_more_than_those_before(
    unread: list[int], budget: int
) -> None:
    """A round reads `budget` tokens as long as there are so many, and each gets a share before any gets a third."""
    queue, read, rounds = list(enumerate(unread)), [0] * len(unread), 0
    while queue:
        given_ = shares([left for _, left in queue], budget=budget)
        assert sum(given_) == min(budget, sum(left for _, left in queue))
        for (number, _), share in zip(queue, given_, strict=True):
            read[number] += share
        cut = [(number, left - share) for (number, left), share in zip(queue, given_, strict=True) if 0 < share < left]
        untouched = [each for each, share in zip(queue, given_, strict=True) if not share]
        queue, rounds = untouched + cut, rounds + 1
    assert read == unread
    assert rounds == -(-sum(unread) // budget)


@given(lengths=st.lists(st.integers(1, 600), max_size=24))
def test_texts_that_run_together_are_filled_up_to_at_most_twice_their_length(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert max(lengths[index] for index in group) <= 2 * min(lengths[index] for index in group)
    assert len(groups) <= 10, "each group at least halves the length: 2 ** 10 > 600"
