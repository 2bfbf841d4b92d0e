"""PURE: what can be said of an answer without a reference: empty, refused, repeating itself, broken JSON.

Heuristics for shares of many answers, not verdicts on one: both arms are judged by the same rules, so a bias of the
rules cancels in the comparison.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from finetune_gateway.answers import Answer

Fault = Literal["empty", "refusal", "repetition", "broken_json", "cut_off"]

_REFUSAL = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry,|i apologi[sz]e|i (can(no|')t|am unable to|'m unable to|am not able to|won't)\b"
    r"|as an ai\b|unfortunately, i (can(no|')t|am unable))",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+", re.UNICODE)
_MINIMUM_REPEATED_WORDS, _LONGEST_PHRASE = 24, 8


def fault_of_answer(answer: Answer, *, json_expected: bool, limited: bool) -> Fault | None:
    """The first fault of an answer without a failure, or None. One that has no text (a tool call) has none."""
    if answer.finish == "length" and not limited:
        return "cut_off"  # by a limit of the version's, not of the client's
    return None if answer.text is None else fault_of(text=answer.text, json_expected=json_expected)


def fault_of(*, text: str, json_expected: bool = False) -> Fault | None:
    """The first fault of a generated answer, or None."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    if json_expected and not _is_json(stripped):
        return "broken_json"
    if _REFUSAL.match(stripped[:200]):
        return "refusal"
    if _repeats(stripped):
        return "repetition"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # one bracket over and over
        return False
    return True


def _repeats(text: str) -> bool:
    """Most of the answer is one phrase of one to eight words over and over, or one character."""
    words = _WORD.findall(text.lower())
    if len(words) < _MINIMUM_REPEATED_WORDS:
        longest_run = max((len(match.group()) for match in re.finditer(r"(\S)\1+", text)), default=0)
        return longest_run >= 32
    tail = words[:-201:-1]  # the last word first
    if len(set(tail[:_MINIMUM_REPEATED_WORDS])) > _LONGEST_PHRASE:
        return False
    return any(_has_period(tail, length=length) for length in range(1, _LONGEST_PHRASE + 1))


def _has_period(tail: list[str], *, length: int) -> bool:
    """Whether the first `length` words come again and again: in a long run, and in at least half of all places."""
    needed = max(_MINIMUM_REPEATED_WORDS, 4 * length)
    if tail[length:needed] != tail[: needed - length]:  # a run of this period equals itself, moved by the period
        return False
    matching = sum(1 for index, word in enumerate(tail) if word == tail[index % length])
    return matching >= 0.5 * len(tail)


def normalised(text: str) -> str:
    """A label without case and spacing."""
    return " ".join(text.lower().split())
