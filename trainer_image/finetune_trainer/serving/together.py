"""Answers decoded together: each forward pass gives a token of every answer under way.

A pass over a model's weights costs nearly the same for one row as for many. Rows end at the same column, as in the
evaluation's batches: shorter ones are filled up on the left, where attention ignores it. Whether a model answers alike
in company is tried on the model itself when it is loaded; one that does not is decoded in turns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from finetune_api.panics import as_exception
from finetune_trainer.models.model_files import vocabulary_of
from finetune_trainer.process import memory
from finetune_trainer.serving.generation import Answer, CausalSteps, InTurns, Piece, TextModel, parameters_of
from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.batching import stretched_beyond

log = logging.getLogger(__name__)
_ROOM = 64
"""Tokens, at least, for which there is room before everything is copied into larger tensors."""
_READ_ON_CPU, _READ_ON_GPU = 128, 1024
"""Tokens of prompts that are read between two steps of the others: enough to be worth a pass over the weights."""
_SAME = 1e-3
"""Logits that differ by less than this share of their spread are the same, as in the rehearsal; in bf16 rounding alone
gives a hundredth."""
_TRIED = (11, 25)
"""Tokens of the two texts that are tried together."""
_SHARE = 4
"""Keys and values may take the fourth part of the memory that is free when the model is loaded: to move them into
larger tensors takes as much again, and a forward pass wants memory too."""


class RowsLayer(DynamicLayer):
    """Keys and values of one layer, in tensors with room for more rows and tokens.

        store   (room for rows, heads, room for tokens, size)
        in use  [:rows, :, begin:end]          what the model sees as `keys` and `values`

    The library's own layer copies all that it holds for each token.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stores: list[torch.Tensor] = []
        self._used: list[torch.Tensor] = []
        """The stores' rows in use."""
        self._rows = self._begin = self._end = self._room = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add columns to all rows. Returns keys and values in use."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows = len(key_states)
            self._stores = [each.new_zeros((self._rows, each.shape[1], 0, each.shape[3])) for each in new]
        added = key_states.shape[2]
        if self._end + added > self._room:
            self._move(rows=self._rows, before=0, after=added)
        for used, states in zip(self._used, new, strict=True):
            used.narrow(2, self._end, added).copy_(states)
        self._end += added
        return self._show()

    def join(self, row: RowsLayer) -> None:
        """Add a row. Nothing of whoever had its columns before is left: attention ignores it, but 0 x NaN is NaN."""
        length = row._end - row._begin
        if self._rows == len(self._stores[0]) or length > self._end:
            self._move(rows=self._rows + 1, before=length, after=1)
        for store, other in zip(self._stores, row._stores, strict=True):
            store[self._rows, :, : self._end - length] = 0
            store[self._rows, :, self._end - length : self._end] = other[0, :, row._begin : row._end]
        self._begin = min(self._begin, self._end - length)
        self._use(self._rows + 1)

    def drop(self, index: int, *, width: int) -> None:
        """Take a row away: the last one takes its place. What is left is `width` tokens wide."""
        for store in self._stores:
            store[index] = store[self._rows - 1]
        self._begin = self._end - width
        self._use(self._rows - 1)

    def _use(self, rows: int) -> None:
        self._rows, self._used = rows, [store[:rows] for store in self._stores]
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = self._end - self._begin
        self.keys, self.values = keys, values = [used.narrow(2, self._begin, width) for used in self._used]
        return keys, values

    def _move(self, *, rows: int, before: int, after: int) -> None:
        """Into tensors for so many rows, and for so many columns before the end and after it."""
        width = self._end - self._begin
        end = max(before, width)
        self._room = end + after + max(_ROOM, end // 4)
        for index, store in enumerate(self._stores):
            moved = store.new_zeros((1 << (rows - 1).bit_length(), store.shape[1], self._room, store.shape[3]))
            moved[: self._rows, :, end - width : end] = store[: self._rows, :, self._begin : self._end]
            self._stores[index] = moved
        self._begin, self._end = end - width, end
        self._use(self._rows)


class Rows:
    """What is decoded together: the model's keys and values for each member's tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        known = parameters_of(model)
        # Logits of the prompt's other tokens are not needed: 4 bytes x tokens x vocabulary.
        self._options: dict[str, Any] = {"use_cache": True} | (
            {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        )
        self._takes_positions = "position_ids" in known
        self.members: list[Any] = []
        self._lengths: list[int] = []
        self._cache: Cache | None = None

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are held, those that fill rows up included."""
        return len(self._lengths) * max(self._lengths, default=0)

    @property
    def bytes_a_token(self) -> int:
        """Of keys and values. There must be a member."""
        assert self._cache is not None
        states = [each for layer in _filled(self._cache) for each in (layer.keys, layer.values) if each is not None]
        return sum(each.numel() * each.element_size() for each in states) // self.kept_tokens

    @staticmethod
    def new_cache() -> Cache:
        """For a text to be read alone."""
        return Cache(layer_class_to_replicate=RowsLayer)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: Cache) -> torch.Tensor:
        """Logits after the text in `cache` and these tokens, which are added to it. Shape (vocabulary,)."""
        tokens = torch.tensor([list(ids)], device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=tokens, past_key_values=cache, **self._options).logits[0, -1]
        return logits

    @torch.inference_mode()
    def join(self, member: Any, cache: Cache) -> None:
        """Decode what was read into `cache` together with the others."""
        if self._cache is None:
            self._cache = cache
        else:
            for layer, row in zip(_filled(self._cache), _filled(cache), strict=True):
                layer.join(row)
        self.members.append(member)
        self._lengths.append(cache.get_seq_length())

    @torch.inference_mode()
    def keep(self, members: Sequence[Any]) -> None:
        """Drop all others."""
        kept = {id(member) for member in members}
        for index in reversed(range(len(self.members))):
            if id(self.members[index]) not in kept:
                self._drop(index)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after a further token of each member, shape (members, vocabulary)."""
        width = max(self._lengths)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([[each] for each in tokens], device=self._model.device)}
        if min(self._lengths) < width:
            lengths = torch.tensor(self._lengths, device=self._model.device)[:, None]
            inputs["attention_mask"] = (torch.arange(width + 1, device=self._model.device) >= width - lengths).long()
            if self._takes_positions:
                inputs["position_ids"] = lengths
        logits: torch.Tensor = self._model(**inputs, past_key_values=self._cache, **self._options).logits[:, -1]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def _drop(self, index: int) -> None:
        for each in (self.members, self._lengths):
            each[index] = each[-1]
            each.pop()
        if not self.members or self._cache is None:
            self._cache = None
            return
        for layer in _filled(self._cache):
            layer.drop(index, width=max(self._lengths))


def _filled(cache: Cache) -> list[RowsLayer]:
    """Its layers, but for those of which some models leave keys and values to another one."""
    return [layer for layer in cache.layers if isinstance(layer, RowsLayer) and layer.is_initialized]


def may_join(length: int, *, others: Sequence[int], most: int | None) -> bool:
    """Whether a request of `length` tokens (prompt and longest answer) may begin beside others of such lengths.

    Rows that are decoded together are as wide as the longest of them, so that is what each may come to hold; together
    at most `most` tokens (None: no limit). Who is alone always may. Asked in the order of arrival, where who may not
    holds up those behind him: nobody is overtaken for ever.
    """
    return not others or most is None or (len(others) + 1) * max(length, *others) <= most


def shares(unread: Sequence[int], *, budget: int) -> list[int]:
    """How many of its unread tokens each prompt reads this round, in its order; `budget` tokens altogether.

    Who is cut short goes to the end of the queue, so short prompts are not held up by a long one for more than a round.
    """
    given = []
    for tokens in unread:
        given.append(min(tokens, budget))
        budget -= given[-1]
    return given


class Together:
    """Runs a text model on all answers under way at once, and on a part of the prompts that are still to be read."""

    def __init__(self, model: Any, *, most_tokens: int | None) -> None:
        self._rows = Rows(model)
        self._most_tokens = most_tokens
        self._budget = _READ_ON_CPU if model.device.type == "cpu" else _READ_ON_GPU
        self._reading: dict[Answer, Cache] = {}

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return self._rows.kept_tokens

    def admits(self, work: Answer, *, under_way: Sequence[Answer]) -> bool:
        """As many as there is memory for."""
        return may_join(work.longest, others=[answer.longest for answer in under_way], most=self._most_tokens)

    def round(self, under_way: Sequence[Answer]) -> Iterator[tuple[Answer, Piece | Exception]]:
        """Read some of the prompts; then a token of each answer that has begun."""
        self._rows.keep(under_way)
        new = [answer for answer in under_way if answer.unread and answer not in self._reading]
        old = [answer for answer in self._reading if answer in under_way]
        self._reading = {answer: self._reading.get(answer) or Rows.new_cache() for answer in [*old, *new]}
        queue = list(self._reading)
        for answer, share in zip(queue, shares([len(each.unread) for each in queue], budget=self._budget), strict=True):
            if share:
                yield from self._read(answer, tokens=share)
        if self._rows.members:
            logits = self._rows.step([answer.token for answer in self._rows.members])
            for answer, row in zip(list(self._rows.members), logits, strict=True):
                yield answer, _drawn(answer, row)

    def _read(self, answer: Answer, *, tokens: int) -> Iterator[tuple[Answer, Piece | Exception]]:
        cache = self._reading.pop(answer)
        try:
            logits = self._rows.read(answer.unread[:tokens], cache)
        except BaseException as error:
            yield answer, as_exception(error)
            return
        answer.unread = answer.unread[tokens:]
        if answer.unread:
            self._reading[answer] = cache  # behind the others
            return
        drawn = _drawn(answer, logits)
        if isinstance(drawn, Piece) and not drawn.last:
            self._rows.join(answer, cache)
        yield answer, drawn


def _drawn(answer: Answer, logits: torch.Tensor) -> Piece | Exception:
    try:
        return answer.push(logits)
    except BaseException as error:
        return as_exception(error)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of trying a model's answers in company."""

    alike: bool
    bytes_a_token: int = 0
    """Of keys and values."""


