"""Run types: what the operator tells a training container to do.

One immutable JSON file per attempt of a stage; its path is in `FINETUNE_RUN_FILE`. Every default is resolved, so the
container decides nothing that the record does not show. Unknown fields are refused: a container that does not
understand its orders must not guess.

A run's folder (`locations.run`):

    rehearsal/     what training ends with, tried on the base model before it begins ... COMPLETE (last)
    data/          train.jsonl validation.jsonl test.jsonl manifest.json (digests) quarantine.jsonl
    tokens/        the examples to learn from as token ids (tasks/tokens.py of the trainer) ... COMPLETE (last)
    checkpoints/   step-N/ ... COMPLETE (last)
    model/         the saved model, probes.jsonl (held-out prompts for what serves it) ... COMPLETE (last)
    training_log.jsonl   what was logged, a line a step (training_log.py)
    evaluation/    examples.jsonl (scores of each) report.json report.html
    comparisons/   <key>/ the same of each later comparison, with another baseline
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from finetune_api.base import Digest, StrictModel, Uri, VersionReference
from finetune_api.finetunejob import EvaluationMetric, Freeze, LoRA, Quantisation, Source, Split
from finetune_api.shared_fields import Artifact, ResolvedModel, Task
from finetune_api.tasks import Lever, MethodType, Strategy, UsedStrategy

RUN_FILE_VARIABLE = "FINETUNE_RUN_FILE"
TERMINATION_LOG_VARIABLE = "FINETUNE_TERMINATION_LOG"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
MASTER_ADDRESS_VARIABLE = "FINETUNE_MASTER_ADDR"
"""Host of the pod with rank 0; its port is in FINETUNE_MASTER_PORT."""
MASTER_PORT_VARIABLE = "FINETUNE_MASTER_PORT"
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""The network interface of a pod that its processes reach others by."""
NODE_RANK_VARIABLE = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in each pod of an Indexed Job."""
SERVE_HOST_VARIABLE = "FINETUNE_SERVE_HOST"
"""Address to serve at. Default: all of the container's."""
SERVE_PORT_VARIABLE = "FINETUNE_SERVE_PORT"
"""Instead of the order's port, where servers share one machine's (local mode)."""

GENERATION_FOLDER = "generation"
"""In a server's own folder: a generation_config.json with the tokens that end an answer, for vLLM."""
MIDDLEWARE_FOLDER = "middleware"
"""In a server's own folder: what vLLM imports of ours, and the probes that it hands out."""
MIDDLEWARE = "finetune_middleware.OnlyTheModel"
"""Module and class."""
CHAT_TEMPLATE_OPTIONS = {"enable_thinking": False, "thinking": False}
"""Read by templates of models that can reason: the prompt then ends with an empty thought, as finished answers do."""


class Identity(StrictModel):
    """Whose run this is."""

    namespace: str
    job: str
    uid: str
    attempt: Annotated[int, Field(ge=1)]


class Locations(StrictModel):
    """Where things are, and what may be touched."""

    run: Uri
    """This run's folder."""
    cache: Uri
    """A folder shared by the runs of one artifact root, for what is keyed by digest (materialized base models)."""
    allowed_roots: list[str]
    """URI prefixes that may be read. Empty: everything but the container's own file system outside of mounts."""
    mounts: dict[str, str] = Field(default_factory=dict)
    """Claim name -> directory at which pvc://<claim>/ is mounted in this container."""


class ParentOrder(StrictModel):
    """The ModelVersion that a run goes on from."""

    name: str
    uid: str | None = None
    artifact: Artifact
    base: ResolvedModel
    """What the artifact adapts, where it is an adapter."""
    labels: list[str] | None = None
    data_manifest: Uri | None = None
    """Of what it, and those before it, learned from: none of that may be held out."""
    keep: bool | None = None
    """Whether its adapter is trained on beside its base. None: no; it is merged into it."""


