"""What training needs of each GPU's memory, and how its processes should share the model: arithmetic, nothing is run.

It is the trainer's own training that is computed (`finetune_trainer/training`): weights that are trained are fp32, and
under BF16 have copies to compute with; AdamW keeps two moments. docs/training.md has the table; tests/trainer/test_memory.py measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from finetune_api.model_shape import ModelShape
from finetune_api.run import MemoryOrder, MethodOrder, OffloadOrder, is_half, name_of
from finetune_api.tasks import METHODS, MethodKind, UsedStrategy

GIB = 1 << 30
ASSUMED_GPU_GIB = 24.0
"""Where nobody says: most GPUs that train have as much. Assuming less only makes training slower."""
_RANK = 16
"""Of an adapter that is only suggested."""
_FRAGMENTED = 0.1
"""Of a GPU's memory, what the allocator loses in pieces."""
_GPU_CONTEXT, _EXCHANGES, _CPU_CONTEXT = 1.0 * GIB, 0.5 * GIB, 0.75 * GIB
"""CUDA with its libraries; NCCL's buffers; the libraries of a process on CPUs."""
_ACTIVATIONS = {
    (False, False): (16, 16, 16),
    (False, True): (24, 16, 16),
    (True, False): (18, 10, 8),
    (True, True): (26, 8, 8),
}
"""By (BF16, all weights are trained): bytes that a block keeps of a token for the backward pass, for each element of the
width (both norms' inputs and outputs, copies to multiply with), of the attention's (queries, keys, values, answers) and
of the feed-forward's (gate, its activation, the other factor, their product)."""
_BLOCK_INPUT = {(False, False): 4, (False, True): 4, (True, False): 2, (True, True): 4}
"""Bytes of a token and element of the width that is all that a block keeps where the rest is computed again."""
_LOGITS = 12
"""Bytes of a token for each element of the vocabulary: log-probabilities, and two gradients, in fp32."""
LOGIT_ROWS = 512
"""Tokens whose logits a plain output layer makes at a time: more are no faster."""
_FEW_LOGITS = 4
"""Bytes of each of those, under BF16 twice as many: they become probabilities and gradients where they lie."""
_SPREAD: dict[UsedStrategy, tuple[bool, bool, bool]] = {
    "DDP": (False, False, False),
    "FSDP2": (True, True, True),
    "DeepSpeedZeRO1": (False, False, True),
    "DeepSpeedZeRO2": (False, True, True),
    "DeepSpeedZeRO3": (True, True, True),
}
"""Whether weights, gradients and moments are spread over the processes."""
_QUANTISED = {4: 0.516, 8: 1.0}
"""Bytes of a parameter by bits: of 4 with a number of 8 for each 64 of them, and one of 32 for each 256 of those."""
DEEPSPEED_BUCKET = 500_000_000
"""Elements that DeepSpeed exchanges at once, at most: its own default."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, as far as memory depends on it."""

    shape: ModelShape
    method: MethodOrder
    order: MemoryOrder
    tokens: int
    """Of the longest row."""
    writes: bool = True
    """Whether there are logits for each token; a classifier has a few for each row."""
    recomputable: bool = True
    """Whether the architecture can compute its activations again."""

    @property
    def trained(self) -> int:
        """Parameters that change; those of `method.freeze` are counted in."""
        kind, lora = self.kind, self.method.lora
        if kind.whole:
            return self.shape.parameters
        layers = self.shape.layers_of((lora and lora.target_modules) or ["all-linear"])
        thin = (lora.rank if lora else _RANK) * sum(map(sum, layers)) if kind.low_rank else 0
        return thin + (sum(outputs for outputs, _ in layers) if kind.vectors else 0)

    @property
    def kind(self) -> MethodKind:
        """What is known of the method."""
        return METHODS[self.method.type]

    @property
    def bits(self) -> int | None:
        """Of the parameters of the blocks, where they are quantised."""
        if self.method.quantisation is not None:
            return self.method.quantisation.bits
        return 4 if self.kind.quantises else None

    @property
    def bf16(self) -> bool:
        """What is computed in."""
        return is_half(self.order.precision, gpus=self.order.gpus)

    @property
    def room(self) -> float | None:
        """Bytes that each process may take; None: nobody says."""
        order = self.order
        if order.gpus:
            return order.gpu_memory
        return None if order.memory_limit is None else order.memory_limit / order.processes_per_node

    def shares(self, strategy: UsedStrategy) -> bool:
        """Whether the strategy can share the model out: DeepSpeed no quantised weights, FSDP2 none of 8 bits."""
        return not self.bits or strategy == "DDP" or (strategy == "FSDP2" and self.bits != 8)

    def has_room_for(self, memory: Memory, *, assumed: float | None = None) -> bool | None:
        """Whether that fits, what waits in the machine's own memory included; None: nobody says."""
        room, host = assumed if self.room is None else self.room, self.order.memory_limit
        if room is None:
            return None
        needed = memory.needed if self.order.gpus else memory.total
        return needed <= room and (host is None or memory.host <= host)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process under a strategy, on its GPU or, without one, in the machine's memory."""

    strategy: UsedStrategy
    offload: OffloadOrder = field(default_factory=OffloadOrder)
    recomputes: bool = False
    """Whether activations are computed again in the backward pass."""
    weights: float
    gradients: float
    moments: float
    activations: float
    logits: float
    context: float
    spare: float
    """Lost in pieces; on CPUs what passes hold counts twice, since the C library keeps what is freed."""
    host: float
    """Of a machine, at most: the base while it is read and handed out, or what waits there instead of on the GPUs."""

    @property
    def total(self) -> float:
        """What is certainly taken."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits + self.context

    @property
    def needed(self) -> float:
        """What there should be."""
        return self.total + self.spare

    @property
    def name(self) -> str:
        """The strategy, with what is offloaded and computed again."""
        return name_of(self.strategy, self.offload, recomputes=self.recomputes)


def memory_of(
    training: Training, strategy: UsedStrategy, *, offload: OffloadOrder | None = None, recomputes: bool = False
) -> Memory:
    """What each process needs under a strategy, part by part."""
    shape, order, trained, bf16 = training.shape, training.order, training.trained, training.bf16
    full, zero, offload = training.kind.whole, strategy.startswith("DeepSpeed"), offload or OffloadOrder()
    world = order.nodes * order.processes_per_node
    by_weights, by_gradients, by_moments = (world if spread else 1 for spread in _SPREAD[strategy])
    stored, copies = _stored(training, half=bf16 and not zero)
    # What is whole for a while: of weights that are spread those whose turn it is; and gradients on their way.
    turn = shape.outside + 2 * (shape.parameters - shape.outside) / shape.layers
    if strategy == "FSDP2":
        live, arriving = turn, turn if full else 0.0
    elif zero:
        live, arriving = float(min(shape.parameters, 2 * DEEPSPEED_BUCKET)), float(min(trained, DEEPSPEED_BUCKET))
    else:
        live, arriving = 0.0, float(shape.largest if full else 0)  # made before it is added to that of an earlier pass
    keeps = stored / by_weights
    weights = keeps + ((2.0 if bf16 else 4.0) * live if _SPREAD[strategy][0] else copies)
    gradients, moments = 4.0 * trained / by_gradients, 8.0 * trained / by_moments
    if zero:
        moments += 4.0 * trained / world  # the weights that it steps on
    waiting = moments if offload.optimizer else 0.0
    moments -= waiting
    if offload.parameters:
        waiting, weights = waiting + keeps, weights - keeps
        if strategy == "FSDP2":
            waiting, gradients = waiting + gradients, 0.0
    gradients += 4.0 * arriving
    tokens = training.tokens * order.rows
    of_width, of_attention, of_inner = _ACTIVATIONS[bf16, full]
    block = of_width * shape.width + of_attention * shape.attention_width + of_inner * shape.inner_width
    activations = tokens * shape.layers * block
    if recomputes:
        # Of one block at a time all of it, and gradients as large.
        activations = tokens * (shape.layers * _BLOCK_INPUT[bf16, full] * shape.width + 2 * block)
    logits = float(_LOGITS * shape.vocabulary * tokens) if training.writes else 0.0
    if shape.plain_output:
        at_once = min(tokens, LOGIT_ROWS)
        logits = min(logits, float((2 if bf16 else 1) * _FEW_LOGITS * shape.vocabulary * at_once))
    context = _GPU_CONTEXT + (_EXCHANGES if world > 1 else 0.0) if order.gpus else _CPU_CONTEXT
    if strategy == "FSDP2" and training.bits:  # each reads all of them before they are spread
        weights = max(weights, stored - gradients - moments - activations - logits)
    certain = weights + gradients + moments + activations + logits + context
    return Memory(
        strategy=strategy,
        offload=offload,
        recomputes=recomputes,
        weights=weights,
        gradients=gradients,
        moments=moments,
        activations=activations,
        logits=logits,
        context=context,
        spare=certain * _FRAGMENTED / (1 - _FRAGMENTED) if order.gpus else activations + logits,
        host=max(waiting * order.processes_per_node, _read(training, strategy, stored=stored)),
    )


def _read(training: Training, strategy: UsedStrategy, *, stored: float) -> float:
    """Bytes of a base in its machine's memory before all of it is on the devices. Where weights are spread the first
    process alone reads it, else each does; what is quantised goes to its device as it is read.
    """
    if training.bits:
        return 0.0
    return stored * (1 if _SPREAD[strategy][0] else training.order.processes_per_node)


def _stored(training: Training, *, half: bool) -> tuple[float, float]:
    """Bytes of all weights, and of the copies that are computed with. `half`: frozen ones are in bf16."""
    shape, trained, kind = training.shape, training.trained, training.kind
    frozen = 0 if kind.whole else shape.parameters
    each = 2.0 if half else 4.0
    small = min(frozen, shape.quantisable) * (each - _QUANTISED.get(training.bits or 0, each))
    return 4.0 * trained + each * frozen - small, 2.0 * (trained + (0 if half else frozen)) if training.bf16 else 0.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How processes are to share the model."""

    memory: Memory
    tried: Sequence[Memory]
    """From the fastest on; the last one is the chosen one, unless none fits."""
    fits: bool | None
    """None: nobody says how much memory there is."""
    text: str
    """Why, with the numbers."""


