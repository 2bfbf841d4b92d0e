"""FineTuneJob: one run, from data to a proven (or rejected) ModelVersion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from finetune_api import API_VERSION
from finetune_api.base import (
    UNSEEN,
    ApiModel,
    Condition,
    Conditions,
    Name,
    ObjectMeta,
    ObjectReference,
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
from finetune_api.shared_fields import (
    EXTENDED_RESOURCE,
    GpuResource,
    MetricName,
    MetricResult,
    NextStatus,
    OpenObject,
    PodOverlay,
    Quantities,
    Resources,
    Task,
    ThresholdRange,
    Verdict,
    gpu_rules,
)
from finetune_api.tasks import METHODS, TASKS, Lever, MethodType, Strategy

Phase = Literal[
    "Pending",
    "Queued",
    "Preparing",
    "Training",
    "Evaluating",
    "Shadowing",
    "Canary",
    "AwaitingApproval",
    "Promoting",
    "Guarding",
    "Paused",
    "RollingBack",
    "Suspended",
    "Succeeded",
    "Rejected",
    "Superseded",
    "RolledBack",
    "Failed",
]
TERMINAL_PHASES: frozenset[str] = frozenset({"Succeeded", "Rejected", "Superseded", "RolledBack", "Failed"})
RETRY = "finetune.dev/retry"
"""Annotation by which a user asks that a run which Failed goes on: the time of that end, `status.completionTime`."""
StageName = Literal["Prepare", "Train", "Evaluate"]
STAGES: tuple[StageName, ...] = ("Prepare", "Train", "Evaluate")
StageState = Literal["Pending", "Queued", "Running", "Complete", "Failed"]

_FOLDERS = ("s3://bucket/folder", "gs://bucket/folder", "pvc://claim/folder", "file:///folder")


def _uri(what: str, *examples: str, also: str = "") -> Any:
    """A URI of one of the schemes of the examples, or of `also`."""
    schemes = "|".join(example.partition("://")[0] for example in examples)
    return form(f"the URI of {what}", *examples, pattern=f"^({schemes}{also})://.+")


_GPU_MEMORY = form(
    "the memory of a GPU, with its unit",
    *("24Gi", "80Gi"),
    rule="type(self) == int ? self >= 1073741824 : isQuantity(self) && self.matches('^[1-9][0-9.]*(Mi|Gi|Ti|M|G|T)$')",
)
_BLOCKS = form("numbers of blocks and ranges", "11", "0-5,8", pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$")
DataUri = Annotated[Uri, _uri("a file, a folder or a data set of the hub", *_FOLDERS, "hf://datasets/org/name")]


def not_supported(condition: str, what: str) -> Rule:
    """A rule that refuses what the API knows but this version does not do yet. `condition` is true when it is used."""
    return Rule(rule=f"!({condition})", message=f"{what} is not supported yet")


class Artifacts(ApiModel):
    """Where the run's outputs go."""

    uri: Annotated[Uri, _uri("a folder", *_FOLDERS)]
    """Root under which each run makes its own folder: file:// pvc://claim/path s3:// gs://."""
    secret_ref: SecretReference | None = None
    """Credentials: the Secret's keys become environment variables of the run's containers."""
    policy: Literal["Retain", "Delete"] | None = None
    """What happens to the artifacts when their ModelVersion is pruned. Default Retain; Delete is not supported yet."""

    cel_rules = (not_supported("has(self.policy) && self.policy == 'Delete'", "artifacts.policy: Delete"),)


class Licence(ApiModel):
    """Which licences of the base model are acceptable."""

    allow: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=32)]
    """SPDX identifiers, lower case as on the hub, e.g. apache-2.0."""


class Model(ApiModel):
    """The base model."""

    uri: Annotated[Uri, _uri("a model", "hf://org/name", *_FOLDERS, "version://name")]
    """hf://org/name, s3://, gs://, pvc://claim/path, file:// (a folder or a .gguf file), or version://NAME: go on from
    that ModelVersion of the same namespace and task. An adapter is merged into its base first."""
    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Commit, tag or branch, for hf:// only; what it means is settled when the run begins. Default: the main branch."""
    task: Task
    """What the model is to do. Chat: answer messages. CausalLM: go on with a text. SequenceClassification: name a
    text's class. Seq2Seq: write another text (T5, BART)."""
    licence: Licence | None = None
    """Refuse a base model whose licence is not listed, or is unknown."""
    secret_ref: SecretReference | None = None

    cel_rules = (
        Rule(
            rule="!has(self.revision) || self.uri.startsWith('hf://')",
            message="model.revision: {self.revision} applies to hf:// models only; remove it or use an hf:// uri",
        ),
    )


