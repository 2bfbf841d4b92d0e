"""Prometheus metrics of a gateway replica. Labels are bounded: variants by name, results as a closed set."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What a scrape of /metrics shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._of: dict[tuple[str, int], tuple[Counter, Histogram | None]] = {}
        """Children of `requests` and `latency` by variant and status: to look them up costs more than to count."""
        self.requests = Counter(
            "finetune_gateway_requests",
            "Client requests by variant and result.",
            ["variant", "code"],
            registry=registry,
        )
        self.latency = Histogram(
            "finetune_gateway_request_duration_seconds",
            "From the whole request to the last byte of the answer.",
            ["variant"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.first_byte = Histogram(
            "finetune_gateway_time_to_first_byte_seconds",
            "Of streamed answers: from the whole request to what the client reads first.",
            ["variant"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("finetune_gateway_requests_in_flight", "Client requests under way.", registry=registry)
        self.retries = Counter(
            "finetune_gateway_retries",
            "Requests answered by another variant or replica.",
            ["reason"],
            registry=registry,
        )
        self.epoch = Gauge("finetune_gateway_routes_epoch", "The epoch of the routes in force.", registry=registry)
        self.breakers = Counter("finetune_gateway_breakers_opened", "Variants left by this replica.", registry=registry)
        self.shadow = Counter(
            "finetune_gateway_shadow_requests", "Copies to the candidate.", ["result"], registry=registry
        )
        self.reports_failed = Counter(
            "finetune_gateway_reports_failed",
            "Reports that the operator did not take; the next one holds the same counts and more.",
            registry=registry,
        )
        self.lines_dropped = Counter(
            "finetune_gateway_access_log_lines_dropped", "Lines that could not be written.", registry=registry
        )
        self.spans_dropped = Counter(
            "finetune_gateway_spans_dropped",
            "Spans that had no room or that the collector did not take.",
            registry=registry,
        )
        for reason in ("connect", "server_error", "busy", "overdue", "unreachable", "breaker"):
            self.retries.labels(reason)
        for result in ("completed", "dropped"):
            self.shadow.labels(result)

    def keep(self, *, variants: Collection[str]) -> None:
        """Only these are served from now on: what was counted of others goes away."""
        for gone in {variant for variant, _ in self._of} - set(variants):
            for metric in (self.requests, self.latency, self.first_byte):
                metric.remove_by_labels({"variant": gone})
            self._of = {key: found for key, found in self._of.items() if key[0] != gone}

    def answered(self, *, variant: str, code: int, seconds: float) -> None:
        """Count one attempt to have a request answered. Latency is that of answers that came."""
        found = self._of.get((variant, code))
        if found is None:
            histogram = self.latency.labels(variant) if code == 200 else None
            found = self._of[variant, code] = self.requests.labels(variant, str(code)), histogram
        counter, histogram = found
        counter.inc()
        if histogram is not None:
            histogram.observe(seconds)