def choose(training: Training) -> Choice:
    """The fastest that fits. What the job names is taken as it is."""
    order, room = training.order, training.room
    named = order.strategy != "Auto"
    tried: list[Memory] = []
    for memory in _fastest_first(training):
        tried.append(memory)
        fits = training.has_room_for(memory, assumed=ASSUMED_GPU_GIB * GIB if order.gpus else None)
        if fits is not False:
            break
    too_much = "".join(f"; {each.name} would need {gib(each.needed)}{_waiting(each, training)}" for each in tried[:-1])
    text = f"{_parts(memory, training)}{too_much}"
    if room is None and order.gpus and (not named or len(again(training)) > 1):
        text += f"; {gib(ASSUMED_GPU_GIB * GIB)} are assumed, since compute.gpuMemory is not set"
    return Choice(memory=memory, tried=tried, fits=None if room is None else fits, text=text)


def again(training: Training) -> list[bool]:
    """Whether activations may be computed again: from the fastest on."""
    wanted = training.order.activation_checkpointing if training.recomputable else "Never"
    return {"Always": [True], "Auto": [False, True]}.get(wanted or "Never", [False])


def _fastest_first(training: Training) -> Iterator[Memory]:
    """Of what the job leaves open. Computing activations again takes a third more time. FSDP2 exchanges with each pass:
    within a machine that costs less, between machines more; offloading costs most.
    """
    order = training.order
    if order.strategy != "Auto":
        yield from (
            memory_of(training, order.strategy, offload=order.offload, recomputes=each) for each in again(training)
        )
        return
    shared: list[UsedStrategy] = ["DDP"]
    if order.gpus and order.nodes * order.processes_per_node > 1 and training.shares("FSDP2"):
        shared.append("FSDP2")
    ways = [(strategy, each) for each in again(training) for strategy in shared]
    if order.nodes > 1:
        ways = [(strategy, each) for strategy in shared for each in again(training)]
    yield from (memory_of(training, strategy, recomputes=each) for strategy, each in ways)
    if not order.gpus or order.gpu_memory is None or training.bits:
        return  # much slower: not for an assumption
    for each in again(training):
        moved = OffloadOrder(optimizer=True, parameters=True)
        yield memory_of(training, "FSDP2", offload=moved, recomputes=each)


