"""How likely a model finds what is right: the tokens of an answer, or the class of a text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.batching import pad, run_in_batches, stretches
from finetune_trainer.tasks.encoding import Encoded
from finetune_trainer.tasks.shared_prefix import SharedPrefix, shared_prefix

LOGIT_BYTES = 1 << 30
"""Logits computed at once may take this much memory: 4 bytes x tokens x vocabulary, 4 GB for 8192 tokens of Llama 3."""


def token_likelihoods(
    model: Any, examples: Sequence[Encoded], *, batch_size: int, what: str = "loss"
) -> list[tuple[float, int]]:
    """For each example the summed negative log likelihood of its targets in nats, and their number.

    Padded on the right, where a causal model cannot see it. Logits are computed only where targets are.
    """
    vocabulary = plain(model).config.get_text_config().vocab_size
    one_by_one = stretches(model, max((len(example.ids) for example in examples), default=0))
    batch_size = 1 if one_by_one else batch_size
    prefix = None if one_by_one else shared_prefix(model, [_before_targets(example) for example in examples])

    def run(batch: Sequence[Encoded]) -> list[tuple[float, int]]:
        start, end = _span(batch)
        rows = max(1, LOGIT_BYTES // (4 * vocabulary * max(1, end - start)))
        found: list[tuple[float, int]] = []
        for first in range(0, len(batch), rows):
            found += _likelihoods_of(model, batch[first : first + rows], prefix=prefix)
        return found

    return run_in_batches(examples, length=lambda example: len(example.ids), batch_size=batch_size, run=run, what=what)


def class_log_probabilities(
    model: Any, texts: Sequence[Sequence[int]], *, pad_id: int, batch_size: int, what: str = "classification"
) -> list[list[float]]:
    """For each text (token ids, none empty) the log probability of each class, in the order of the outputs."""
    batch_size = 1 if stretches(model, max(map(len, texts), default=0)) else batch_size

    def run(batch: Sequence[Sequence[int]]) -> list[list[float]]:
        tokens = pad(batch, value=pad_id).to(model.device)
        mask = pad([[1] * len(text) for text in batch], value=0).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, attention_mask=mask).logits
        rows: list[list[float]] = logits.float().log_softmax(dim=-1).tolist()
        return rows

    return run_in_batches(texts, length=len, batch_size=batch_size, run=run, what=what)


def _span(batch: Sequence[Encoded]) -> tuple[int, int]:
    """First and last (not included) position whose logits are needed: the one before a target predicts it."""
    first = min((example.targets.index(True) for example in batch if any(example.targets)), default=0)
    return first - 1, max(len(example.ids) for example in batch) - 1


def _before_targets(example: Encoded) -> Sequence[int]:
    """The tokens up to the first target (to the end where there is none): their logits but the last are not needed."""
    return example.ids[: example.targets.index(True)] if any(example.targets) else example.ids


def _likelihoods_of(model: Any, batch: Sequence[Encoded], *, prefix: SharedPrefix | None) -> list[tuple[float, int]]:
    start, end = _span(batch)
    if start < 0:
        return [(0.0, 0) for _ in batch]
    tokens = pad([example.ids for example in batch], value=0).to(model.device)
    mask = pad([[1] * len(example.ids) for example in batch], value=0).to(model.device)
    is_target = pad([[int(target) for target in example.targets] for example in batch], value=0).to(model.device)
    with torch.inference_mode():
        logits = _logits(model, tokens, mask, start=start, end=end, prefix=prefix)
        expected = tokens[:, start + 1 :]
        # (rows, positions): loss of each token, zero where it is no target.
        losses = cross_entropy(logits.float().flatten(0, 1), expected.flatten(), reduction="none").view_as(expected)
        wanted = is_target[:, start + 1 :]
        # where, not a product: an infinite loss beside a target must not become nan.
        sums = torch.where(wanted.bool(), losses, 0.0).double().sum(dim=1)
    return [(float(nll), int(count)) for nll, count in zip(sums.tolist(), wanted.sum(dim=1).tolist(), strict=True)]


def _logits(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, *, start: int, end: int, prefix: SharedPrefix | None
) -> torch.Tensor:
    """Logits of the positions from `start` to before `end`, shape (rows, end - start, vocabulary)."""
    behind = 0 if prefix is None else len(prefix.ids)
    options: dict[str, Any] = {"use_cache": False}
    if prefix is not None:
        options = {"use_cache": True, "past_key_values": prefix.cache(rows=tokens.shape[0])}
    positions = torch.arange(start - behind, end - behind)  # on no GPU: the last states may be on another than tokens
    if "logits_to_keep" in inspect.signature(plain(model).forward).parameters:
        options["logits_to_keep"] = positions
    logits: torch.Tensor = model(input_ids=tokens[:, behind:], attention_mask=mask, **options).logits
    return logits if "logits_to_keep" in options else logits[:, positions]
