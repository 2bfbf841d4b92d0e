"""Observations: what a gateway tells the operator, `POST /v1/observations` at the door, and what it is told in return.

All counts are cumulative since the gateway's start (`boot_id`), so a lost report loses nothing and a repeated one
counts once. They are kept per epoch: the operator subtracts nothing but what it has already taken of the same boot.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel

OBSERVATIONS_ROUTE = "/v1/observations"

Count = Annotated[int, Field(ge=0)]


class ArmCounts(ApiModel):
    """Client requests answered by one variant under one rule in one epoch. Users beyond their weight cap not counted."""

    epoch: int
    rule: str
    variant: str
    requests: Count = 0
    """First attempts: what another version answered instead says nothing about either."""
    clients: Count = 0
    """Of these, the first of each user, and all whose user is not known."""
    client_errors: Count = 0
    """Of `clients`: called wrong by the version (4xx). Each user has one voice: one whose requests are all wrong is no
    evidence against the version that he was given."""
    errors: Count = 0
    """Connect errors, 5xx, 408, 429, timeouts, broken streams; requests that are overdue count here already."""
    slow: Count = 0
    """Over the latency limit; requests in flight past it count here already."""
    bad: Count = 0
    """Bad answers: empty, refused, repeated, broken JSON, negative feedback. Each request at most once."""
    positive: Count = 0
    negative: Count = 0
    capped: Count = 0
    """Served but not counted, because their user had been counted often enough."""
    latency_sum_seconds: float = 0.0


class PairCounts(ApiModel):
    """The same prompt answered by candidate and stable: a two by two table of bad answers per metric."""

    epoch: int
    source: Literal["Shadow", "Probe"]
    candidate: str
    stable: str
    metric: Literal["error_rate", "latency_seconds", "quality"]
    pairs: Count = 0
    candidate_only: Count = 0
    """Bad with the candidate, good with stable. A refusal (4xx) that the other one did not give is a failure."""
    stable_only: Count = 0
    both: Count = 0


class ShadowCounts(ApiModel):
    """How the shadow itself fares. Reported, not judged."""

    epoch: int
    sampled: Count = 0
    dropped: Count = 0


class BreakerTrip(ApiModel):
    """A gateway left a variant by itself."""

    epoch: int
    rule: str
    variant: str
    reason: Annotated[str, Field(max_length=512)]
    at: float
    """Unix seconds by the gateway's clock."""


class Observations(ApiModel):
    """The body of a report."""

    endpoint: str
    gateway: str
    """The gateway pod's name."""
    boot_id: str
    address: str = ""
    """host:port where the endpoint's other gateways reach this one; empty: nowhere."""
    acknowledged_epoch: int
    draining: dict[str, int] = Field(default_factory=dict)
    """Variant UID -> requests still in flight to it."""
    arms: list[ArmCounts] = Field(default_factory=list)
    pairs: list[PairCounts] = Field(default_factory=list)
    shadow: list[ShadowCounts] = Field(default_factory=list)
    breakers: list[BreakerTrip] = Field(default_factory=list)


class ObservationsReply(ApiModel):
    """The answer to a report that was taken."""

    peers: dict[str, str] = Field(default_factory=dict)
    """Name -> address of the endpoint's other gateways that report at this time."""
