"""A chat as the tokenizer's own template writes it, and its tokens: the same in training, evaluation and serving.

What a person wrote stays text: the letters of a special token inside a message (`<|im_end|>`) are cut in two before the
template runs, and the parts are tokenised by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateRuntimeError

from finetune_api.run import CHAT_TEMPLATE_OPTIONS
from finetune_trainer.process.errors import bad_configuration

Turn = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None
"""Descriptions of the tools that a chat may call."""
Offset = tuple[int, int]
"""First and last (not included) character of a token."""

_CUT = "\ufdd0"
"""Marks where the letters of a special token are cut: a code point that Unicode keeps free of characters for ever."""


def as_text(turns: Sequence[Turn], tokenizer: Any) -> list[dict[str, Any]]:
    """The turns, ready to be rendered: special tokens inside their contents are marked as text."""
    special = special_tokens(tokenizer)

    def marked(content: Any) -> Any:
        if not isinstance(content, str):
            return content
        return special.sub(lambda found: found[0][0] + _CUT + found[0][1:], content.replace(_CUT, "\ufffd"))

    return [{**turn, "content": marked(turn.get("content"))} for turn in turns]


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
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask, **given))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


def prompt_tokens(turns: Sequence[Turn], tokenizer: Any, *, tools: Tools = None) -> list[int]:
    """A chat that ends with a question, ready for the model to answer. Raises jinja2.TemplateError."""
    return tokens_of(render(as_text(turns, tokenizer), tokenizer, tools=tools, ask=True), tokenizer)[0]


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


@lru_cache(maxsize=4)
def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """The letters of the tokenizer's special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    letters = sorted((token for token in {*added, *tokenizer.all_special_tokens} if len(token) > 1), key=len)
    return re.compile("|".join(re.escape(token) for token in reversed(letters)) or "(?!)")


def special_letters(text: str, tokenizer: Any) -> str | None:
    """The first special token that a text holds the letters of."""
    found = special_tokens(tokenizer).search(text)
    return found[0] if found else None