class Source(ApiModel):
    """One file or folder of training examples."""

    name: ShortName
    """Names the source in reports and messages."""
    uri: DataUri
    """A file (.jsonl .json .csv .parquet .arrow, also .gz), a folder of such files, or hf://datasets/org/name."""
    format: Literal["Auto", "Chat", "PromptCompletion", "Text", "Labelled"] | None = None
    """Chat: `messages`. PromptCompletion: `prompt`, `completion`. Text: `text`. Labelled: `text`, `label`. Default Auto."""
    weight: Annotated[float, Field(gt=0, le=100)] | None = None
    """How often each training example of this source is used: 2 twice, 0.5 half of them. Default 1."""


class Split(ApiModel):
    """How examples are divided. Near-duplicates always stay together."""

    train: Annotated[float, Field(gt=0, lt=1)]
    """Share of the examples to learn from."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    """Share to look at during training, for early stopping and the validation loss."""
    test: Annotated[float, Field(ge=0, lt=1)]
    """Share held out for the comparison."""
    strategy: Literal["GroupHash", "Stratified"] | None = None
    """GroupHash: by a salted hash of the near-duplicate group, the same in every run. Stratified: the same, within each
    value of `by`. Default GroupHash."""
    by: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The field whose values keep their proportions, for Stratified. Default `label`."""

    cel_rules = (
        Rule(
            rule="self.train + self.validation + self.test > 0.999 && self.train + self.validation + self.test < 1.001",
            message="split.train: {self.train}, split.validation: {self.validation} and split.test: {self.test} must add up to 1",
        ),
        Rule(
            rule="!has(self.by) || (has(self.strategy) && self.strategy == 'Stratified')",
            message="split.by: {self.by} needs split.strategy: Stratified",
        ),
    )


class Data(ApiModel):
    """What to learn from."""

    sources: Annotated[list[Source], keyed_by("name", least=1, most=32)]
    """Files, folders or datasets; their examples are taken together."""
    max_bad_rows: Annotated[int, Field(ge=0)] | None = None
    """Rows that may be quarantined (with file, line and reason) before the run fails. Default 0."""
    max_truncated_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of training examples that may be cut at training.maxLength before the run fails. Default 0.01."""
    split: Split | None = None
    """How the examples are divided. Default 0.8 / 0.1 / 0.1 by group hash."""
    secret_ref: SecretReference | None = None
    pod_template: PodOverlay | None = None
    """Added to the pods that prepare the data, in place of compute.podTemplate: they need no accelerator's node."""


class LoRA(ApiModel):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)]
    """Size of the update. More learns more and takes more memory; 8 to 64 is usual."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the update: alpha / rank. Default 2 x rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the adapter's inputs that is left out at each training step. Default 0."""
    target_modules: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the layers that get an adapter; default [all-linear]."""


class Quantisation(ApiModel):
    """How exactly the base's weights are kept while an adapter learns beside them."""

    bits: Literal[4, 8]
    """4: NF4 with double quantisation (Dettmers et al. 2023). 8: LLM.int8() (Dettmers et al. 2022)."""


class Freeze(ApiModel):
    """Parameters that keep their values."""

    layers: Annotated[str, Field(max_length=253), _BLOCKS] | None = None
    """Transformer blocks, e.g. "0-5,8"."""
    patterns: Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(max_length=64)] | None = None
    """Regular expressions over parameter names."""


_LABELLED = [name for name, kind in TASKS.items() if kind.labelled]
_PACKED = [name for name, kind in TASKS.items() if kind.packs]
_NOT_PACKED = [name for name, kind in TASKS.items() if not kind.packs]
_WHOLE = [name for name, kind in METHODS.items() if kind.whole]
_FREEZING = [name for name, kind in METHODS.items() if kind.freezes]
_LOW_RANK = [name for name, kind in METHODS.items() if kind.low_rank]
_QUANTISING = [name for name, kind in METHODS.items() if kind.quantises]
_NOT_DECAYING = [name for name, kind in METHODS.items() if not kind.decays]


