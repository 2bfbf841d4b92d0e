"""What operator and gateway have to know of a task or a method: a row each. What the trainer does with them is in
`finetune_trainer.tasks` and `finetune_trainer.training.methods`."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.finetunejob import MethodType
from finetune_api.shared_fields import Task


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """How versions of a task are asked, and served."""

    paths: tuple[str, ...]
    """Of OpenAI's API, where clients ask them."""
    vllm: bool
    """Whether vLLM serves them."""
    chat_template: bool = False
    """Their prompts are written by the model's chat template."""
    cuts_texts: bool = False
    """A text is cut at `training.maxLength`, when it is evaluated and when it is served."""


_COMPLETIONS = "/v1/completions"
TASKS: dict[Task, TaskKind] = {
    "Chat": TaskKind(paths=("/v1/chat/completions", _COMPLETIONS), vllm=True, chat_template=True),
    "CausalLM": TaskKind(paths=(_COMPLETIONS,), vllm=True),
    "SequenceClassification": TaskKind(paths=("/v1/classify",), vllm=False, cuts_texts=True),
    "Seq2Seq": TaskKind(paths=(_COMPLETIONS,), vllm=False),
}

LEARNING_RATES: dict[MethodType, float] = {"LoRA": 2e-4, "Full": 2e-5}
"""Where `training.learningRate` names none, by method: those that this version can do."""
