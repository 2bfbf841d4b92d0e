"""Prometheus metrics of a server. Labels are bounded: routes that exist, status codes that are answered."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api.run import ServeOrder

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What a scrape of /metrics shows."""

    def __init__(self, *, order: ServeOrder) -> None:
        self.registry = to = CollectorRegistry()
        info = Gauge(
            "finetune_server_info", "What is served, always 1.", ["endpoint", "version", "uid", "task"], registry=to
        )
        info.labels(order.endpoint, order.version.name, order.version.uid or "", order.task).set(1)
        self.requests = Counter("finetune_server_requests", "Requests answered.", ["route", "code"], registry=to)
        self.latency = Histogram(
            "finetune_server_request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=to,
        )
        self.first_token = Histogram(
            "finetune_server_time_to_first_token_seconds",
            "From the request to the first token of its answer, waiting included.",
            buckets=_SECONDS,
            registry=to,
        )
        self.in_flight = Gauge("finetune_server_requests_in_flight", "Requests under way.", registry=to)
        self.waiting = Gauge("finetune_server_requests_waiting", "Requests that the model has not begun.", registry=to)
        self.running = Gauge("finetune_server_requests_running", "Requests that the model works on.", registry=to)
        self.kept_tokens = Gauge(
            "finetune_server_kept_tokens",
            "Tokens whose keys and values are in memory, those that fill rows up included.",
            registry=to,
        )
        self.prompt_tokens = Counter("finetune_server_prompt_tokens", "Tokens read.", registry=to)
        self.generated_tokens = Counter("finetune_server_generated_tokens", "Tokens generated.", registry=to)
        self.truncated_texts = Counter(
            "finetune_server_truncated_texts", "Texts to classify whose end was cut off.", registry=to
        )
        self.abandoned = Counter("finetune_server_abandoned_requests", "Clients that hung up.", registry=to)
        self.load_seconds = Gauge(
            "finetune_server_model_load_seconds", "Fetching, verifying and loading the model.", registry=to
        )
        self.ready = Gauge("finetune_server_ready", "1 once the model has answered.", registry=to)
