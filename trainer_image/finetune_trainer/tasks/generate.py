"""Answers by greedy decoding: the likeliest token each time, so that two models differ by their weights alone."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
from transformers import GenerationConfig

from finetune_trainer.tasks.adapters import plain
from finetune_trainer.tasks.batching import pad, run_in_batches, stretches
from finetune_trainer.tasks.shared_prefix import shared_prefix


def generate_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Set[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    begin: int | None = None,
    what: str = "generation",
) -> list[list[int]]:
    """Token ids of each answer, without the prompt, up to the first of `end_ids` (left out) or `max_new_tokens`.

    `prompts` are token ids, none of them empty; the model (`transformers.PreTrainedModel` or its PEFT wrapper) is in
    evaluation mode. Prompts are padded on the left (behind the prefix that all share), where attention ignores it, so
    answers do not depend on who else is in the batch. `begin`: with what the second part of a model of two begins; it
    writes the answer alone, and prompts are padded on the right, as the first part learned to read them.
    """
    decoding = _greedy(end_ids=end_ids, pad_id=pad_id, max_new_tokens=max_new_tokens, begin=begin)
    one_by_one = stretches(model, max(map(len, prompts), default=0) + max_new_tokens)
    batch_size = 1 if one_by_one else batch_size
    two_parts = begin is not None
    prefix = None if one_by_one or two_parts else shared_prefix(model, prompts)

    def run(batch: Sequence[Sequence[int]]) -> list[list[int]]:
        start = 0 if prefix is None else len(prefix.ids)
        tokens = pad([prompt[start:] for prompt in batch], value=pad_id, left=not two_parts)
        mask = pad([[1] * (len(prompt) - start) for prompt in batch], value=0, left=not two_parts)
        begun: dict[str, Any] = {}
        if prefix is not None:
            tokens = torch.cat([torch.tensor([prefix.ids]).expand(len(batch), -1), tokens], dim=1)
            mask = torch.cat([torch.ones(len(batch), start, dtype=torch.long), mask], dim=1)
            begun["past_key_values"] = prefix.cache(rows=len(batch))
        with OwnDecoding(model, decoding), torch.inference_mode():
            generated = model.generate(
                input_ids=tokens.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=decoding,
                **begun,
            )
        return [_until_end(answer, end_ids) for answer in generated[:, 1 if two_parts else tokens.shape[1] :].tolist()]

    return run_in_batches(prompts, length=len, batch_size=batch_size, run=run, what=what)


def _greedy(*, end_ids: Set[int], pad_id: int, max_new_tokens: int, begin: int | None) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=begin,
        use_cache=True,
    )


class OwnDecoding:
    """Hides the model's own generation settings: `generate` would take what we leave unset from there, such as a
    repetition penalty, and then two models would be decoded differently."""

    def __init__(self, model: Any, decoding: GenerationConfig) -> None:
        self._model = plain(model)
        self._decoding = decoding

    def __enter__(self) -> None:
        self._own = self._model.generation_config
        self._model.generation_config = self._decoding

    def __exit__(self, *_: object) -> None:
        self._model.generation_config = self._own


def _until_end(answer: list[int], end_ids: Set[int]) -> list[int]:
    return next((answer[:position] for position, token in enumerate(answer) if token in end_ids), answer)
