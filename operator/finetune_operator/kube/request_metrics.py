"""Metrics of the calls to the apiserver."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)


class RequestMetrics:
    """Counts and times calls (api.Observer)."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "finetune_kubernetes_requests_total",
            "Calls to the apiserver; status 0: no answer.",
            ["method", "resource", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "finetune_kubernetes_request_duration_seconds",
            "Time of a call to the apiserver.",
            ["method"],
            buckets=_BUCKETS,
            registry=registry,
        )

    def __call__(self, method: str, path: str, status: int, seconds: float) -> None:
        """A call has ended."""
        self._requests.labels(method, resource_of(path), str(status)).inc()
        self._seconds.labels(method).observe(seconds)


def resource_of(path: str) -> str:
    """The plural name in an API path: a closed set, unlike paths."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    return rest[0] if rest else "discovery"
