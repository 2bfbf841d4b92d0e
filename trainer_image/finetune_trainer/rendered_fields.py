"""What only some chat templates know (tools, calls of tools, names): used by the base model's template, or refused.

A template drops in silence what it does not know. Each chat that has such a field is rendered with and without it;
where that makes no difference, the model would not see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError

from finetune_trainer import chats
from finetune_trainer.chat_template import render
from finetune_trainer.dataset import Example, Message
from finetune_trainer.encoding import answer_texts
from finetune_trainer.errors import bad_data
from finetune_trainer.rows import Content, Row


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A chat without one of its fields."""

    field: str
    messages: Sequence[Message]
    tools: Sequence[Any] | None


def check(rows: Iterable[Row], *, tokenizer: Any) -> None:
    """Raises StageError (65) that names the first row of a field that the template drops, or a chat that it refuses."""
    for row in rows:
        variants = list(_variants(row.content))
        if not variants:
            continue
        try:
            whole = _render(row.content.messages or (), row.content.tools, tokenizer)
        except (TemplateError, TypeError, ValueError) as error:
            raise bad_data(
                "ChatTemplateRefused",
                f"{row.place}: the base model's chat template cannot write this chat with its tools or names: {error}."
                " Use a base model made for them, or remove them from the rows",
            ) from error
        for variant in variants:
            if _same(whole, variant, tokenizer):
                raise bad_data(
                    "FieldNotRendered",
                    f'{row.place}: "{variant.field}" is not shown to the model: the base model\'s chat template writes'
                    " the same chat with and without it. Use a base model whose template knows it, write it into the"
                    " content of a message, or remove it from the rows",
                )


def with_reference(example: Example, *, tokenizer: Any) -> Example:
    """The example; where its last answer calls a tool, with the answer as the template writes it."""
    if not example.messages or "tool_calls" not in example.messages[-1].extra:
        return example
    text = answer_texts(example.messages, tools=example.tools, tokenizer=tokenizer)[-1]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return replace(example, reference=str(tokenizer.decode(ids, skip_special_tokens=True)).strip())


def _variants(content: Content) -> Iterator[_Variant]:
    messages, tools = content.messages or (), content.tools
    if tools:
        yield _Variant(field="tools", messages=messages, tools=None)
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        # The order of messages says which call a result belongs to; many templates leave ids and tools' names out.
        for name in ("tool_calls", *(("name",) if message.role != "tool" else ())):
            if name in message.extra:
                changed = (*messages[:index], chats.without(message, name), *messages[index + 1 :])
                yield _Variant(field=f"{place}.{name}", messages=changed, tools=tools)
        if message.role == "tool" and message.content.strip():  # many tools say nothing
            changed = (*messages[:index], replace(message, content=""), *messages[index + 1 :])
            yield _Variant(field=place, messages=changed, tools=tools)


def _same(whole: str, variant: _Variant, tokenizer: Any) -> bool:
    try:
        return _render(variant.messages, variant.tools, tokenizer) == whole
    except (TemplateError, TypeError, ValueError):
        # It misses what is left out.
        return False


def _render(messages: Sequence[Message], tools: Sequence[Any] | None, tokenizer: Any) -> str:
    return render([message.to_dict() for message in messages], tokenizer, tools=tools)
