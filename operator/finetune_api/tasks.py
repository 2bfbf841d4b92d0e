"""What operator and gateway have to know of a task, a method or a strategy; the rest is in `finetune_trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.shared_fields import Task

MethodType = Literal["Full", "LoRA", "QLoRA", "DoRA", "IA3"]
Strategy = Literal["Auto", "DDP", "FSDP2", "DeepSpeedZeRO1", "DeepSpeedZeRO2", "DeepSpeedZeRO3"]
UsedStrategy = Literal["DDP", "FSDP2", "DeepSpeedZeRO1", "DeepSpeedZeRO2", "DeepSpeedZeRO3"]
Runtime = Literal["Transformers", "FastAPI", "VLLM"]
Lever = Literal["Auto", "Never", "Always"]
"""Not On and Off: YAML reads those without quotes as true and false."""
Scored = Literal["Text", "Class"]


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """How versions of a task are asked, and served."""

    paths: tuple[str, ...]
    """Of OpenAI's API, where clients ask them; the one that is theirs first."""
    runtimes: tuple[Runtime, ...]
    """What serves them; the trainer's own first."""
    scored: Scored
    """What an evaluation scores (`finetune_api.metrics`)."""
    chat_template: bool = False
    """Their prompts are written by the model's chat template."""
    labelled: bool = False
    """They learn from rows with labels (format Labelled), and from nothing else."""
    packs: bool = False
    """Several of their examples can share a row (`training.packing`)."""
    two_parts: bool = False
    """Their models read with one part and write with another."""
    cuts_texts: bool = False
    """A text is read up to `training.maxLength`, when it is evaluated and when it is served."""


_COMPLETIONS = "/v1/completions"
_BOTH: tuple[Runtime, ...] = ("Transformers", "VLLM")
TASKS: dict[Task, TaskKind] = {
    "Chat": TaskKind(
        paths=("/v1/chat/completions", _COMPLETIONS), runtimes=_BOTH, scored="Text", packs=True, chat_template=True
    ),
    "CausalLM": TaskKind(paths=(_COMPLETIONS,), runtimes=_BOTH, scored="Text", packs=True),
    "SequenceClassification": TaskKind(
        paths=("/v1/classify",), runtimes=("FastAPI",), scored="Class", labelled=True, cuts_texts=True
    ),
    "Seq2Seq": TaskKind(paths=(_COMPLETIONS,), runtimes=("FastAPI",), scored="Text", two_parts=True, cuts_texts=True),
}


_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How transformers ends the names of architectures that write text."""


def task_problem(task: Task, *, architectures: Sequence[str], two_parts: bool) -> str | None:
    """Why a base cannot do a task, as far as its config.json tells; None: nothing is known against it."""
    kind, named = TASKS[task], ", ".join(architectures)
    if kind.scored == "Text" and two_parts != kind.two_parts:
        fitting = " or ".join(
            name for name, each in TASKS.items() if each.scored == "Text" and each.two_parts == two_parts
        )
        parts = "reads with one part and writes with another" if two_parts else "has one part that reads and writes"
        return f"model.task: {task}, but {named or 'the base'} {parts}; use model.task: {fitting}, or another base"
    writes = two_parts or any(each.endswith(_WRITES) for each in architectures)
    if kind.scored == "Text" and architectures and not writes:
        return f"model.task: {task}, but {named} writes no text; use SequenceClassification, or another base"
    return None


@dataclass(frozen=True, kw_only=True)
class MethodKind:
    """What jobs may say of a method."""

    learning_rate: float
    """Where `training.learningRate` names none."""
    low_rank: bool = False
    """It has a rank (`method.lora`)."""
    quantises: bool = False
    """It learns on a quantised base (`method.quantisation`)."""
    freezes: bool = False
    """Parts of the base can be kept as they are (`method.freeze`)."""
    whole: bool = False
    """All weights are trained, or what is not frozen of them; else adapters at linear layers are:"""
    vectors: bool = False
    """a number for each output."""
    decays: bool = True
    """What it trains may be drawn to zero (`training.weightDecay`)."""
    vllm: bool = True
    """vLLM serves what it makes."""


METHODS: dict[MethodType, MethodKind] = {
    "LoRA": MethodKind(learning_rate=2e-4, low_rank=True),
    "QLoRA": MethodKind(learning_rate=2e-4, low_rank=True, quantises=True),
    "DoRA": MethodKind(learning_rate=2e-4, low_rank=True, vectors=True, vllm=False),
    "IA3": MethodKind(learning_rate=2e-3, vectors=True, decays=False, vllm=False),
    "Full": MethodKind(learning_rate=2e-5, freezes=True, whole=True),
}