class ModelOrder(StrictModel):
    """The base model to use."""

    uri: Uri
    revision: str | None = None
    task: Task
    allowed_licences: list[str] | None = None
    """None: any licence, an unknown one included."""
    trust_remote_code: bool = False
    parent: ParentOrder | None = None
    """What version:// stands for."""


class SplitOrder(StrictModel):
    """How to divide the examples."""

    fractions: Split
    salt: str
    """The same for all runs that must agree on who is held out: the endpoint, or the namespace."""
    seed: int = 0


class MethodOrder(StrictModel):
    """How the weights are changed, resolved."""

    type: MethodType
    lora: LoRA | None = None
    quantisation: Quantisation | None = None
    """Of the base while it is trained on, and only then. None: it stays as it is."""
    freeze: Freeze | None = None


class OffloadOrder(StrictModel):
    """What waits in the host's memory."""

    optimizer: bool = False
    parameters: bool = False


def name_of(strategy: UsedStrategy, offload: OffloadOrder | None, *, recomputes: bool = False) -> str:
    """The strategy, with what is offloaded, and whether activations are computed again."""
    also = ["offload"] if offload and (offload.optimizer or offload.parameters) else []
    also += ["activation checkpointing"] if recomputes else []
    return f"{strategy} with {' and '.join(also)}" if also else strategy


Precision = Literal["Auto", "FP32", "BF16"]


def is_half(precision: Precision, *, gpus: bool) -> bool:
    """Whether BF16 is computed in, as far as can be said without the machine. Auto: as most GPUs can, and CPUs need not."""
    return precision == "BF16" or (precision == "Auto" and gpus)


class MemoryOrder(StrictModel):
    """The machines that training will have, for what it needs of their memory (`finetune_api.memory`)."""

    strategy: Strategy
    """Auto: Prepare chooses."""
    offload: OffloadOrder | None = None
    nodes: int
    processes_per_node: int
    gpus: bool
    """Whether each process has one."""
    gpu_memory: float | None = None
    """Bytes of each; None: nobody says."""
    memory_limit: float | None = None
    """Bytes of the machine's own memory that all processes of a pod may take."""
    rows: int
    """Examples, or rows of packed ones, that a process reads at once."""
    precision: Precision
    activation_checkpointing: Lever | None = None
    """None: of an operator that knows no such choice; off."""


class Optimisation(StrictModel):
    """Every knob of the optimiser, resolved. Units as in FineTuneJob.spec.training."""

    epochs: float | None = None
    max_steps: int | None = None
    learning_rate: float
    scheduler: Literal["Constant", "Linear", "Cosine"]
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    global_batch_size: int
    micro_batch_size: int
    max_length: int
    packing: bool
    precision: Precision
    seed: int
    early_stopping_patience: int | None = None


class PrepareRun(StrictModel):
    """Read, check, group, split and store the data; resolve the base model."""

    stage: Literal["Prepare"] = "Prepare"
    identity: Identity
    locations: Locations
    model: ModelOrder
    sources: list[Source]
    max_bad_rows: int
    max_truncated_fraction: float
    max_length: int
    split: SplitOrder
    evaluation_dataset: Source | None = None
    """A fixed evaluation set, which then is the test split; its near-duplicates leave the training split."""
    max_new_tokens: int | None = None
    """Of the answers that the evaluation compares; None where it compares none, or the order is of an older operator."""
    method: MethodOrder | None = None
    """How the weights will be changed: tried on the base model before any accelerator is taken. None (a run file of an
    earlier operator): Train tries it."""
    packing: bool | None = None
    """Whether training will pack rows, which is tried as well."""
    strategy: UsedStrategy | None = None
    offload: OffloadOrder | None = None
    deepspeed: dict[str, Any] | None = None
    """As in TrainRun, with which the library is tried before any accelerator is taken. None: none of the three."""
    memory: MemoryOrder | None = None
    """None: of an operator that does not ask for a choice."""
    optimisation: Optimisation | None = None
    """By which will be trained, so that what it cannot be is refused here. None: of an earlier operator; Train does."""
    served_by_vllm: bool | None = None
    """Whether vLLM is to serve the result, and has to be able to."""