def tried(model: Any) -> Trial:
    """Whether a model gives texts that are decoded together, one joining later, the logits that each gets alone."""
    known = vocabulary_of(plain(model).config)  # not of its first layer, which an adapter may stand before
    if known is None:
        return Trial(alike=False)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, known, (length,), generator=generator).tolist() for length in _TRIED)
    rows = Rows(model)

    def begin(text: Sequence[int]) -> None:
        cache, half = rows.new_cache(), len(text) // 2
        rows.read(text[:half], cache)
        rows.read(text[half:], cache)
        rows.join(text, cache)

    try:
        begin(one[:-2])
        rows.step(one[-2:-1])
        begin(other[:-1])
        together = rows.step([one[-1], other[-1]])
        bytes_a_token = rows.bytes_a_token
    except BaseException as caught:
        error = as_exception(caught)
        log.info("the model cannot be run on several answers at once: %s: %s", type(error).__name__, error)
        return Trial(alike=False)
    alone = torch.stack([CausalSteps(model).begin(text) for text in (one, other)])
    tolerance = max(_SAME, 8 * torch.finfo(alone.dtype).eps) * float(alone.float().std())
    return Trial(alike=float((alone - together).abs().max()) <= tolerance, bytes_a_token=bytes_a_token)


def runner_of(model: TextModel) -> Together | InTurns:
    """How a text model decodes: together where it was tried, and answers as it does alone."""
    beyond = stretched_beyond(model.model)  # more tokens than it is worth to try
    stretches = beyond is not None and (model.context is None or model.context > beyond)
    trial = Trial(alike=False) if stretches or model.two_parts else tried(model.model)
    if not trial.alike:
        log.info("answers take turns: the model was not shown to answer in company as it does alone")
        return InTurns(model)
    device = model.model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()
    most = free // _SHARE // max(trial.bytes_a_token, 1)
    log.info("answers are decoded together; keys and values of up to %d tokens are kept", most)
    return Together(model.model, most_tokens=most)
