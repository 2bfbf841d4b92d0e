"""Write the reference of all metrics: `python manifests/monitoring/reference.py docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from finetune_api.base import VersionReference
from finetune_api.run import ServeOrder
from finetune_gateway.metrics import Metrics as GatewayMetrics
from finetune_operator.kube.process import RequestMetrics
from finetune_operator.metrics import Metrics as OperatorMetrics
from finetune_trainer.serving.metrics import Metrics as ServerMetrics

_TITLES = {
    "operator": "The operator, `:8080/metrics` of each replica",
    "gateway": "Gateways, `:8081/metrics` of each pod",
    "server": "Servers, `:8000/metrics` of each pod",
}


def registries() -> dict[str, CollectorRegistry]:
    """The metrics of each of our processes that can be scraped."""
    operator = CollectorRegistry()
    OperatorMetrics(registry=operator)
    RequestMetrics(registry=operator)
    order = ServeOrder.model_construct(endpoint="", version=VersionReference(name="v"), task="Chat")
    return {
        "operator": operator,
        "gateway": GatewayMetrics().registry,
        "server": ServerMetrics(order=order).registry,
    }


def page() -> str:
    """The page."""
    introduction = Path(__file__).with_name("reference.md").read_text()
    return "\n".join(
        [introduction, *(line for which, found in registries().items() for line in _section(which, found))]
    )


def _section(which: str, registry: CollectorRegistry) -> Iterator[str]:
    yield f"## {_TITLES[which]}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|"
    collectors: Any = registry._collector_to_names  # of a metric without series yet, nothing else says the labels
    for metric in sorted(collectors, key=lambda each: each._name):
        name = metric._name + ("_total" if metric._type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        yield f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |"
    yield ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
