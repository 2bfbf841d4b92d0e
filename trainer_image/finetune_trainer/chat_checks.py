"""Whether the base model's chat template writes the user's own chats so that answers can be taught, asked and compared.

Each fault has its own reason and words. A template treats all chats of like roles alike, so a few of each do.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError

from finetune_trainer.answer_ends import mark_at_start
from finetune_trainer.chat_template import as_text, render, special_letters
from finetune_trainer.dataset import Example
from finetune_trainer.encoding import encode_chat, prompt_ids
from finetune_trainer.errors import StageError, bad_configuration, bad_data

_CHATS_OF_LIKE_ROLES = 20
_LONG = 1 << 30


def check_chats(examples: Iterable[Example], *, tokenizer: Any) -> None:
    """Raises StageError: 65 for answers that the data have to change, 78 for a template that does not fit."""
    chats, all_chats = itertools.tee(example for example in examples if example.messages)
    _check_letters(all_chats, tokenizer)
    for example in _some_of_each(chats):
        _check(example, tokenizer)


def _some_of_each(examples: Iterable[Example]) -> Iterator[Example]:
    seen: Counter[tuple[str, ...]] = Counter()
    for example in examples:
        roles = tuple(message.role for message in example.messages or ())
        seen[roles] += 1
        if seen[roles] <= _CHATS_OF_LIKE_ROLES:
            yield example


def _check_letters(examples: Iterable[Example], tokenizer: Any) -> None:
    """An answer is read without its special tokens, and would never equal a reference that spells one."""
    found = []
    for example in examples:
        for message in example.messages or ():
            letters = special_letters(message.content, tokenizer) if message.role == "assistant" else None
            if letters is not None:
                found.append((letters, example.source, message.content))
    if found:
        letters, source, content = found[0]
        raise bad_data(
            "SpecialTokenInAnswer",
            f"source {source}: {len(found)} of the answers spell a special token of the base model, such as"
            f" {letters!r} in {_short(content)}; the template ends answers by itself: remove it from the rows",
        )


def _check(example: Example, tokenizer: Any) -> None:
    """One chat, as it will be trained on and asked."""
    turns = as_text([message.to_dict() for message in example.messages or ()], tokenizer)
    text = _whole(turns, tokenizer, example=example)
    for turn in turns:
        if turn["role"] in ("system", "user") and turn["content"].strip() not in text:
            raise bad_configuration(
                "MessageDropped",
                f"source {example.source}: the base model's chat template leaves out {turn['role']} messages, such as"
                f" {_short(turn['content'])}, so the model would never see them; {_WAY_OUT[turn['role']]}",
            )
    asked = render(turns[:-1], tokenizer, tools=example.tools, ask=True)
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


_WAY_OUT = {
    "system": "write them into the first user message, or use a base model whose template has system messages",
    "user": "use a base model whose template writes every turn",
}


def _whole(turns: Sequence[Any], tokenizer: Any, *, example: Example) -> str:
    try:
        return render(turns, tokenizer, tools=example.tools)
    except TemplateError as error:
        roles = [turn["role"] for turn in turns]
        way_out = f"; {_WAY_OUT['system']}" if "system" in roles and _renders(turns, tokenizer) else ""
        raise bad_data(
            "ChatTemplateRefused",
            f"source {example.source}: the base model's chat template refuses a chat: {error}. It begins with"
            f" {_short(turns[0]['content'])} and has the roles {', '.join(roles)}{way_out}",
        ) from error


def _renders(turns: Sequence[Any], tokenizer: Any) -> bool:
    try:
        render([turn for turn in turns if turn["role"] != "system"], tokenizer)
    except (TemplateError, StageError):
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
