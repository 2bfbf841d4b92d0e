"""ModelEndpoint: a production endpoint, how it is served, and how a new version replaces the stable one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from finetune_api import API_VERSION
from finetune_api.base import (
    STORED_DEFAULT,
    UNSEEN,
    ApiModel,
    Conditions,
    Digest,
    Name,
    ObjectMeta,
    ObservedGeneration,
    Rule,
    SecretReference,
    ShortName,
    Time,
    Uri,
    VersionReference,
    form,
    keyed_by,
)
from finetune_api.modelversion import BaselineRecord
from finetune_api.shared_fields import (
    GpuResource,
    MetricName,
    MetricResult,
    NextStatus,
    OpenObject,
    PodOverlay,
    Resources,
    Task,
    Verdict,
    gpu_rules,
)
from finetune_api.tasks import TASKS, Runtime

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
RolloutStage = Literal["Starting", "Shadow", "Canary", "Approval", "Promoting", "Guard", "RollingBack"]
"""Starting: the candidate's servers are not ready. RollingBack: until all gateways have left the version."""
Outcome = Literal["Promoted", "Rejected", "RolledBack", "Superseded", "Held"]
LiveMetricName = Literal["error_rate", "client_error_rate", "latency_seconds", "quality"]

_ORIGIN = form(
    "scheme and host of a web page, without a path, or *",
    *("https://chat.example.com", "http://localhost:3000"),
    pattern=r"^(\*|https?://[A-Za-z0-9.:\[\]-]+)$",
)
_VERSION = form("the name of a ModelVersion", "support-router-7", pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")

# Requests of users, as annotations of the endpoint. Who may write them: manifests/policy.
APPROVE = "finetune.dev/approve"
"""UID of the version that may be promoted."""
REJECT = "finetune.dev/reject"
"""UID of the version that must not be promoted."""
ROLLBACK = "finetune.dev/rollback"
"""UID of the version to leave."""
PAUSE = "finetune.dev/pause"
"""`true`: the rollout stays where it is."""
REQUESTED_BY = "finetune.dev/requested-by"
"""The user name of whoever wrote the newest request."""
ALLOW_DELETE = "finetune.dev/allow-delete"
"""`true`: the endpoint may be deleted."""
ACTION_ANNOTATIONS: tuple[str, ...] = (APPROVE, REJECT, ROLLBACK, PAUSE)


class Serving(ApiModel):
    """How a version is served: one Deployment and Service each. A change of `replicas` applies at once, any other one from
    the next version on: what serves is not restarted."""

    runtime: Runtime
    """Transformers: chat and generation, on CPU or GPU. VLLM: the same by vLLM, in an image of its own. FastAPI: classifiers."""
    replicas: Annotated[int, Field(ge=1, le=1000, json_schema_extra={STORED_DEFAULT: 1})] | None = None
    """Pods of each version that is served. Default 1. `kubectl scale` and autoscalers write it; where they do, leave it
    out of manifests that are applied again."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each pod. Default 0: CPU."""
    gpu_resource: GpuResource | None = None
    """The resource that a GPU is: nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-1g.10gb. Default nvidia.com/gpu."""
    resources: Resources | None = None
    """Requests and limits of each serving container, GPUs not included. Default: as the operator is set."""
    secret_ref: SecretReference | None = None
    """With what servers read s3://, gs:// and gated hf:// models. Default: the Secrets of the job that made the version.
    """
    pod_template: PodOverlay | None = None
    """Added to the serving pods."""

    cel_rules = gpu_rules(prefix="serving", count="gpus")


class GatewayLimits(ApiModel):
    """What a client may ask of the gateway."""

    body_bytes: Annotated[int, Field(ge=1024, le=1073741824)] | None = None
    """Larger request bodies get 413. Default 4194304 (4 MiB)."""
    concurrency: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Requests in flight per gateway pod; more get 429. Default 256."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """From the request to the last byte of the answer. Default 120."""


class Gateway(ApiModel):
    """The data plane in front of the versions: what clients talk to."""

    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    """Pods of the gateway. Default 2."""
    api_keys_secret_ref: SecretReference | None = None
    """A Secret of the same namespace whose values are accepted as bearer tokens; its keys name the clients. Without it
    whoever reaches the gateway is served."""
    allowed_origins: (
        Annotated[list[Annotated[str, Field(max_length=253), _ORIGIN]], Field(min_length=1, max_length=32)] | None
    ) = None
    """Origins whose web pages may call the endpoint and read its answers (CORS), as https://chat.example.com; `*`: all.
    Left out: none."""
    heartbeat_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """After how long without news a streamed answer that has begun gets a comment, so that no proxy closes it. Default
    15."""
    limits: GatewayLimits | None = None
    """What a client may ask."""
    resources: Resources | None = None
    """Requests and limits of the gateway's container. Default: as the operator is set."""
    pod_template: PodOverlay | None = None
    """Added to the gateway's pods."""


class Probe(ApiModel):
    """Held-out prompts sent through candidate and stable, so that little traffic is enough to decide."""

    dataset: Literal["TestSplit"] | None = None
    """TestSplit: the held-out examples of the candidate's own run. Default TestSplit."""
    rate_per_second: Annotated[float, Field(gt=0, le=1000)]
    """Prompts per second, each sent to both versions."""


class Shadow(ApiModel):
    """Copies of requests that also go to the candidate; clients never see its answers."""

    percent: Annotated[float, Field(ge=0, le=100)]
    """Percent of the clients' requests that is copied. 0: the probe's prompts only."""
    min_samples: Annotated[int, Field(ge=1, le=100000000)] | None = None
    """Pairs of answers needed. Default 100."""
    max_duration_seconds: Annotated[int, Field(ge=1, le=31536000)] | None = None
    """Without a decision by then the shadow is Inconclusive (onInconclusive). Default 3600."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """A candidate that has not answered a copy by then has failed it. Default 30."""
    probe: Probe | None = None
    """Held-out prompts besides. Left out: none."""

    cel_rules = (
        Rule(
            rule="self.percent > 0.0 || has(self.probe)",
            message="shadow.percent: 0 needs shadow.probe: nothing would be compared; set one of them, or leave shadow out",
        ),
        Rule(
            rule="!has(self.timeoutSeconds) || !has(self.maxDurationSeconds) || self.timeoutSeconds <= self.maxDurationSeconds",
            message="shadow.timeoutSeconds: {self.timeoutSeconds} must not be greater than shadow.maxDurationSeconds: {self.maxDurationSeconds}",
        ),
    )


class Match(ApiModel):
    """Requests that a step applies to."""

    header: Annotated[
        dict[str, Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=8)
    ]
    """Header name (lower case) -> exact value. All must match."""

    cel_rules = (
        Rule(
            rule="self.header.all(name, name.matches('^[a-z0-9_-]+$'))",
            message="match.header: names must be lower case letters, digits, - and _ (header names have no case: write x-team for X-Team)",
        ),
    )


class Step(ApiModel):
    """One step of the canary: who sees the candidate, and how much must be seen before the next."""

    name: ShortName
    """Shown in status, metrics and events."""
    match: Match | None = None
    """Only users whose requests match see the candidate: most of them, the rest stay on stable for comparison. Exactly one
    of match and percent."""
    percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """Percent of the users that see the candidate, sticky by user; those of earlier match steps besides. Less than 100: without
    requests that stable answers there is nothing to compare with."""
    min_samples: Annotated[int, Field(ge=1, le=100000000)] | None = None
    """Requests answered by the candidate. Default 100."""
    min_duration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """How long the step takes at least. Default 0."""

    cel_rules = (
        Rule(
            rule="has(self.match) != has(self.percent)",
            message="rollout.steps: {self.name} must have match or percent, exactly one of them",
        ),
        Rule(
            rule="self.name != 'default'",
            message="rollout.steps: a step cannot have name: default, that is the rule for all requests that no step matches",
        ),
    )


class Guard(ApiModel):
    """Watching after the promotion, with the old stable still warm."""

    duration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """How long the new stable version is watched. 0: no guard. Default 3600."""
    holdback_percent: Annotated[float, Field(ge=0, le=50)] | None = None
    """Percent of the users that stays on the old stable meanwhile: a concurrent reference. Default 0."""

    cel_rules = (
        Rule(
            rule="!has(self.holdbackPercent) || self.holdbackPercent == 0.0 || !has(self.durationSeconds) || self.durationSeconds > 0",
            message="guard.holdbackPercent: {self.holdbackPercent} with guard.durationSeconds: 0 holds nobody back; set it higher, or leave holdbackPercent out",
        ),
    )


class LiveMetric(ApiModel):
    """A rate that is watched while a candidate is live."""

    name: LiveMetricName
    """error_rate: failed requests. client_error_rate: users whose first request was refused (4xx). latency_seconds: requests that took longer than `limit`. quality: bad answers (empty,
    refused, repeated, broken JSON, wrong label, negative feedback)."""
    limit: Annotated[float, Field(gt=0, le=3600)] | None = None
    """For latency_seconds, and only there: the seconds that a request may take."""
    max_regression: Annotated[float, Field(gt=0, le=1)]
    """By how much the candidate's rate may exceed the stable version's: 0.01 is one request in a hundred. Not 0: no number
    of requests proves that two rates are exactly equal."""

    cel_rules = (
        Rule(
            rule="(self.name == 'latency_seconds') == has(self.limit)",
            message="rollout.metrics: limit must be set where name: latency_seconds stands, and only there; this is {self.name}",
        ),
    )


class Rollout(ApiModel):
    """How a candidate replaces the stable version: shadow, steps, approval, promotion, guard, in this order."""

    progress_deadline_seconds: Annotated[int, Field(ge=10, le=31536000)] | None = None
    """A candidate that is not ready by then is rejected; waiting for a node with room does not count. Default 1800."""
    supersede: bool | None = None
    """A newer proven version replaces a candidate under way. Default true."""
    shadow: Shadow | None = None
    """Copies of requests to the candidate before any client sees it. Left out: no shadow."""
    steps: Annotated[list[Step], keyed_by("name", most=32)] | None = None
    """The canary: steps with match first, then steps of rising percent. Left out: no canary."""
    approval: Literal["Automatic", "Manual"] | None = None
    """Manual: after the last step the candidate waits for the annotation finetune.dev/approve. Default Automatic."""
    guard: Guard | None = None
    """Watching after the promotion. Default: an hour, without holdback."""
    metrics: Annotated[list[LiveMetric], keyed_by("name", least=1, most=8)] | None = None
    """What is judged, in every phase. Default: error_rate 0.01 and quality 0.05; and always client_error_rate, 0.05 where
    it is left out."""
    on_regression: Literal["RollBack", "Pause"] | None = None
    """RollBack: back to stable at once. Pause: stay and wait for somebody. Default RollBack."""
    on_inconclusive: Literal["Hold", "Reject", "Proceed"] | None = None
    """When the time for a decision is over: wait for somebody, reject the candidate, or go on. Default Hold."""

    cel_rules = (
        Rule(
            rule="!has(self.steps) || self.steps.map(s, has(s.percent)).isSorted()",
            message="rollout.steps with match must come before those with percent",
        ),
        Rule(
            rule="!has(self.steps) || self.steps.filter(s, has(s.percent)).map(s, s.percent).isSorted()",
            message="rollout.steps must come in order of rising percent",
        ),
        Rule(
            rule="!has(self.steps) || self.steps.filter(s, has(s.percent)).map(s, s.percent)"
            ".all(p, self.steps.exists_one(s, has(s.percent) && s.percent == p))",
            message="rollout.steps must not repeat a percent",
        ),
    )


class ModelEndpointSpec(ApiModel):
    """What to serve, and how to change it safely."""

    version: Annotated[str, Field(max_length=253), _VERSION] | None = None
    """Pin a ModelVersion by name (GitOps); it goes through the same steps. Empty: the newest proven one."""
    task: Task
    """What the versions do; those of another task are not considered. Immutable."""
    serving: Serving
    gateway: Gateway | None = None
    """What clients talk to. Default: two replicas, open to whoever reaches them."""
    rollout: Rollout | None = None
    """How a new version replaces the stable one. Default: no shadow, no canary; promoted when ready, and guarded for an hour."""
    revision_history_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Versions kept that are not served. Default 10."""

    cel_rules = (
        Rule(
            rule="self.task == oldSelf.task",
            message="spec.task: {oldSelf.task} is immutable; create a new ModelEndpoint instead",
        ),
        *(
            Rule(
                rule=f"self.task != '{task}' || self.serving.runtime in {[*kind.runtimes]}",
                message=f"serving.runtime: {{self.serving.runtime}} does not serve task: {task}; use {' or '.join(kind.runtimes)}",
            )
            for task, kind in TASKS.items()
        ),
    )


class ServedVersion(ApiModel):
    """All that serving a version needs, recorded so that a deleted ModelVersion stops nothing."""

    name: Name
    """The ModelVersion's name."""
    uid: str
    """Its UID."""
    digest: Digest
    """sha256 over its files: what is served is what was evaluated."""
    revision: str
    """The ControllerRevision that holds the rendered Deployment and Service."""
    since: Time | None = None
    """When it came into this place."""
    proven: bool | None = None
    """Whether it passed every comparison with the version that it replaced or is to replace. Unset: not known."""
    unproven: Annotated[str, Field(max_length=1024)] | None = None
    """Why it is not proven, and who or what let it go on all the same."""


class HeldVersion(ApiModel):
    """A version that waits for a person before it is tried: its comparison was not decided (onInconclusive Hold)."""

    name: Name
    """The ModelVersion's name."""
    uid: str
    """Its UID: what finetune.dev/approve and finetune.dev/reject name."""
    reason: Annotated[str, Field(max_length=1024)]
    """What was not decided."""
    baseline: str = ""
    """The version that it was compared with."""


class ApprovalStatus(ApiModel):
    """The annotation finetune.dev/approve, as the operator took note of it: it counts once, for one thing. For another
    thing it is removed first, then given anew."""

    uid: str
    """Of the version that it names."""
    by: str
    """Who gave it."""
    hold: Annotated[str, Field(max_length=1024)]
    """What it was given for: what waited for a person then, or else the promotion."""
    used: bool = False
    """The version has gone on by it."""


VersionMeant = ServedVersion | HeldVersion
"""What a person's decision can be about."""


class PlanStatus(ApiModel):
    """The rollout as it was resolved when it began."""

    version: int
    """Of the plan's format: an older operator does not follow a newer one."""
    hash: str
    """Of the plan: another hash, another plan."""
    resolved: OpenObject
    """The plan, defaults resolved; changes of spec.rollout apply to the next rollout."""


class StepStatus(ApiModel):
    """Where the rollout is."""

    stage: RolloutStage
    """The part of the rollout that is under way."""
    index: Annotated[int, Field(ge=0)] = 0
    """Of the canary's step in spec.rollout.steps, as it was when the rollout began."""
    name: str
    """The step's name; of the canary, as spec.rollout.steps gives it."""
    percent: float | None = None
    """Percent of the users whom the candidate answers; in shadow, of the requests that are copied to it."""
    start_time: Time
    """When it began."""
    since_epoch: Annotated[int, Field(ge=0)] = 0
    """Requests of routes older than this do not count."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Samples so far, of the metric that has the fewest."""
    needed: Annotated[int, Field(ge=0)] = 0
    """Samples of each metric before the candidate may go on; 0: none are waited for."""
    held: Annotated[str, Field(max_length=1024)] | None = None
    """Why it waits for a person: a regression with onRegression Pause."""
    accepted: Annotated[str, Field(max_length=1024)] | None = None
    """The regression that a person has accepted."""
    void_approval: bool = False
    """The approval that is there was given before the version was held: for an apiserver with an older CRD, which does
    not keep status.approval."""


class AnalysisRow(ApiModel):
    """One live metric of the current step."""

    metric: MetricName
    """Its name, e.g. error_rate."""
    candidate: float | None = None
    """The rate of bad answers of the version that is watched, so far: of clients' requests, of copies or of held-out
    prompts, whichever look worst beside the other version's. Each rule weighs the same in the rates of both."""
    baseline: float | None = None
    """That of the version that it is compared with; where that has answered none of these requests, in the rollout so
    far."""
    low: float | None = None
    """Always-valid lower bound of candidate - baseline."""
    high: float | None = None
    """Always-valid upper bound of candidate - baseline."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Samples of the arm that has fewer."""
    verdict: Verdict
    """Pass: enough samples without a regression. Fail: proven worse. Inconclusive: neither yet."""
    reason: str | None = None
    """What the verdict rests on, or what is missing."""


class RoutesStatus(ApiModel):
    """How far the gateways are with the routes."""

    epoch: int
    """The number of the routes in force; each change is one more."""
    acknowledged: Annotated[int, Field(ge=0)] = 0
    """Gateways that have said that they follow these routes."""
    gateways: Annotated[int, Field(ge=0)] = 0
    """Gateways that are known."""


class VersionOutcome(ApiModel):
    """What became of a version, by UID: one that was rejected or rolled back is not tried again."""

    name: Name
    """The ModelVersion's name."""
    uid: str
    """Its UID."""
    outcome: Outcome
    """Promoted, Rejected, RolledBack or Superseded."""
    reason: str
    """Why, in a sentence."""
    time: Time
    """When it was decided."""
    by: str = "operator"
    """Who decided: the operator, or the person who asked for it."""
    proven: bool | None = None
    """Of a promotion: whether the version was proven then; `reason` says why it was not. Unset: not known."""


class ComparisonStatus(ApiModel):
    """A version that had been compared with something else, compared again with what was stable then."""

    version: VersionReference
    baseline: BaselineRecord
    verdict: Verdict
    """Pass, Fail or Inconclusive, as in the ModelVersion."""
    accepted: bool
    """Whether the policy of the version's own job lets it go on."""
    held: bool | None = None
    """Undecided under onInconclusive Hold: it goes on where a person approves it."""
    reason: Annotated[str, Field(max_length=1024)]
    """What came of it, in a sentence."""
    report: Uri | None = None
    """The HTML report."""
    results: Annotated[list[MetricResult], Field(max_length=32)] = Field(default_factory=list)
    """One row a metric."""
    time: Time
    """When it was recorded."""


class ModelEndpointStatus(ApiModel):
    """What was observed."""

    observed_generation: ObservedGeneration = None
    """The metadata.generation that the status is about; -1: the operator has not seen the object yet."""
    instance: Annotated[str, Field(max_length=63)] | None = None
    """The operator whose object this is; other operators leave it alone."""
    phase: EndpointPhase | None = None
    """Where the endpoint is, in one word."""
    message: Annotated[str, Field(max_length=32768)] | None = None
    """What it does or waits for, in a sentence."""
    next: NextStatus | None = None
    conditions: Conditions = Field(default_factory=list)
    """Ready, Reconciling, Stalled (kstatus); Available, AwaitingApproval, Paused, RolledBack."""
    replicas: int | None = None
    """Pods that the stable version's servers have: what the scale subresource shows."""
    selector: str | None = None
    """What selects these pods, as text: an autoscaler measures their load."""
    stable: ServedVersion | None = None
    candidate: ServedVersion | None = None
    previous: ServedVersion | None = None
    """The stable version before the promotion under guard: still warm."""
    held: HeldVersion | None = None
    """Waits for a person to approve or reject it; versions that are proven do not wait for it."""
    also_held: Annotated[list[HeldVersion], Field(max_length=10)] = Field(default_factory=list)
    """Older ones that wait for a person as well, the newest first."""
    approval: ApprovalStatus | None = None
    plan: PlanStatus | None = None
    step: StepStatus | None = None
    analysis: Annotated[list[AnalysisRow], Field(max_length=8)] = Field(default_factory=list)
    """The live metrics of the current step, one row each."""
    analysis_time: Time | None = None
    """When samples and analysis were written; at most every few seconds."""
    routes: RoutesStatus | None = None
    versions: Annotated[list[VersionOutcome], Field(max_length=100)] = Field(default_factory=list)
    """What became of the versions that were tried, oldest first."""
    comparisons: Annotated[list[ComparisonStatus], Field(max_length=10)] = Field(default_factory=list)
    """Of versions that had been compared with something else than what was stable at their turn; newest last."""

    @property
    def all_held(self) -> list[HeldVersion]:
        """The versions that wait for a person before they are tried, the newest first."""
        return [*([self.held] if self.held is not None else []), *self.also_held]


class ModelEndpoint(ApiModel):
    """Serves the best proven version, and replaces it only by a better one."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["ModelEndpoint"] = "ModelEndpoint"
    metadata: ObjectMeta
    spec: ModelEndpointSpec
    status: Annotated[ModelEndpointStatus, UNSEEN] = ModelEndpointStatus()

    @classmethod
    def from_object(cls, obj: dict[str, object]) -> Self:
        """Read an object as the apiserver returns it. Raises pydantic.ValidationError."""
        return cls.model_validate(obj)


__all__ = ["ModelEndpoint", "ModelEndpointSpec", "ModelEndpointStatus"]