def _one_of(field: str, names: Sequence[str]) -> str:
    """In CEL."""
    return f"{field} == '{names[0]}'" if len(names) == 1 else f"{field} in {list(names)}"


def _none_of(field: str, names: Sequence[str]) -> str:
    return f"{field} != '{names[0]}'" if len(names) == 1 else f"!({field} in {list(names)})"


def _listed(names: Sequence[str], last: str = "and") -> str:
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


class Method(ApiModel):
    """How the weights are changed."""

    type: MethodType
    """Full: all weights. The others leave the base as it is and train an adapter. LoRA: small matrices beside its
    layers. QLoRA: the same, while the base is quantised, which takes a quarter of its memory; what is evaluated and
    served is the adapter on the base as it is. DoRA: LoRA, with the lengths of the weights apart (Liu et al. 2024). IA3:
    a factor for each output of some layers (Liu et al. 2022)."""
    lora: LoRA | None = None
    """For LoRA, QLoRA and DoRA."""
    quantisation: Quantisation | None = None
    """For QLoRA. Default 4 bits."""
    freeze: Freeze | None = None
    parent: Literal["Keep", "Merge"] | None = None
    """How to go on from a version (model.uri: version://NAME) that is an adapter. Keep: that adapter is trained on, beside
    the same base, so that the result is one adapter as well; its type, rank, alpha and layers must be the job's. Merge:
    it becomes part of the base first, and a new one is trained beside that. Default Merge."""

    cel_rules = (
        Rule(
            rule=f"({_one_of('self.type', _LOW_RANK)}) == has(self.lora)",
            message=f"method.type: {{self.type}}; method.lora must be set where it is {_listed(_LOW_RANK, 'or')}, and only there",
        ),
        Rule(
            rule=f"!has(self.quantisation) || {_one_of('self.type', _QUANTISING)}",
            message=f"method.quantisation is for {_listed(_QUANTISING)}, not for method.type: {{self.type}}",
        ),
        Rule(
            rule=f"!has(self.freeze) || {_one_of('self.type', _FREEZING)}",
            message=f"method.type: {{self.type}} freezes the base anyway; method.freeze is for {_listed(_FREEZING)}",
        ),
        Rule(
            rule=f"!has(self.parent) || self.parent != 'Keep' || {_none_of('self.type', _WHOLE)}",
            message="method.parent: {self.parent} goes on with an adapter, and method.type: {self.type} trains none; use Merge",
        ),
    )


class EarlyStopping(ApiModel):
    """Stop when the validation metric stops improving."""

    metric: Literal["loss"]
    """What is watched: the validation loss."""
    patience: Annotated[int, Field(ge=1, le=1000)]
    """Validations without improvement before the run stops; the best checkpoint is kept."""


class Training(ApiModel):
    """Optimisation. Defaults are resolved once and recorded in the run."""

    epochs: Annotated[float, Field(gt=0, le=10000)] | None = None
    """Passes over the training examples. Default 3 where maxSteps is not set."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps, instead of epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """The highest learning rate, after the warm-up. Default 2e-4 for LoRA, QLoRA and DoRA, 2e-3 for IA3, 2e-5
    for Full."""
    scheduler: Literal["Constant", "Linear", "Cosine"] | None = None
    """How the learning rate falls after the warm-up: not, to zero in a line, or along a cosine. Default Cosine."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the steps over which the learning rate rises from zero. Default 0.03."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """How strongly weights are drawn to zero (AdamW). Default 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are clipped to this norm. Default 1."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples per optimiser step over all processes. Default: the smallest number from 16 up that they can share evenly."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples per forward pass and process. Default: the share of the global batch, at most 8."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] | None = None
    """Tokens after which an example is cut. Default 1024."""
    packing: bool | None = None
    """Put several examples into one sequence without letting them see each other. Default false."""
    precision: Literal["Auto", "FP32", "BF16"] | None = None
    """What is computed in. Auto: BF16 where the accelerator has it, else FP32. Default Auto."""
    seed: Annotated[int, Field(ge=0, le=4294967295)] | None = None
    """Of the order of examples, dropout and new weights: the same seed, the same run. Default 0."""
    early_stopping: EarlyStopping | None = None
    activation_checkpointing: Lever | None = None
    """Keep only what enters each block of the model, and compute the rest again in the backward pass: less memory, a
    third more time. Auto: where memory needs it. Default Auto."""

    cel_rules = (
        Rule(
            rule="!(has(self.epochs) && has(self.maxSteps))",
            message="training.epochs: {self.epochs} and training.maxSteps: {self.maxSteps} exclude each other; set one of them",
        ),
        Rule(
            rule="!has(self.microBatchSize) || !has(self.globalBatchSize) || self.microBatchSize < 1 || self.globalBatchSize % self.microBatchSize == 0",
            message="training.globalBatchSize: {self.globalBatchSize} must be a multiple of training.microBatchSize: {self.microBatchSize}",
        ),
    )


_OFFLOADS_OPTIMIZER = "has(self.offload) && has(self.offload.optimizer) && self.offload.optimizer"
_OFFLOADS_PARAMETERS = "has(self.offload) && has(self.offload.parameters) && self.offload.parameters"
_OFFLOADS = f"{_OFFLOADS_OPTIMIZER} || {_OFFLOADS_PARAMETERS}"


class Offload(ApiModel):
    """What waits in the host's memory instead of the GPU's until it is needed: less fits more slowly."""

    optimizer: bool | None = None
    """AdamW's moments, and the step on them. Default false."""
    parameters: bool | None = None
    """The weights. Default false."""