def ways_out(training: Training) -> list[str]:
    """What would fit, with its numbers: each alone or, where nothing is enough alone, beside the smallest micro-batch."""
    order, found = training.order, []
    others: dict[str, Training] = {}
    if order.strategy != "Auto":
        left = order.model_copy(update={"strategy": "Auto", "offload": OffloadOrder()})
        others["compute.strategy: Auto, without compute.offload"] = replace(training, order=left)
    others |= {
        f"training.microBatchSize: {rows}": replace(training, order=order.model_copy(update={"rows": rows}))
        for rows in (order.rows // 2, 1)
        if 0 < rows < order.rows and order.rows % rows == 0
    }
    others |= {
        f"training.maxLength: {cut}": replace(training, tokens=cut)
        for cut in (training.tokens // 2, training.tokens // 4)
        if cut >= 8
    }
    if order.activation_checkpointing == "Never":
        freed = order.model_copy(update={"activation_checkpointing": "Auto"})
        others["training.activationCheckpointing: Auto"] = replace(training, order=freed)
    zero = order.strategy.startswith("DeepSpeed")
    fitting = [name for name, kind in METHODS.items() if kind.low_rank and not (kind.quantises and zero)]
    smaller = [name for name in fitting if name != training.method.type]
    others |= {f"method.type: {name}": replace(training, method=MethodOrder(type=name)) for name in smaller}
    if order.gpus:
        for nodes in (2 * order.nodes, 4 * order.nodes):
            others[f"compute.nodes: {nodes}"] = replace(training, order=order.model_copy(update={"nodes": nodes}))
    for what, other in others.items():
        choice = choose(other)
        if choice.fits:
            found.append(f"{what} ({choice.memory.name}, {gib(choice.memory.needed)})")
    if not found and order.rows > 1:
        smallest = replace(training, order=order.model_copy(update={"rows": 1}))
        return [f"training.microBatchSize: 1 and {each}" for each in ways_out(smallest)]
    return found


def problem(training: Training, choice: Choice) -> str | None:
    """Why what was chosen does not fit or may not, where that is known, and what would; None: it does."""
    order, room = training.order, training.room
    if room is None or (choice.fits and choice.memory.needed <= room):
        return None
    where = f"compute.gpuMemory: {gib(room)}"
    if order.gpus and order.memory_limit is not None and any(each.host > order.memory_limit for each in choice.tried):
        where += f", compute.resources.limits.memory: {gib(order.memory_limit)}"
    if not order.gpus:
        where = (
            f"compute.resources.limits.memory: {gib(order.memory_limit or 0)} for {order.processes_per_node} processes"
        )
    nothing = (
        "nothing of what was computed: half or a quarter of training.maxLength, training.microBatchSize: 1,"
        " another method.type, up to four times the nodes"
    )
    return f"{where}: {choice.text}. What would fit: {'; '.join(ways_out(training)) or nothing}"


def gib(size: float) -> str:
    """In GiB, three digits or so."""
    return f"{size / GIB:.0f} GiB" if size >= 100 * GIB else f"{size / GIB:.1f} GiB"


def gpus_to_evaluate(shape: ModelShape, order: MemoryOrder) -> int:
    """GPUs of one machine over which a model without optimiser has to be spread: base and adapter as they are served,
    with a quarter more for keys, values and logits. Where all of them are too few, the rest waits in the host's memory.
    """
    each = 4.0 if order.precision == "FP32" else 2.0
    room = (order.gpu_memory or ASSUMED_GPU_GIB * GIB) * (1 - _FRAGMENTED) - _GPU_CONTEXT
    return min(max(1, math.ceil(1.25 * each * shape.parameters / max(room, 1.0))), order.processes_per_node)


def _parts(memory: Memory, training: Training) -> str:
    of = "a GPU" if training.order.gpus else "a process"
    parts = {name: getattr(memory, name) for name in ("weights", "gradients", "moments", "activations", "logits")}
    said = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items())
    return (
        f"{memory.name} needs {gib(memory.needed)} {of} ({said}, the rest {(memory.context + memory.spare) / GIB:.1f})"
        f"{_waiting(memory, training)}"
    )


def _waiting(memory: Memory, training: Training) -> str:
    limit, moved = training.order.memory_limit, memory.offload.optimizer or memory.offload.parameters
    told = moved or (training.order.gpus and limit is not None and memory.host > limit)
    return f" and {gib(memory.host)} of each machine's own memory" if told else ""
