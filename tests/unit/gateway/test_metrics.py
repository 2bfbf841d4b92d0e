"""The gateway's metrics: series of versions that are not served any more go away."""

from __future__ import annotations

from prometheus_client import generate_latest

from finetune_gateway.metrics import Metrics


def test_versions_that_are_served_no_more_leave_no_series() -> None:
    metrics = Metrics()
    for variant in ("v1", "v2"):
        metrics.answered(variant=variant, code=200, seconds=0.1)
        metrics.answered(variant=variant, code=503, seconds=0.1)
        metrics.first_byte.labels(variant).observe(0.01)
    metrics.keep(variants=["v2"])
    text = generate_latest(metrics.registry).decode()
    assert 'variant="v1"' not in text
    assert 'finetune_gateway_requests_total{code="503",variant="v2"} 1.0' in text
    metrics.answered(variant="v1", code=200, seconds=0.1)  # its last request, which was under way
    assert metrics.registry.get_sample_value("finetune_gateway_requests_total", {"variant": "v1", "code": "200"}) == 1