class ConfigReference(ApiModel):
    """A text in a ConfigMap of the same namespace."""

    name: Name
    """The ConfigMap's name."""
    key: Annotated[
        str, Field(min_length=1, max_length=253), form("a key of a ConfigMap", "ds.json", pattern="^[-._a-zA-Z0-9]+$")
    ]
    """The key of its data."""


class Network(ApiModel):
    """What training pods reach each other by."""

    interface: (
        Annotated[str, Field(max_length=15), form("a network interface's name", "eth0", pattern="^[A-Za-z0-9._-]+$")]
        | None
    ) = None
    """The interface of the pods that NCCL and gloo use. Default: they choose one."""
    resources: Quantities | None = None
    """Extended resources of each training container next to its GPUs, e.g. rdma/ib: 1."""

    cel_rules = (
        Rule(
            rule=f"!has(self.resources) || self.resources.all(name, name.matches('{EXTENDED_RESOURCE}'))",
            message=f"compute.network.resources: {{self.resources.filter(name, !name.matches('{EXTENDED_RESOURCE}'))[0]}} is no resource of a device plugin, such as rdma/ib; it belongs into compute.resources",
        ),
    )


class Compute(ApiModel):
    """The machines of the run."""

    nodes: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Pods that train together. Default 1."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each pod, one process each; 0: CPU, processesPerNode processes. Default 0."""
    gpu_resource: GpuResource | None = None
    """The resource that a GPU is: nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-1g.10gb. Default nvidia.com/gpu."""
    gpu_memory: Annotated[str | int, _GPU_MEMORY] | None = None
    """Memory of each GPU, e.g. 80Gi, by which strategy Auto chooses. Default: 24Gi is assumed, and a job that needs more
    is not refused."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Training processes of each pod, where there are no GPUs. Default 1."""
    strategy: Strategy | None = None
    """How processes share the model. DDP: each has all of it. FSDP2: each has a part of weights, gradients and moments.
    DeepSpeedZeRO1, 2, 3: each has a part of the moments; and of the gradients; and of the weights. Auto: the
    fastest that fits, of DDP, FSDP2, and FSDP2 with offload where gpuMemory is set. Default Auto."""
    offload: Offload | None = None
    config_ref: ConfigReference | None = None
    """A DeepSpeed configuration (JSON), read once when the run is planned. What contradicts fields of the job is refused."""
    network: Network | None = None
    resources: Resources | None = None
    """Requests and limits of each training container, GPUs not included. Default: as the operator is set."""
    pod_template: PodOverlay | None = None

    cel_rules = (
        Rule(
            rule="!has(self.processesPerNode) || !has(self.gpusPerNode) || self.gpusPerNode == 0",
            message="compute.processesPerNode: {self.processesPerNode} is for CPUs; with compute.gpusPerNode: {self.gpusPerNode} each GPU has one process; remove it",
        ),
        *gpu_rules(prefix="compute", count="gpusPerNode"),
        Rule(
            rule="!has(self.gpuMemory) || (has(self.gpusPerNode) && self.gpusPerNode > 0)",
            message="compute.gpuMemory: {self.gpuMemory} needs compute.gpusPerNode: 1 or more; of CPUs it is compute.resources.limits.memory",
        ),
        Rule(
            rule="!has(self.configRef) || (has(self.strategy) && self.strategy.startsWith('DeepSpeed'))",
            message="compute.configRef is a DeepSpeed configuration and needs compute.strategy: DeepSpeedZeRO1, 2 or 3; set it, or remove configRef",
        ),
        Rule(
            rule=f"!({_OFFLOADS}) || (has(self.strategy) && !(self.strategy in ['Auto', 'DDP']))",
            message="compute.offload (optimizer: true or parameters: true) needs compute.strategy: FSDP2 or DeepSpeedZeRO1, 2 or 3, not strategy: {self.strategy}; Auto offloads by itself where compute.gpuMemory is set and nothing else fits",
        ),
        Rule(
            rule=f"!({_OFFLOADS_PARAMETERS}) || !has(self.strategy) || self.strategy in ['Auto', 'DDP', 'FSDP2', 'DeepSpeedZeRO3']",
            message="compute.offload.parameters: true needs compute.strategy: FSDP2 or DeepSpeedZeRO3; with strategy: {self.strategy} each process keeps all of them",
        ),
        Rule(
            rule=f"!has(self.strategy) || self.strategy != 'FSDP2' || ({_OFFLOADS_OPTIMIZER}) == ({_OFFLOADS_PARAMETERS})",
            message="compute.offload: with strategy: {self.strategy} weights and moments are in one place; set optimizer: true and parameters: true, or neither",
        ),
    )


