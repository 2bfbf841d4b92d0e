"""The tokens that all examples begin with are run through the model once.

Examples of one task mostly share their system message, often most of their tokens. A causal model's keys and values of
these depend on nothing that follows, so each batch starts from a copy of them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

_FEWEST_TOKENS = 8
"""A shorter prefix is not worth a copy."""


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """A prefix and the model's keys and values for it."""

    ids: tuple[int, ...]
    _cache: DynamicCache

    def cache(self, *, rows: int) -> DynamicCache:
        """Keys and values for a batch of so many rows, to be gone on from."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return cache


def shared_prefix(model: Any, sequences: Sequence[Sequence[int]]) -> SharedPrefix | None:
    """What all token sequences begin with, each keeping a token of its own; None where it is short, or where the model
    cannot go on from it.
    """
    if len(sequences) < 2 or not _attends_to_everything(model):
        return None
    ids = _common_start(sequences)[: min(len(sequence) for sequence in sequences) - 1]
    if len(ids) < _FEWEST_TOKENS:
        return None
    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        cache = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=True).past_key_values
    return SharedPrefix(ids=ids, _cache=cache) if type(cache) is DynamicCache else None


def _common_start(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    # In order, the first and the last differ the earliest.
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(token for token, _ in same)


def _attends_to_everything(model: Any) -> bool:
    """Windows of attention and recurrent states count places, padding between prefix and rest included."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and window is None
