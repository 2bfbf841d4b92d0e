"""What only some chat templates know (tools, calls of tools, names): used by the base model's template, or refused.

A template drops in silence what it does not know. Each chat that has such a field is rendered with and without it;
where that makes no difference, the model would not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from jinja2.exceptions import TemplateError

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.fields import Problem
from finetune_trainer.data.rows import Content
from finetune_trainer.tasks.answer_ends import answer_text
from finetune_trainer.tasks.chat_template import Tools, render
from finetune_trainer.tasks.encoding import last_answer


def check(content: Content, *, tokenizer: Any) -> None:
    """Raises Problem for a field that the template drops."""

    def written(messages: Sequence[Message], tools: Tools) -> str:
        return render([message.to_dict() for message in messages], tokenizer, tools=tools)

    variants = list(_without_each(content))
    whole = written(content.messages or (), content.tools) if variants else ""
    for field, messages, tools in variants:
        with suppress(TemplateError):  # it misses what is left out
            if written(messages, tools) == whole:
                raise Problem(
                    field=field,
                    reason="is not shown to the model: the base model's chat template writes the same chat with and"
                    " without it. Use a base model whose template knows it, write it into the content of a message, or"
                    " remove it",
                )


def with_reference(example: Example, *, tokenizer: Any) -> Example:
    """The example; where its last answer calls a tool, with the answer as the template writes it."""
    if not example.messages or "tool_calls" not in example.messages[-1].extra:
        return example
    ids = last_answer(example.messages, tools=example.tools, tokenizer=tokenizer)
    return replace(example, reference=answer_text(ids, tokenizer).strip())


def _without_each(content: Content) -> Iterator[tuple[str, Sequence[Message], Tools]]:
    """The name of each such field, and the chat without it."""
    messages, tools = content.messages or (), content.tools
    if tools:
        yield "tools", messages, None
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        # The order of messages says which call a result belongs to; many templates leave ids and tools' names out.
        for name in ("tool_calls", *(("name",) if message.role != "tool" else ())):
            if name in message.extra:
                extra = {key: value for key, value in message.extra.items() if key != name}
                yield (
                    f"{place}.{name}",
                    (*messages[:index], replace(message, extra=extra), *messages[index + 1 :]),
                    tools,
                )
        if message.role == "tool" and message.content.strip():  # many tools say nothing
            yield place, (*messages[:index], replace(message, content=""), *messages[index + 1 :]), tools