class Checkpoint(ApiModel):
    """How often state is saved, and whether a restart uses it."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps between checkpoints. Default 100."""
    keep: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Newest checkpoints kept. Default 2."""
    resume: Literal["Latest", "Never"] | None = None
    """Latest: a new attempt goes on from the newest valid checkpoint. Never: it begins again. Default Latest."""


class EvaluationMetric(ApiModel):
    """One metric of the comparison: judged against the baseline, or only reported."""

    name: MetricName
    """Chat and CausalLM: loss, perplexity, exact_match, rouge_l, bleu, token_f1. SequenceClassification: loss, accuracy,
    precision, recall, f1."""
    max_regression: Annotated[float, Field(ge=0)] | None = None
    """The largest loss against the baseline that is still acceptable, in the metric's units (1 % of accuracy is 0.01)."""
    min_improvement: Annotated[float, Field(ge=0)] | None = None
    """The gain over the baseline that must be proven."""
    threshold_range: ThresholdRange | None = None
    report: bool | None = None
    """Show, do not judge."""

    cel_rules = (
        Rule(
            rule="(has(self.report) && self.report) != (has(self.maxRegression) || has(self.minImprovement) || has(self.thresholdRange))",
            message="evaluation.metrics: {self.name} must be judged (maxRegression, minImprovement or thresholdRange) or reported (report: true), exactly one of the two",
        ),
        Rule(
            rule="!(has(self.maxRegression) && has(self.minImprovement))",
            message="evaluation.metrics: {self.name} has maxRegression and minImprovement; set one of them: an improvement that is proven is no regression",
        ),
    )


class EvaluationDataset(ApiModel):
    """A fixed evaluation set."""

    uri: DataUri
    """A file, a folder or hf://datasets/org/name, as in data.sources."""
    format: Literal["Auto", "Chat", "PromptCompletion", "Text", "Labelled"] | None = None
    """The fields of its rows, as in data.sources. Default Auto."""


class Generation(ApiModel):
    """Decoding during evaluation: greedy, the same for candidate and baseline."""

    max_new_tokens: Annotated[int, Field(ge=1, le=32768)]
    """Tokens after which an answer is cut."""


