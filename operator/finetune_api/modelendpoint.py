"""ModelEndpoint: a production endpoint, how it is served, and how a new version replaces the stable one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from finetune_api import API_VERSION
from finetune_api.base import ApiModel, Condition, Digest, Name, ObjectMeta, Rule, SecretReference, Time
from finetune_api.finetunejob import EvaluationDataset
from finetune_api.shared_fields import Labels, MetricName, OpenObject, PodOverlay, Resources, Task, Verdict

EndpointPhase = Literal[
    "Empty",
    "Idle",
    "Shadowing",
    "Canary",
    "AwaitingApproval",
    "Promoting",
    "Guarding",
    "Paused",
    "RollingBack",
]
Outcome = Literal["Promoted", "Rejected", "RolledBack", "Superseded", "Held"]

APPROVE = "finetune.dev/approve"
REJECT = "finetune.dev/reject"
ROLLBACK = "finetune.dev/rollback"
PAUSE = "finetune.dev/pause"
REQUESTED_BY = "finetune.dev/requested-by"
ALLOW_DELETE = "finetune.dev/allow-delete"
ACTION_ANNOTATIONS: tuple[str, ...] = (APPROVE, REJECT, ROLLBACK, PAUSE)


class Serving(ApiModel):
    """How a version is served: one Deployment and Service each."""

    runtime: Literal["Transformers", "FastAPI", "VLLM"]
    """Transformers: chat and generation. FastAPI: classifiers and seq2seq. VLLM: chat and generation on GPUs."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Default 1."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each replica. Default 0."""
    resources: Resources | None = None
    pod_template: PodOverlay | None = None


class GatewayLimits(ApiModel):
    """What a client may ask of the gateway."""

    body_bytes: Annotated[int, Field(ge=1024, le=1073741824)] | None = None
    """Default 4 MiB; larger bodies get 413."""
    concurrency: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Requests in flight per replica; more get 429. Default 256."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """From the request to the last byte of the answer. Default 120."""


class Gateway(ApiModel):
    """The data plane in front of the versions."""

    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    """Default 2."""
    api_keys_secret_ref: SecretReference | None = None
    """A Secret whose values are accepted as bearer tokens; its keys name the clients. Without it: open."""
    limits: GatewayLimits | None = None
    resources: Resources | None = None
    pod_template: PodOverlay | None = None


class Probe(ApiModel):
    """Held-out prompts sent through candidate and stable, so that little traffic is enough to decide."""

    dataset: Literal["TestSplit"] | None = None
    rate_per_second: Annotated[float, Field(gt=0, le=1000)]


class Shadow(ApiModel):
    """Copies of real requests that also go to the candidate; clients never see its answers."""

    percent: Annotated[float, Field(ge=0, le=100)]
    min_samples: Annotated[int, Field(ge=1)] | None = None
    """Pairs needed. Default 100."""
    max_duration_seconds: Annotated[int, Field(ge=1)] | None = None
    """Longer without a decision: Inconclusive. Default 3600."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """A candidate that has not answered by then has failed. Default 30."""
    probe: Probe | None = None


class Match(ApiModel):
    """Requests that a step applies to."""

    header: Annotated[Labels, Field(min_length=1)]
    """Header name (lower case) -> exact value. All must match."""


class Step(ApiModel):
    """One step of the canary: who sees the candidate, and how much must be seen before the next."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    match: Match | None = None
    """Requests that match go to the candidate, all others to stable."""
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Share of users, sticky by user."""
    min_samples: Annotated[int, Field(ge=1)] | None = None
    """Requests answered by the candidate. Default 100."""
    min_duration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Default 0."""

    cel_rules = (Rule(rule="has(self.match) != has(self.percent)", message="a step has match or percent, exactly one"),)


