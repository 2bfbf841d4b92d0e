"""Metrics of endpoints: there from the start, counted once, gone with their object."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from finetune_api.base import ObjectMeta
from finetune_api.modelendpoint import ComparisonStatus, ModelEndpointStatus
from finetune_operator.core.ports import Key
from finetune_operator.endpoint.facts import with_comparison, with_outcome
from finetune_operator.endpoint.metrics import EndpointMetrics
from finetune_operator.endpoint.rollout.choose import MOST_OUTCOMES

NOW = datetime(2026, 11, 21, tzinfo=UTC)
KEY = Key(kind="ModelEndpoint", namespace="ml", name="router")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> EndpointMetrics:
    return EndpointMetrics(registry=registry)


def canary() -> ModelEndpointStatus:
    return ModelEndpointStatus.model_validate(
        {
            "phase": "Canary",
            "step": {"stage": "Canary", "name": "five", "percent": 5, "startTime": NOW, "samples": 40, "needed": 100},
            "conditions": [
                {"type": "Available", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": NOW}
            ],
        }
    )


def with_rejected(status: ModelEndpointStatus, *, number: int) -> ModelEndpointStatus:
    now = NOW + timedelta(seconds=number)
    return with_outcome(
        status, ObjectMeta(name=f"v{number}", uid=f"u{number}"), outcome="Rejected", reason="bad", now=now
    )


def compared(*, baseline: str) -> ComparisonStatus:
    return ComparisonStatus.model_validate(
        {
            "version": {"name": "v2", "uid": "u2"},
            "baseline": {"name": "v1", "digest": f"sha256:{baseline * 64}"},
            "verdict": "Fail",
            "accepted": False,
            "reason": "worse",
            "time": NOW,
        }
    )


@pytest.mark.parametrize(
    "line",
    [
        'finetune_endpoints{phase="Guarding"} 0.0',
        'finetune_rollouts_total{outcome="RolledBack"} 0.0',
        'finetune_comparisons_total{verdict="Inconclusive"} 0.0',
    ],
)
def test_metrics_are_there_from_the_start(metrics: EndpointMetrics, registry: CollectorRegistry, line: str) -> None:
    assert metrics.outcomes is not None
    assert line in generate_latest(registry).decode().splitlines()


def test_an_endpoint_is_shown_as_it_is_and_goes_away(metrics: EndpointMetrics, registry: CollectorRegistry) -> None:
    metrics.show(key=KEY, status=ModelEndpointStatus(phase="Idle"), now=NOW)
    metrics.show(key=KEY, status=canary(), now=NOW)
    labels = {"namespace": "ml", "name": "router"}
    expected = {"finetune_canary_weight_ratio": 0.05, "finetune_rollout_samples": 40, "finetune_endpoint_available": 1}
    assert {name: registry.get_sample_value(name, labels) for name in expected} == expected
    phases = {phase: registry.get_sample_value("finetune_endpoints", {"phase": phase}) for phase in ("Idle", "Canary")}
    assert phases == {"Idle": 0, "Canary": 1}
    metrics.forget_all()
    metrics.forget(key=KEY)
    assert registry.get_sample_value("finetune_endpoints", {"phase": "Canary"}) == 0
    assert [registry.get_sample_value(name, labels) for name in expected] == [None] * 3


@pytest.mark.parametrize(("proven", "shown"), [(True, 1), (False, 0), (None, None)])
def test_what_is_not_proven_is_not_shown_as_proven(
    metrics: EndpointMetrics, registry: CollectorRegistry, proven: bool | None, shown: float | None
) -> None:
    stable = {"name": "v1", "uid": "u1", "digest": f"sha256:{'1' * 64}", "revision": "r", "proven": proven}
    for each in (stable | {"proven": True}, stable):
        metrics.show(key=KEY, status=ModelEndpointStatus.model_validate({"phase": "Idle", "stable": each}), now=NOW)
    labels = {"namespace": "ml", "name": "router"}
    assert registry.get_sample_value("finetune_endpoint_proven", labels) == shown


def test_each_outcome_is_counted_once_however_many_there_have_been(
    metrics: EndpointMetrics, registry: CollectorRegistry
) -> None:
    status = with_rejected(ModelEndpointStatus(phase="Idle"), number=0)
    metrics.show(key=KEY, status=status, now=NOW)  # from before this process led
    for number in range(1, MOST_OUTCOMES + 11):
        status = with_rejected(status, number=number)
        metrics.show(key=KEY, status=status, now=NOW)
        metrics.show(key=KEY, status=status, now=NOW)
    assert len(status.versions) == MOST_OUTCOMES
    assert registry.get_sample_value("finetune_rollouts_total", {"outcome": "Rejected"}) == MOST_OUTCOMES + 10


def test_comparisons_are_counted_by_verdict(metrics: EndpointMetrics, registry: CollectorRegistry) -> None:
    status = ModelEndpointStatus(phase="Idle")
    metrics.show(key=KEY, status=status, now=NOW)
    for baseline in "ab":
        status = with_comparison(status, compared(baseline=baseline))
        metrics.show(key=KEY, status=status, now=NOW)
    assert registry.get_sample_value("finetune_comparisons_total", {"verdict": "Fail"}) == 2