class Evaluation(ApiModel):
    """The comparison that decides."""

    baseline: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Production (the endpoint's stable version, else the base model), Base, or the name of a ModelVersion.
    Default Production."""
    dataset: EvaluationDataset | None = None
    """A fixed evaluation set, in place of the test split."""
    metrics: Annotated[list[EvaluationMetric], keyed_by("name", least=1, most=32)] | None = None
    """What is compared, and what of it decides. Default: what suits the task."""
    on_inconclusive: Literal["Hold", "Reject", "Proceed"] | None = None
    """What an undecided comparison means. Hold: a person decides; the endpoint waits for an approval, and without an
    endpoint the run ends as Rejected and its version may be approved later at one that pins it. Reject: the version is
    given up for good. Proceed: it goes on. Default Hold."""
    generation: Generation | None = None
    """How answers are made to be compared. Default: 64 new tokens at most."""
    pod_template: PodOverlay | None = None
    """Added to the pods that evaluate, in place of compute.podTemplate."""

    cel_rules = (
        Rule(
            rule="!has(self.metrics) || self.metrics.exists(m, !(has(m.report) && m.report))",
            message="evaluation.metrics needs at least one metric that is judged",
        ),
    )


class FailurePolicy(ApiModel):
    """How often a run is tried again, and for what."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Failed attempts of a stage (exit codes, out of memory, hangs) that are retried. Default 3."""
    max_preemptions: Annotated[int, Field(ge=0, le=100000)] | None = None
    """Interruptions from outside (evictions, lost nodes, deleted pods) that are retried. Default 100."""
    hang_seconds: Annotated[int, Field(ge=10, le=604800)] | None = None
    """Without a report from training for this long, the attempt counts as hung. Default 900."""
    on_divergence: Literal["Stop", "RollBack"] | None = None
    """What becomes of training whose loss is no number any more. Stop: it ends as failed. RollBack: it goes on from the
    newest regular checkpoint before, with half the learning rate. Default Stop."""
    max_roll_backs: Annotated[int, Field(ge=1, le=10)] | None = None
    """How often at most; each goes back one checkpoint further. Default 2."""

    cel_rules = (
        Rule(
            rule="!has(self.maxRollBacks) || (has(self.onDivergence) && self.onDivergence == 'RollBack')",
            message="failurePolicy.maxRollBacks: {self.maxRollBacks} needs failurePolicy.onDivergence: RollBack",
        ),
    )


def _immutable(*fields: str) -> tuple[Rule, ...]:
    def unchanged(field: str) -> str:
        return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"

    return tuple(
        Rule(rule=unchanged(field), message=f"spec.{field} is immutable; create a new FineTuneJob instead")
        for field in fields
    )


class FineTuneJobSpec(ApiModel):
    """What to train and how to prove it. Immutable, except suspend, activeDeadlineSeconds and ttlSecondsAfterFinished."""

    suspend: bool | None = None
    """Stop the run's pods after a checkpoint; false goes on from there. Default false."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """The run fails after this long, counted only while its pods are running. Default: never."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """After the end, children and scratch are removed; this object and the ModelVersion stay. Default: kept until deleted."""
    artifacts: Artifacts
    model: Model
    data: Data
    method: Method
    training: Training | None = None
    compute: Compute | None = None
    checkpoint: Checkpoint | None = None
    evaluation: Evaluation | None = None
    failure_policy: FailurePolicy | None = None
    endpoint_ref: ObjectReference | None = None
    """The ModelEndpoint that serves the proven version. Without it the run ends with its ModelVersion."""

    cel_rules = (
        *_immutable(
            "artifacts",
            "model",
            "data",
            "method",
            "training",
            "compute",
            "checkpoint",
            "evaluation",
            "failurePolicy",
            "endpointRef",
        ),
        Rule(
            rule="!has(self.endpointRef) || size(self.endpointRef.name) <= 63",
            message="endpointRef.name: {self.endpointRef.name} has more than 63 characters, and names of ModelEndpoints have at most that",
        ),
        Rule(
            rule=f"{_none_of('self.model.task', _NOT_PACKED)} || !has(self.training) || !has(self.training.packing) || !self.training.packing",
            message=f"training.packing: true is for {_listed(_PACKED)}; model.task: {{self.model.task}} has no use for it",
        ),
        Rule(
            rule="!has(self.compute) || !has(self.compute.nodes) || !has(self.training) || !has(self.training.globalBatchSize)"
            " || self.compute.nodes < 1 || self.training.globalBatchSize % self.compute.nodes == 0",
            message="training.globalBatchSize: {self.training.globalBatchSize} must be a multiple of compute.nodes: {self.compute.nodes}",
        ),
        Rule(
            rule=f"{_none_of('self.model.task', _LABELLED)} || self.data.sources.all(s, !has(s.format) || s.format in ['Auto', 'Labelled'])",
            message=f"model.task: {_listed(_LABELLED)} needs data.sources[].format: Labelled (or Auto)",
        ),
        Rule(
            rule=f"{_one_of('self.model.task', _LABELLED)} || self.data.sources.all(s, !has(s.format) || s.format != 'Labelled')",
            message=f"data.sources[].format: Labelled is for {_listed(_LABELLED)}, not for model.task: {{self.model.task}}",
        ),
        Rule(
            rule=f"{_none_of('self.method.type', _QUANTISING)} || !has(self.compute) || !has(self.compute.strategy) || !self.compute.strategy.startsWith('DeepSpeed')",
            message="method.type: {self.method.type} with compute.strategy: {self.compute.strategy}: DeepSpeed cannot share out quantised weights; use DDP or FSDP2",
        ),
        Rule(
            rule="!has(self.method.quantisation) || self.method.quantisation.bits != 8 || !has(self.compute) || !has(self.compute.strategy) || self.compute.strategy != 'FSDP2'",
            message="method.quantisation.bits: {self.method.quantisation.bits} with compute.strategy: {self.compute.strategy}: bitsandbytes cannot share out weights of 8 bits; use bits: 4, or DDP",
        ),
        Rule(
            rule=f"{_none_of('self.method.type', _NOT_DECAYING)} || !has(self.training) || !has(self.training.weightDecay) || self.training.weightDecay == 0.0",
            message="training.weightDecay: {self.training.weightDecay} draws the factors that method.type: {self.method.type} trains to zero, and the base's answers with them; leave it out",
        ),
        Rule(
            rule="!has(self.method.parent) || self.model.uri.startsWith('version://')",
            message="method.parent: {self.method.parent} says how to go on from a version; model.uri: {self.model.uri} is none (version://NAME)",
        ),
        Rule(
            rule="!has(self.data.split) || self.data.split.test > 0.0 || (has(self.evaluation) && has(self.evaluation.dataset))",
            message="data.split.test: 0 without evaluation.dataset leaves nothing to compare on; set one of them",
        ),
        Rule(
            rule="!has(self.training) || !has(self.training.earlyStopping) || !has(self.data.split) || self.data.split.validation > 0.0",
            message="data.split.validation: 0 leaves training.earlyStopping nothing to look at; raise it, or leave that out",
        ),
    )


class StageStatus(ApiModel):
    """One stage of the run and its newest attempt."""

    name: StageName
    """Prepare, Train or Evaluate."""
    state: StageState
    """Where its newest attempt is."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """The number of its newest attempt."""
    child: str | None = None
    """The batch/v1 Job of the newest attempt."""
    child_uid: Annotated[str, Field(max_length=64)] | None = None
    """The UID of that Job, once a pod of it ran: tells its pods from others' also when the Job is gone."""
    previous_child_uid: Annotated[str, Field(max_length=64)] | None = None
    """The same of the attempt before, whose pods may still be ending."""
    start_time: Time | None = None
    """When its first pod ran."""
    completion_time: Time | None = None
    """When it ended."""
    active_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds in which pods of this stage's attempts were running, of those attempts that have ended."""
    result: OpenObject | None = None
    """What the stage reported (finetune_api.results), recorded before the next stage starts."""


class ProgressMetric(ApiModel):
    """A metric as Kubeflow Trainer shows it: the value is a string."""

    name: Annotated[str, Field(max_length=63)]
    """Its name, e.g. loss or step."""
    value: Annotated[str, Field(max_length=63)]
    """Its value as text."""


class TrainerStatus(ApiModel):
    """Progress, in the shape of Kubeflow Trainer's TrainJob.status.trainerStatus."""

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of the optimiser steps that are done."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    """At the pace so far."""
    metrics: Annotated[list[ProgressMetric], Field(max_length=64)] | None = None
    """The newest values: step, loss, learning rate, speed."""
    last_updated_time: Time | None = None
    """When training reported last."""

    def metric(self, name: str) -> str | None:
        """The value of a metric, or None where it was not reported."""
        return next((metric.value for metric in self.metrics or () if metric.name == name), None)


class CheckpointStatus(ApiModel):
    """The newest checkpoint that is complete."""

    uri: Uri
    """Its folder."""
    step: Annotated[int, Field(ge=0)]
    """The optimiser step after which it was saved."""
    time: Time | None = None
    """When it was seen first."""


class LastRestart(ApiModel):
    """Why the newest attempt began."""

    reason: str
    """Why the attempt before ended, in one CamelCase word."""
    time: Time
    """When that was recorded."""
    message: str | None = None
    """Why, in a sentence."""


class Restarts(ApiModel):
    """Attempts that were repeated, by budget."""

    preemptions: Annotated[int, Field(ge=0)] = 0
    """Attempts that something outside had interrupted, against failurePolicy.maxPreemptions."""
    failures: Annotated[int, Field(ge=0)] = 0
    """Attempts that had failed, against failurePolicy.maxFailures."""
    steps_lost: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps that had to be done again."""
    rapid: Annotated[int, Field(ge=0)] = 0
    """Attempts in a row that ended before they had run for ten minutes: the pauses between them grow."""
    nodes: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=8)] = Field(default_factory=list)
    """Nodes on which the last of these ended, where the node may be to blame. The next attempt avoids them."""
    last: LastRestart | None = None


