"""A chat as the tokenizer's own template writes it, and its tokens: the same in training, evaluation and serving.

What a person wrote stays text: the letters of a mark (`<|im_end|>`) inside a message, a call of a tool or a tool's
description are cut in two before the template runs, and the parts are tokenised by themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError

from finetune_api.run import CHAT_TEMPLATE_OPTIONS
from finetune_trainer.process.errors import StageError, bad_configuration

Turn = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None
"""Descriptions of the tools that a chat may call."""
Offset = tuple[int, int]
"""First and last (not included) character of a token."""

_CUT = "\ufdd0"
"""Stands where the letters of a mark are cut: a code point that Unicode keeps free of characters for ever."""
_ESCAPED_CUT = "\\ufdd0"
_PLAIN: Sequence[Turn] = (
    {"role": "system", "content": "topic"},
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "question"},
)


def as_text(turns: Sequence[Turn], tokenizer: Any) -> list[dict[str, Any]]:
    """The turns, ready to be rendered: marks inside of what was written are marked as text."""
    return [{**_cut(turn, tokenizer), **({"role": turn["role"]} if "role" in turn else {})} for turn in turns]


def tools_as_text(tools: Tools, tokenizer: Any) -> Tools:
    """The same for the descriptions of tools."""
    return None if tools is None else [_cut(tool, tokenizer) for tool in tools]


def render(turns: Sequence[Turn], tokenizer: Any, *, tools: Tools = None, ask: bool = False) -> str:
    """The chat as text; `ask`: with the beginning of an answer behind it. Raises jinja2.TemplateError, whatever it is
    that the template stumbles over.
    """
    if not tokenizer.chat_template:
        raise bad_configuration(
            "NoChatTemplate",
            "the base model's tokenizer has no chat template; use an instruction-tuned model, or task CausalLM with "
            "format Text",
        )
    given = {**CHAT_TEMPLATE_OPTIONS, "tools": list(tools) if tools else None}
    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask, **given))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
    if _ESCAPED_CUT in text and _CUT in json.dumps([list(turns), given["tools"]], ensure_ascii=False, default=str):
        return text.replace(_ESCAPED_CUT, _CUT)  # a template that writes an object as Python does
    return text


def prompt_tokens(turns: Sequence[Turn], tokenizer: Any, *, tools: Tools = None) -> list[int]:
    """A chat that ends with a question, ready for the model to answer. Raises jinja2.TemplateError."""
    asked, described = as_text(turns, tokenizer), tools_as_text(tools, tokenizer)
    return tokens_of(render(asked, tokenizer, tools=described, ask=True), tokenizer)[0]


def tokens_of(text: str, tokenizer: Any, *, answers_at: Sequence[int] = ()) -> tuple[list[int], list[Offset]]:
    """The tokens of a rendered chat and where each is in the text.

    `answers_at`: where answers begin. No token reaches across such a place: the model writes the answer's first token
    when it has read the prompt's last.
    """
    ids, offsets = _tokens(text, tokenizer, cuts=())
    cuts = [
        place for place in answers_at if ids[: len(before := _tokens(text[:place], tokenizer, cuts=())[0])] != before
    ]
    return _tokens(text, tokenizer, cuts=cuts) if cuts else (ids, offsets)


def _tokens(text: str, tokenizer: Any, *, cuts: Sequence[int]) -> tuple[list[int], list[Offset]]:
    ids: list[int] = []
    offsets: list[Offset] = []
    for first, last in _parts(text, cuts):
        found = tokenizer(text[first:last], add_special_tokens=False, return_offsets_mapping=True)
        ids += found["input_ids"]
        offsets += [(start + first, end + first) for start, end in found["offset_mapping"]]
    return ids, offsets


def _parts(text: str, cuts: Sequence[int]) -> list[Offset]:
    """What lies between the marks, and between the cuts."""
    borders = sorted({(place, place) for place in cuts} | {found.span() for found in re.finditer(_CUT, text)})
    starts, ends = [0, *(end for _, end in borders)], [*(start for start, _ in borders), len(text)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a tokenizer knows as one token that is no text: its special tokens, and what else its chat template writes
    around messages. Many makers have the marks of their turns among the ordinary added tokens.
    """

    ids: frozenset[int]
    letters: re.Pattern[str]
    other_letters: bool
    """Whether other letters are read as a mark as well, once they are normalised (capitals, full-width signs)."""


def marks_of(tokenizer: Any) -> Marks:
    """The marks of a tokenizer and its template."""
    return _marks(tokenizer, str(tokenizer.chat_template))


def mark_in(text: str, tokenizer: Any) -> str | None:
    """The first mark that a text holds the letters of."""
    found = marks_of(tokenizer).letters.search(text)
    if found:
        return found[0]
    span = next(_read_as_marks(text, tokenizer), None)
    return text[slice(*span)].strip() if span else None


def _cut(value: Any, tokenizer: Any) -> Any:
    """A text, or what holds texts, with the letters of marks cut in two."""
    if isinstance(value, Mapping):
        return {_cut(name, tokenizer): _cut(each, tokenizer) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(each, tokenizer) for each in value]
    if not isinstance(value, str):
        return value
    text = marks_of(tokenizer).letters.sub(
        lambda found: found[0][0] + _CUT + found[0][1:], value.replace(_CUT, "\ufffd")
    )
    while spans := [(start, end) for start, end in _read_as_marks(text, tokenizer) if end - start > 1]:
        for start, _ in reversed(spans):
            text = text[: start + 1] + _CUT + text[start + 1 :]
    return text


def _read_as_marks(text: str, tokenizer: Any) -> Iterator[Offset]:
    """Where a text has other letters that are read as a mark."""
    marks = marks_of(tokenizer)
    if marks.other_letters:
        ids, offsets = _tokens(text, tokenizer, cuts=())
        yield from (offset for id_, offset in zip(ids, offsets, strict=True) if id_ in marks.ids)


@lru_cache(maxsize=4)
def _marks(tokenizer: Any, _template: str) -> Marks:
    added, written = tokenizer.added_tokens_decoder, _written_around_messages(tokenizer)
    found = {id_: token for id_, token in added.items() if token.special or id_ in written}
    letters = sorted(
        (each for each in {*map(str, found.values()), *tokenizer.all_special_tokens} if len(each) > 1), key=len
    )
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return Marks(
        ids=frozenset({*found, *tokenizer.all_special_ids}),
        letters=re.compile("|".join(re.escape(each) for each in reversed(letters)) or "(?!)"),
        other_letters=normalizer is not None and any(token.normalized for token in found.values()),
    )


def _written_around_messages(tokenizer: Any) -> set[int]:
    """The added tokens that the template writes in a plain chat. Those of thoughts are left out: templates look for
    them in what was written.
    """
    for turns in (_PLAIN, _PLAIN[1:]):
        try:
            text = render(turns, tokenizer, ask=True)
        except (TemplateError, StageError):
            continue
        ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
        added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if id_ in ids}
        return {
            id_
            for id_, letters in added.items()
            if letters.strip() and not letters.isalnum() and "think" not in letters
        }
    return set()
