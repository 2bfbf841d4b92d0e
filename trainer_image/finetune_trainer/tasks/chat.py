"""Task Chat: answer messages. The assistant's answers are learned, with the token that ends each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finetune_api.shared_fields import Task as TaskName
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.rows import Content, RowFormat
from finetune_trainer.tasks import chat_checks, rendered_fields
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

    def check_row(self, content: Content, *, tokenizer: Any) -> None:
        """The template writes all of it."""
        chat_checks.check_row(content, tokenizer=tokenizer)

    def check_examples(self, examples: Sequence[Example], *, tokenizer: Any) -> None:
        """The template writes them so that answers can be taught, asked and compared."""
        chat_checks.check_chats(examples, tokenizer=tokenizer)

    def with_reference(self, example: Example, *, tokenizer: Any) -> Example:
        """With its last answer as the template writes it, where that calls a tool."""
        return rendered_fields.with_reference(example, tokenizer=tokenizer)