class Guard(ApiModel):
    """Watching after the promotion, with the old stable still warm."""

    duration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Default 3600."""
    holdback_percent: Annotated[float, Field(ge=0, le=50)] | None = None
    """Share of users that stays on the old stable meanwhile: a concurrent reference. Default 0."""


class LiveMetric(ApiModel):
    """A rate that is watched while a candidate is live."""

    name: MetricName
    """error_rate, latency_seconds (share of requests over `limit`), quality (bad answers: empty, refused, repeated,
    broken JSON, wrong label, negative feedback)."""
    limit: Annotated[float, Field(gt=0)] | None = None
    """For latency_seconds: seconds."""
    max_regression: Annotated[float, Field(ge=0, le=1)]
    """By how much the candidate's rate may exceed the stable version's."""

    cel_rules = (
        Rule(
            rule="self.name in ['error_rate', 'latency_seconds', 'quality']",
            message="name must be error_rate, latency_seconds or quality",
        ),
        Rule(
            rule="(self.name == 'latency_seconds') == has(self.limit)",
            message="limit must be set for latency_seconds, and only there",
        ),
    )


class Rollout(ApiModel):
    """How a candidate replaces the stable version."""

    progress_deadline_seconds: Annotated[int, Field(ge=10)] | None = None
    """A candidate that is not ready by then is rejected; waiting for a GPU does not count. Default 1800."""
    supersede: bool | None = None
    """A newer proven version replaces a candidate under way. Default true."""
    shadow: Shadow | None = None
    """Left out: no shadow."""
    steps: (
        Annotated[
            list[Step],
            Field(
                max_length=32,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    approval: Literal["Automatic", "Manual"] | None = None
    """Default Automatic."""
    guard: Guard | None = None
    metrics: (
        Annotated[
            list[LiveMetric],
            Field(
                max_length=8,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """Default: error_rate 0.01 and quality 0.05."""
    on_regression: Literal["RollBack", "Pause"] | None = None
    """Default RollBack."""
    on_inconclusive: Literal["Hold", "Reject", "Proceed"] | None = None
    """Default Hold."""

    cel_rules = (
        Rule(
            rule="!has(self.steps) || self.steps.all(a, self.steps.all(b, !has(a.percent) || !has(b.percent) || "
            "a.name == b.name || a.percent != b.percent))",
            message="rollout.steps must not repeat a percent",
        ),
        Rule(
            rule="!has(self.steps) || self.steps.filter(s, has(s.percent)).map(s, s.percent).isSorted()",
            message="rollout.steps must come in order of rising percent",
        ),
    )


class ModelEndpointSpec(ApiModel):
    """What to serve, and how to change it safely."""

    version: Annotated[str, Field(max_length=253)] | None = None
    """Pin a ModelVersion by name (GitOps). Empty: the newest proven one."""
    task: Task
    serving: Serving
    gateway: Gateway | None = None
    rollout: Rollout | None = None
    revision_history_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Versions kept that are not served. Default 10."""

    cel_rules = (
        Rule(rule="self.task == oldSelf.task", message="spec.task is immutable; create a new ModelEndpoint instead"),
        Rule(
            rule="self.task in ['Chat', 'CausalLM'] ? self.serving.runtime in ['Transformers', 'VLLM'] : "
            "self.serving.runtime == 'FastAPI'",
            message="serving.runtime must be Transformers or VLLM for Chat and CausalLM, FastAPI for "
            "SequenceClassification and Seq2Seq",
        ),
        Rule(
            rule="self.serving.runtime != 'VLLM' || (has(self.serving.gpus) && self.serving.gpus > 0)",
            message="serving.runtime VLLM needs serving.gpus of 1 or more; use Transformers on CPU",
        ),
    )


class ServedVersion(ApiModel):
    """All that serving a version needs, recorded so that a deleted ModelVersion stops nothing."""

    name: Name
    uid: str
    digest: Digest
    revision: str
    """The ControllerRevision that holds the rendered Deployment and Service."""
    since: Time | None = None


class PlanStatus(ApiModel):
    """The rollout as it was resolved when it began."""

    version: int
    hash: str
    resolved: OpenObject


class StepStatus(ApiModel):
    """Where the rollout is."""

    index: Annotated[int, Field(ge=0)]
    name: str
    percent: float | None = None
    start_time: Time | None = None
    samples: Annotated[int, Field(ge=0)] = 0
    needed: Annotated[int, Field(ge=0)] = 0


class AnalysisRow(ApiModel):
    """One live metric of the current step."""

    metric: MetricName
    candidate: float | None = None
    baseline: float | None = None
    low: float | None = None
    """Always-valid lower bound of candidate - baseline."""
    high: float | None = None
    samples: Annotated[int, Field(ge=0)] = 0
    verdict: Verdict
    reason: str | None = None


class RoutesStatus(ApiModel):
    """How far the gateways are with the routes."""

    epoch: int
    acknowledged: Annotated[int, Field(ge=0)] = 0
    gateways: Annotated[int, Field(ge=0)] = 0


class VersionOutcome(ApiModel):
    """What became of a version, by UID: one that was rejected or rolled back is not tried again."""

    name: Name
    uid: str
    outcome: Outcome
    reason: str
    time: Time
    by: str = "operator"


class ModelEndpointStatus(ApiModel):
    """What was observed."""

    observed_generation: int | None = None
    phase: EndpointPhase | None = None
    message: Annotated[str, Field(max_length=32768)] | None = None
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=32, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = Field(default_factory=list)
    """Ready, Reconciling, Stalled (kstatus); Available, AwaitingApproval, Paused, RolledBack."""
    stable: ServedVersion | None = None
    candidate: ServedVersion | None = None
    previous: ServedVersion | None = None
    """The stable version before the promotion under guard: still warm."""
    plan: PlanStatus | None = None
    step: StepStatus | None = None
    analysis: Annotated[list[AnalysisRow], Field(max_length=8)] = Field(default_factory=list)
    routes: RoutesStatus | None = None
    versions: Annotated[list[VersionOutcome], Field(max_length=100)] = Field(default_factory=list)


class ModelEndpoint(ApiModel):
    """Serves the best proven version, and replaces it only by a better one."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["ModelEndpoint"] = "ModelEndpoint"
    metadata: ObjectMeta
    spec: ModelEndpointSpec
    status: ModelEndpointStatus = ModelEndpointStatus()

    @classmethod
    def from_object(cls, obj: dict[str, object]) -> Self:
        """Read an object as the apiserver returns it. Raises pydantic.ValidationError."""
        return cls.model_validate(obj)


__all__ = ["EvaluationDataset", "ModelEndpoint"]