class EvaluationStatus(ApiModel):
    """The outcome of the comparison."""

    verdict: Verdict
    """Pass: proven acceptable. Fail: proven unacceptable. Inconclusive: neither."""
    results: Annotated[list[MetricResult], Field(max_length=32)] = Field(default_factory=list)
    """One row a metric."""
    report: Uri | None = None
    """The HTML report."""


class RolloutStatus(ApiModel):
    """Where the version is on its way into production."""

    endpoint: Name
    """The ModelEndpoint's name."""
    phase: str
    """The endpoint's phase."""
    weight: Annotated[float, Field(ge=0, le=100)] | None = None
    """Percent of the endpoint's requests that the version answers."""
    promoted: bool = False
    """It is, or was, the endpoint's stable version."""
    message: str | None = None
    """The endpoint's message."""


class FineTuneJobStatus(ApiModel):
    """What was observed."""

    observed_generation: ObservedGeneration = None
    """The metadata.generation that the status is about; -1: the operator has not seen the object yet."""
    instance: Annotated[str, Field(max_length=63)] | None = None
    """The operator whose object this is; other operators leave it alone."""
    phase: Phase | None = None
    """Where the run is, in one word."""
    phase_start_time: Time | None = None
    """Since when the run is in this phase."""
    message: Annotated[str, Field(max_length=32768)] | None = None
    """What it does or waits for, in a sentence."""
    next: NextStatus | None = None
    conditions: Conditions = Field(default_factory=list)
    """Ready, Reconciling, Stalled (kstatus); Suspended, Prepared, Trained, Evaluated, Promoted."""
    start_time: Time | None = None
    """When the operator began to work on it."""
    completion_time: Time | None = None
    """When it ended."""
    active_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds in which pods of the run were running, for activeDeadlineSeconds."""
    attempt: Annotated[int, Field(ge=1)] | None = None
    """The newest attempt of the current stage."""
    stages: Annotated[list[StageStatus], keyed_by("name", most=8)] = Field(default_factory=list)
    """Prepare, Train and Evaluate, as far as they have come."""
    plan: OpenObject | None = None
    """The run as resolved when it began: defaults, images, locations. An operator upgrade does not change it."""
    trainer_status: TrainerStatus | None = None
    checkpoint: CheckpointStatus | None = None
    restarts: Restarts | None = None
    gpu_seconds: Annotated[int, Field(ge=0)] | None = None
    """GPUs times the seconds in which their pods were running."""
    evaluation: EvaluationStatus | None = None
    model_version: VersionReference | None = None
    rollout: RolloutStatus | None = None

    def stage(self, name: StageName) -> StageStatus | None:
        """The recorded stage, or None where it has not begun."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def condition(self, type_: str) -> Condition | None:
        """The condition of a type, or None where it was never set."""
        return next((condition for condition in self.conditions if condition.type == type_), None)


class FineTuneJob(ApiModel):
    """One fine-tuning run: prepare the data, train, and prove the result against what is in production now."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: Annotated[FineTuneJobStatus, UNSEEN] = FineTuneJobStatus()

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> Self:
        """Read an object as the apiserver returns it. Raises pydantic.ValidationError."""
        return cls.model_validate(obj)


__all__ = ["FineTuneJob", "FineTuneJobSpec", "FineTuneJobStatus"]
