"""What Prepare points out: nothing that must be refused, and something that a person should know before training."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, DecimalException
from typing import Any

from finetune_trainer.data.dataset import Example
from finetune_trainer.data.fields import listed, short
from finetune_trainer.data.source_files import KINDS

_LONGEST = 600
_DIGITS = 28


def of_data(
    *,
    left_out: Mapping[str, Sequence[str]],
    carried: Mapping[str, Mapping[str, int]],
    labels: Iterable[str],
    held_out: Sequence[Example],
    unlearned: int,
    tokenizer: Any,
    max_length: int,
    context: int | None,
    max_new_tokens: int | None,
) -> list[str]:
    """All remarks, each a short text. `left_out`: files that are not read, by source; `carried`: fields that are not
    used, with the number of rows, by source; `labels`: of classes, or of what a split is stratified by; `unlearned`:
    training examples that are cut before their answer.
    `max_new_tokens` is None where no answers are compared.
    """
    found = [*_left_out(left_out), *_carried(carried), *_alike(labels)]
    if context is not None and max_length > context:
        found.append(
            f"training.maxLength {max_length} is more than the {context} tokens that the base model can read at once;"
            " no example is longer than that, and servers take none that is"
        )
    if unlearned:
        found.append(
            f"{unlearned} training examples have no answer within training.maxLength {max_length}: nothing is learned"
            " from them; raise it, or shorten what they ask"
        )
    if max_new_tokens is not None:
        found += _long_answers(held_out, tokenizer=tokenizer, limit=max_new_tokens)
    return [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in found]


def labels_alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that differ only in case, white space, Unicode form or number form."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        groups[_bare(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def _bare(label: str) -> str:
    text = "".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold()).split())
    with suppress(DecimalException):
        # A Decimal rounds what has more digits.
        return str(Decimal(text).normalize()) if len(text) < _DIGITS else text
    return text


def _alike(labels: Iterable[str]) -> Iterator[str]:
    groups = [" and ".join(map(short, group[:5])) for group in labels_alike(labels)]
    if groups:
        yield (
            "labels that differ only in case, white space, Unicode form or number form, and count as different ones:"
            f" {listed(groups)}; write them alike if they mean the same"
        )


def _left_out(left_out: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for source, names in left_out.items():
        if names:
            yield (
                f"files of source {source} that are not read ({len(names)}): {listed(map(short, names))}; rows are read"
                f" from {KINDS}"
            )


def _carried(carried: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for source, counts in carried.items():
        named = listed(f"{name} ({count} rows)" for name, count in counts.items())
        yield f"fields of source {source} that are not used: {named}"


def _long_answers(held_out: Sequence[Example], *, tokenizer: Any, limit: int) -> Iterator[str]:
    answers = [example.right_answer for example in held_out if example.right_answer is not None]
    if not answers:
        return
    lengths = [len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]
    beyond = sum(length > limit for length in lengths)
    if beyond:
        yield (
            f"{beyond} of {len(answers)} held-out answers have more tokens than"
            f" evaluation.generation.maxNewTokens {limit} (the longest {max(lengths)}): no model can give them whole;"
            " raise it, or hold out shorter ones"
        )
