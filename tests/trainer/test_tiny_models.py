"""That the tiny models can tell: a mask that is ignored, and a place that is wrong, show in what they answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.trainer import tiny_models

_SHOWS = 0.01
"""Of the spread of the logits: ten times what counts as the same."""


def answers(model: Any, ids: list[int], mask: list[int]) -> torch.Tensor:
    """The logits of the last token, or of the classes."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits
    return logits[0, -1].float() if logits.dim() == 3 else logits[0].float()


@pytest.mark.parametrize("name", [*tiny_models.DECODERS, *tiny_models.ENCODERS])
def test_an_ignored_mask_shows(name: str) -> None:
    tokenizer = tiny_models.tokenizer_of(name)
    torch.manual_seed(0)
    generates = name in tiny_models.DECODERS
    loader: Any = transformers.AutoModelForCausalLM if generates else transformers.AutoModelForSequenceClassification
    model = loader.from_config(tiny_models.configuration(name, tokenizer)).eval()
    ids = tokenizer("amber basil", add_special_tokens=not generates)["input_ids"][:6]
    padding = [model.config.pad_token_id or 0] * 5
    alone = answers(model, ids, [1] * len(ids))
    filled = (*padding, *ids) if generates else (*ids, *padding)
    ignored = answers(model, list(filled), [1] * len(filled))
    assert float((alone - ignored).abs().max()) > _SHOWS * float(alone.std())
