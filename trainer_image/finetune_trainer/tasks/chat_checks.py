"""Whether the base model's chat template writes the user's own chats so that answers can be taught, asked and compared.

What is wrong with one row (`check_row`) makes it a bad row. What is wrong with the template (`check_chats`) ends the
run, with its own reason and words: a template treats all chats of like roles alike, so a few of each do.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.data.dataset import Example
from finetune_trainer.data.fields import Problem
from finetune_trainer.data.rows import Content
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.tasks import rendered_fields
from finetune_trainer.tasks.answer_ends import mark_at_start
from finetune_trainer.tasks.chat_template import as_text, mark_in, render, tools_as_text
from finetune_trainer.tasks.encoding import encode_chat, prompt_ids

_CHATS_OF_LIKE_ROLES = 20
_LONG = 1 << 30
_WAY_OUT = {
    "system": "write them into the first user message, or use a base model whose template has system messages",
    "user": "use a base model whose template writes every turn",
}


def check_chats(examples: Iterable[Example], *, tokenizer: Any) -> None:
    """Raises StageError (78) for a template that does not fit."""
    for example in _some_of_each(example for example in examples if example.messages):
        try:
            _check(example, tokenizer)
        except TemplateError as error:
            raise bad_configuration(
                "UnsupportedChatTemplate",
                f"source {example.source}: the base model's chat template cannot write a question alone: {error}",
            ) from error


def check_row(content: Content, *, tokenizer: Any) -> None:
    """Whether the template writes the whole of one row's chat. Raises Problem; StageError (78) without a template."""
    messages = content.messages or ()
    for message in messages:
        letters = mark_in(message.content, tokenizer) if message.role == "assistant" else None
        if letters is not None:
            raise Problem(
                field="",
                reason=f"has an answer that spells {letters!r}, a mark of the base model; its chat template"
                f" ends answers by itself, so remove it from {_short(message.content)}",
            )
    if not messages:
        return
    turns = as_text([message.to_dict() for message in messages], tokenizer)
    tools = tools_as_text(content.tools, tokenizer)
    try:
        text = render(turns, tokenizer, tools=tools)
    except TemplateError as error:
        no_system = turns[0]["role"] == "system" and _renders(turns[1:], tokenizer)
        way_out = f"messages of role system: {_WAY_OUT['system']}" if no_system else "correct the roles, or their order"
        said = f"is refused by the base model's chat template: {error}; {way_out}"
        raise Problem(field="messages", reason=said) from error
    for index, message in enumerate(messages):
        wanted = turns[index]["content"].strip()
        if wanted in text or message.role == "tool":
            continue
        # Earlier answers may be written otherwise once a chat goes on (`by_answers`).
        if message.role == "assistant" and (
            not message.learned or wanted in render(turns[: index + 1], tokenizer, tools=tools)
        ):
            continue
        raise Problem(
            field=f"messages[{index}]",
            reason=f"is left out or changed by the base model's chat template ({message.role}:"
            f" {_short(message.content)}), so the model would not see what is written;"
            f" {_WAY_OUT.get(message.role, 'use another base model')}",
        )
    rendered_fields.check(content, tokenizer=tokenizer)


def _some_of_each(examples: Iterable[Example]) -> Iterator[Example]:
    seen: Counter[tuple[str, ...]] = Counter()
    for example in examples:
        roles = tuple(message.role for message in example.messages or ())
        seen[roles] += 1
        if seen[roles] <= _CHATS_OF_LIKE_ROLES:
            yield example


def _check(example: Example, tokenizer: Any) -> None:
    """One chat, as it will be trained on and asked."""
    turns = as_text([message.to_dict() for message in example.messages or ()], tokenizer)
    tools = tools_as_text(example.tools, tokenizer)
    text = render(turns, tokenizer, tools=tools)
    asked = render(turns[:-1], tokenizer, tools=tools, ask=True)
    if not text.startswith(asked):
        _refuse_prompt(asked, text)
    answer = str(turns[-1]["content"]).strip()
    if answer:  # a call of a tool is written as the template writes it
        _check_answer(text[len(asked) :], answer, tokenizer)
    learned = encode_chat(example.messages or (), tokenizer=tokenizer, max_length=_LONG, tools=example.tools)
    prompt = prompt_ids(example.messages or (), tokenizer=tokenizer, tools=example.tools)
    if list(learned.ids[: len(prompt)]) != prompt:
        raise bad_configuration(
            "PromptIsNoPrefix",
            f"source {example.source}: the tokens of a prompt alone are not those that the whole chat begins with, so"
            " the model would be asked otherwise than it was taught: split conversations of several turns into one"
            " example each, or use a base model whose template ends a prompt with a token of its own",
        )


def _check_answer(written: str, answer: str, tokenizer: Any) -> None:
    """What the template writes before, for and behind an answer."""
    before, found, after = written.partition(answer)
    if not found or before.strip():
        _refuse_beginning(before if found else written, found=bool(found))
    if after.strip() and mark_at_start(after, tokenizer) is None:
        raise bad_configuration(
            "TurnEndIsText",
            f"the base model's chat template ends an answer with {_short(after.strip())}, which its tokenizer does not"
            " know as a token of its own: the model could not stop there. Use the tokenizer that belongs to the"
            " template, or add the token to its special tokens",
        )
    if not after.strip() and tokenizer.eos_token_id is None:
        raise bad_configuration(
            "NoEndOfAnswer",
            "neither the base model's chat template nor its tokenizer has a token that ends an answer, so the model"
            " would never stop; set the tokenizer's eos_token",
        )


def _renders(turns: Sequence[Any], tokenizer: Any) -> bool:
    try:
        render(turns, tokenizer)
    except TemplateError:
        return False
    return True


def _refuse_prompt(asked: str, text: str) -> None:
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, text, strict=False))))
    rest = asked[same:]
    if "think" in rest:
        raise _thinking(f"ends a prompt with {_short(rest)}, which finished answers do not begin with")
    raise bad_configuration(
        "UnsupportedChatTemplate",
        f"the base model's chat template ends a prompt with {_short(rest)}, where a chat with its answer goes on"
        f" with {_short(text[same:])}: the answers cannot be told from the rest. Use another base model",
    )


def _refuse_beginning(before: str, *, found: bool) -> None:
    if "think" in before:
        raise _thinking(f"writes {_short(before)} before an answer, which its prompts do not end with")
    if not found:
        raise bad_configuration(
            "AnswerRewritten",
            f"the base model's chat template does not write answers as they are in the data, but as {_short(before)}:"
            " what the model learns could not be compared with them. Use another base model",
        )
    raise bad_configuration(
        "NoGenerationPrompt",
        f"the base model's chat template does not write the {_short(before)} that begins an answer when it is asked for"
        " one (add_generation_prompt): the model would have to write it itself, and no answer could be right. Use a"
        " template that does",
    )


def _thinking(what: str) -> StageError:
    return bad_configuration(
        "ThinkingTemplate",
        f"the base model's chat template is made for reasoning that cannot be switched off: it {what}. Use the"
        " variant of the model that answers without thinking, or remove the thoughts from template and rows",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
