"""Task Chat: answer messages. The assistant's answers are learned, with the token that ends each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import RowFormat
from finetune_trainer.tasks.causal import CausalLM
from finetune_trainer.tasks.encoding import Encoded, encode_chat


class Chat(CausalLM):
    """Chats, written by the base model's template."""

    name: ClassVar[TaskName] = "Chat"
    formats: ClassVar[tuple[RowFormat, ...]] = ("Chat", "PromptCompletion")
    greeting: ClassVar[Mapping[str, Any]] = {"messages": [{"role": "user", "content": "Hello"}]}

    def encode(
        self, example: Example, *, tokenizer: Any, max_length: int, labels: Sequence[str] | None = None
    ) -> Encoded:
        """A chat."""
        return encode_chat(example.messages or (), tokenizer=tokenizer, max_length=max_length, tools=example.tools)


class Seq2Seq(Chat):
    """Served only: a model of two parts that reads a text and writes another."""

    name: ClassVar[TaskName] = "Seq2Seq"
    formats: ClassVar[tuple[RowFormat, ...]] = ("PromptCompletion",)
    loader: ClassVar[str] = "AutoModelForSeq2SeqLM"
    two_parts: ClassVar[bool] = True
    greeting: ClassVar[Mapping[str, Any]] = CausalLM.greeting
