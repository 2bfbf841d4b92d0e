"""The token bucket, against a clock that the test turns."""

from __future__ import annotations

from finetune_operator.kube.door import RateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_a_steady_rate() -> None:
    clock = Clock()
    limit = RateLimit(per_second=2.0, burst=3, clock=clock)
    assert [limit.take(caller="a") for _ in range(3)] == [0, 0, 0]
    assert limit.take(caller="a") == 0.5
    clock.now += 0.5
    assert limit.take(caller="a") == 0
    assert limit.take(caller="a") == 0.5
    clock.now += 3600
    assert [limit.take(caller="a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    limit = RateLimit(per_second=1.0, burst=1, clock=clock)
    assert limit.take(caller="a") == 0
    for _ in range(10):
        assert limit.take(caller="a") > 0
    clock.now += 1
    assert limit.take(caller="a") == 0


def test_callers_do_not_share() -> None:
    limit = RateLimit(per_second=1.0, burst=1, clock=Clock())
    assert limit.take(caller="a") == 0
    assert limit.take(caller="a") > 0
    assert limit.take(caller="b") == 0


def test_asking_counts_nothing() -> None:
    limit = RateLimit(per_second=1.0, burst=1, clock=Clock())
    assert [limit.wait_seconds(caller="a") for _ in range(5)] == [0] * 5
    assert limit.take(caller="a") == 0


def test_memory_is_bounded() -> None:
    limit = RateLimit(per_second=1.0, burst=1, clock=Clock())
    for number in range(20_000):
        limit.take(caller=str(number))
    assert len(limit._buckets) <= 8192
