"""Routes: what the operator tells an endpoint's gateways, in the ConfigMap `<endpoint>-routes`, key `routes.json`.

A gateway takes routes as a whole or not at all, keeps the last good ones through an outage of the apiserver, and
acknowledges the epoch it serves (finetune_api.observations).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune_api.base import StrictModel
from finetune_api.shared_fields import Task

SCHEMA_VERSION = 1
ROUTES_KEY = "routes.json"


class Variant(StrictModel):
    """A served version."""

    name: str
    url: str
    """Base URL of its Service, e.g. http://support-router-6.ml.svc:8000"""
    ready: bool
    """Always true: versions come into routes once they are ready. Gateways of earlier operators ask for it."""


class Breaker(StrictModel):
    """When a gateway leaves a variant by itself for the rule's fallback, without asking the operator.

    The variant is left for good (until a newer epoch) when, within the window, at least `failures` requests failed and
    they are at least `failure_ratio` of all. A request counts as failed on a connect error, a 5xx, a timeout, or as
    soon as it is overdue.
    """

    failures: Annotated[int, Field(ge=1)] = 5
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    window_seconds: Annotated[float, Field(gt=0)] = 5.0
    overdue_seconds: Annotated[float, Field(gt=0)] = 5.0
    """No first byte of the answer for this long: overdue."""


class RouteRule(StrictModel):
    """Who goes where. The first rule that matches decides; the last one matches everybody."""

    name: str
    match: dict[str, str] | None = None
    """Header name (lower case) -> exact value; None: everybody."""
    weights: dict[str, Annotated[float, Field(ge=0, le=100)]]
    """Variant UID -> percent of users. Adds up to 100."""
    fallback: str | None = None
    """The variant that takes over when another one's breaker opens."""
    breaker: Breaker | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> RouteRule:
        total = sum(self.weights.values())
        if abs(total - 100) > 1e-6:
            raise ValueError(f"rule {self.name}: weights add up to {total:g}, not 100")
        return self


class ProbeOrder(StrictModel):
    """Held-out prompts to send through candidate and stable."""

    rate_per_second: Annotated[float, Field(gt=0)]
    repeat: bool = False
    """Begin again when all were asked. A prompt that was asked before counts only for what has changed since."""


class ShadowOrder(StrictModel):
    """Copies of requests to the candidate."""

    candidate: str
    stable: str
    percent: Annotated[float, Field(ge=0, le=100)]
    timeout_seconds: Annotated[float, Field(gt=0)]
    max_in_flight: Annotated[int, Field(ge=1)] = 8
    probe: ProbeOrder | None = None


class Judging(StrictModel):
    """What counts as a bad answer, frozen for the rollout so that both arms are measured alike."""

    latency_limit_seconds: float | None = None
    user_weight_cap: Annotated[int, Field(ge=1)] = 20
    """Requests of one user that count in one comparison and of one variant; more are served but not counted. What is counted is taken
    for independent, and of one user it is not: the more of it, the more often chance is called a regression."""


class Routes(StrictModel):
    """The whole routing table of an endpoint."""

    schema_version: Literal[1] = 1
    epoch: Annotated[int, Field(ge=1)]
    endpoint: str
    model: str
    """The model name that clients use: the endpoint's name."""
    task: Task
    variants: dict[str, Variant]
    stable: str | None = None
    """UID of the version that is stable: what a restored backup goes on to serve."""
    rules: Annotated[list[RouteRule], Field(min_length=1)]
    shadow: ShadowOrder | None = None
    judging: Judging = Judging()
    sticky_salt: str = ""
    """Keeps users where they are through the epochs of one rollout."""

    @model_validator(mode="after")
    def _consistent(self) -> Routes:
        for rule in self.rules:
            for uid in [*rule.weights, *([rule.fallback] if rule.fallback else [])]:
                if uid not in self.variants:
                    raise ValueError(f"rule {rule.name} names variant {uid}, which is not among the variants")
        if self.rules[-1].match is not None:
            raise ValueError("the last rule must match everybody")
        if self.shadow is not None and not {self.shadow.candidate, self.shadow.stable} <= self.variants.keys():
            raise ValueError("shadow names a variant that is not among the variants")
        return self