class CheckpointOrder(StrictModel):
    """When to save."""

    every_steps: int
    keep: int
    resume: Literal["Latest", "Never"]


class TrainRun(StrictModel):
    """Train one model on all processes of the gang."""

    stage: Literal["Train"] = "Train"
    identity: Identity
    locations: Locations
    model: ModelOrder
    base: ResolvedModel
    data_digest: Digest
    method: MethodOrder
    optimisation: Optimisation
    checkpoint: CheckpointOrder
    nodes: int
    processes_per_node: int
    strategy: UsedStrategy
    offload: OffloadOrder | None = None
    """None: nothing does, and trainers of earlier versions need not know of it."""
    deepspeed: dict[str, Any] | None = None
    """What the job says to DeepSpeed beyond its fields, as DeepSpeed's own configuration. None: nothing."""
    max_roll_backs: int | None = None
    """How often training that diverges goes back. None: it ends."""
    activation_checkpointing: bool | None = None
    """Whether activations are computed again in backward passes. None: they are not."""


class BaselineOrder(StrictModel):
    """What to compare with: a version's artifact, or the base model where `artifact` is None."""

    name: str
    uid: str | None = None
    artifact: Artifact | None = None
    base: ResolvedModel
    """The base of the baseline's own artifact."""
    data_manifest: Uri | None = None
    """The manifest of the data that the baseline was trained on: none of it may be among the held-out examples."""
    labels: list[str] | None = None


class EvaluateRun(StrictModel):
    """Score candidate and baseline on the same held-out examples and compare."""

    stage: Literal["Evaluate"] = "Evaluate"
    identity: Identity
    locations: Locations
    model: ModelOrder
    base: ResolvedModel
    candidate: Artifact
    labels: list[str] | None = None
    data_digest: Digest
    baseline: BaselineOrder
    metrics: list[EvaluationMetric]
    max_length: int
    max_new_tokens: int
    batch_size: int
    precision: Precision
    seed: int
    output: Uri | None = None
    """The folder for scores and report. None: `evaluation/` in the run's folder."""


class ServeOrder(StrictModel):
    """Serve one version of an endpoint until told to stop."""

    stage: Literal["Serve"] = "Serve"
    endpoint: str
    """The model name that clients use."""
    version: VersionReference
    """Which ModelVersion this is, for logs and metrics."""
    runtime: Literal["Transformers", "FastAPI"]
    locations: Locations
    """`cache`: where artifacts are kept by digest; `run`: a folder of this server's own."""
    artifact: Artifact
    base: ResolvedModel
    task: Task
    labels: list[str] | None = None
    """The classes of a classifier, in the order of its outputs."""
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the version reads at once: a classifier's texts are cut there, longer prompts are refused."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    precision: Precision = "Auto"
    """As evaluated. Auto, where that was not recorded: BF16 on a GPU that has it, else FP32."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Requests that are worked on at once, where there is memory for their keys and values."""
    max_waiting: Annotated[int, Field(ge=0, le=10000)] = 64
    """Requests beyond those, which wait until one of them is done; more get 429."""
    max_new_tokens: Annotated[int, Field(ge=1, le=131072)] = 1024
    """Longest answer, whatever a request asks for."""
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 50.0
    """After SIGTERM: how long requests under way may take. Less than the pod's own grace period."""


Run = Annotated[PrepareRun | TrainRun | EvaluateRun | ServeOrder, Field(discriminator="stage")]
run_adapter: TypeAdapter[PrepareRun | TrainRun | EvaluateRun | ServeOrder] = TypeAdapter(Run)
