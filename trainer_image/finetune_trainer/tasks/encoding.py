"""Examples as token ids, and which of them the model has to learn.

A chat is rendered by the tokenizer's own template; only the assistant's answers (with the token that ends each) are
targets. The answers' place in the rendered text is found by rendering the chat up to each answer, so no template needs
marks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError

from finetune_trainer.data.dataset import Example, Message
from finetune_trainer.data.dedupe import content_id
from finetune_trainer.data.rows import Content
from finetune_trainer.process.errors import StageError, bad_configuration
from finetune_trainer.tasks.chat_template import (
    Tools,
    as_text,
    marks_of,
    prompt_tokens,
    render,
    tokens_of,
    tools_as_text,
)
from finetune_trainer.tasks.packed_rows import Lengths

IGNORED = -100
"""The label of a position that is no target (torch.nn.functional.cross_entropy's ignore_index)."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One example. `targets[i]` says that token i is to be predicted (from those before it); the first never is."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    label: int | None = None
    """The class, for a classifier."""
    truncated: bool = False

    @property
    def target_count(self) -> int:
        """How many losses this example contributes."""
        return 1 if self.label is not None else sum(self.targets)


def text_tokens(text: str, *, tokenizer: Any, max_length: int | None) -> tuple[list[int], bool]:
    """A text for a classifier, and whether its end was cut off. The letters of special tokens in it stay text."""
    ids = list(tokenizer(text, split_special_tokens=True)["input_ids"])
    if max_length is None or len(ids) <= max_length:
        return ids, False
    cut = tokenizer(text, split_special_tokens=True, truncation=True, max_length=max_length)["input_ids"]
    return list(cut), True


def encode_chat(messages: Sequence[Message], *, tokenizer: Any, max_length: int, tools: Tools = None) -> Encoded:
    """A chat: the assistant's answers are the targets, but for those that are masked."""
    text, spans = _rendered(messages, tools, tokenizer)
    ids, offsets = tokens_of(text, tokenizer, answers_at=[first for first, _ in spans])
    targets = [
        index > 0 and any(_covers(span, start, end) for span in spans) for index, (start, end) in enumerate(offsets)
    ]
    last = max((index for index, target in enumerate(targets) if target), default=None)
    if last is not None and tokenizer.eos_token_id is not None and not _is_mark(ids[last], tokenizer):
        # A template that ends the answer with nothing, or with white space: the model would never learn to stop.
        ids = [*ids[: last + 1], tokenizer.eos_token_id]
        targets = [*targets[: last + 1], True]
    return cut(ids, targets, max_length)


def by_answers(example: Example, *, tokenizer: Any) -> list[Example]:
    """The example; or one for each answer that is learned, with the turns before it as a server will write them.

    The latter where the chat template writes turns otherwise once a chat goes on, as those that leave thoughts out of
    earlier answers do: in the whole chat, what comes before an answer is not what the model will be asked with.
    """
    messages = example.messages or ()
    learned = [index for index, message in enumerate(messages) if message.role == "assistant" and message.learned]
    if len(learned) < 2 or _goes_on_alike(example, tokenizer):
        return [example]
    masked = [replace(message, learned=message.role != "assistant") for message in messages]
    found = []
    for index in learned:
        upto = (*masked[:index], messages[index])
        found.append(replace(example, id=content_id(Content(messages=upto, tools=example.tools)), messages=upto))
    return found


def _goes_on_alike(example: Example, tokenizer: Any) -> bool:
    messages = example.messages or ()
    try:
        _rendered(messages, example.tools, tokenizer)
    except StageError:
        return False
    except TemplateError:
        return True  # it is refused whole, elsewhere
    return True


def prompt_ids(messages: Sequence[Message], *, tokenizer: Any, tools: Tools = None) -> list[int]:
    """The chat up to its last answer, ready for the model to answer."""
    return prompt_tokens([message.to_dict() for message in messages[:-1]], tokenizer, tools=tools)


def last_answer(messages: Sequence[Message], *, tokenizer: Any, tools: Tools = None) -> list[int]:
    """The tokens of the last learned answer as the template writes it, without its end."""
    text, spans = _rendered(messages, tools, tokenizer)
    ids = tokens_of(text[slice(*spans[-1])], tokenizer)[0]
    return ids[:-1] if ids and _is_mark(ids[-1], tokenizer) else ids


def _is_mark(token: int, tokenizer: Any) -> bool:
    """Whether it is a mark and no text, as some added tokens are (`</table>`): behind an answer, what ends it."""
    return token in marks_of(tokenizer).ids


def _rendered(messages: Sequence[Message], tools: Tools, tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The whole chat as text, and where (first and last character) each learned answer with its end is in it."""
    turns, tools = as_text([message.to_dict() for message in messages], tokenizer), tools_as_text(tools, tokenizer)
    text = render(turns, tokenizer, tools=tools)
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant" or not message.learned:
            continue
        before = render(turns[:index], tokenizer, tools=tools, ask=True)
        after = render(turns[: index + 1], tokenizer, tools=tools)
        if not text.startswith(before) or not text.startswith(after.rstrip()):
            raise bad_configuration(
                "UnsupportedChatTemplate",
                "the base model's chat template renders the beginning of a chat differently once it goes on, so the "
                "answers cannot be told from the rest; split conversations of several turns into one example each",
            )
        spans.append((len(before), len(after.rstrip())))
    return text, spans


def _covers(span: tuple[int, int], start: int, end: int) -> bool:
    """Whether a token is of a span. Some tokenizers leave blanks out of the offsets, so that indents are empty."""
    first, last = span
    return first < end <= last if start == end else start < last and end > first


def cut(ids: Sequence[int], targets: Sequence[bool], max_length: int) -> Encoded:
    """An example of at most `max_length` tokens."""
    return Encoded(ids=tuple(ids[:max_length]), targets=tuple(targets[:max_length]), truncated=len(ids) > max_length)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one forward pass; B rows of T tokens."""

    input_ids: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor | None  # (B, T); None for packed rows
    position_ids: torch.Tensor | None  # (B, T), restarting with each packed example; None for padded rows
    labels: torch.Tensor  # (B, T) next-token labels with IGNORED elsewhere, or (B,) classes
    real_tokens: int
    """Tokens that are not padding."""
    lengths: Lengths | None = None
    """Of the examples of a packed row."""

    @property
    def inputs(self) -> dict[str, torch.Tensor | None]:
        """What a model is called with."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.position_ids is None else inputs | {"position_ids": self.position_ids}

    @cached_property
    def places(self) -> torch.Tensor:
        """Of the targets, in `labels` flattened; shape (targets,)."""
        return torch.nonzero(self.labels.flatten() != IGNORED).flatten()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, which nothing waits for: `places`, too, is found before."""
        if device.type != "cuda":
            return self
        known: dict[str, Any] = {**vars(self), "places": self.places}
        moved: dict[str, Any] = {
            name: value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in known.items()
        }
        moved["lengths"] = self.lengths and self.lengths.to(device)
        places = moved.pop("places")
        batch = Batch(**moved)
        vars(batch)["places"] = places  # where cached_property looks first
        return batch


def padded_batch(examples: Sequence[Encoded], *, pad_id: int) -> Batch:
    """Rows padded on the right to the longest, with next-token labels."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(_next_labels(example))
    real = sum(len(example.ids) for example in examples)
    return Batch(input_ids=ids, attention_mask=mask, position_ids=None, labels=labels, real_tokens=real)


def packed_batch(examples: Sequence[Encoded]) -> Batch:
    """One row of several examples that do not see each other.

    transformers isolates them by position ids that restart, and only where there is no attention mask and no cache;
    where `variable_length.use` has prepared the model, each is asked by itself.
    """
    ids = [token for example in examples for token in example.ids]
    positions = [position for example in examples for position in range(len(example.ids))]
    labels = [label for example in examples for label in _next_labels(example)]
    return Batch(
        input_ids=torch.tensor([ids]),
        attention_mask=None,
        position_ids=torch.tensor([positions]),
        labels=torch.tensor([labels]),
        real_tokens=len(ids),
        lengths=Lengths.of([len(example.ids) for example in examples]),
    )


def pack(lengths: Sequence[int], *, max_length: int) -> list[list[int]]:
    """Distribute examples (by their place) over rows of at most `max_length` tokens, longest first into the first row
    with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True):
        index = next((index for index, left in enumerate(room) if left >= lengths[place]), None)
        if index is None:
            rows.append([])
            room.append(max_length)
            index = len(rows) - 1
        rows[index].append(place)
        room[index] -= lengths[place]
    return rows


def _next_labels(example: Encoded) -> list[int]:
    """For each position the token that follows, where that is a target."""
    following = [
        token if target else IGNORED for token, target in zip(example.ids[1:], example.targets[1:], strict=True)
    ]
    return [*following, IGNORED]
