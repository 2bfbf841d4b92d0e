"""How much a model reads at once, and with what shorter texts are filled up: the one place that knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_trainer.models import model_files

_NO_LIMIT = 1 << 24
"""A tokenizer without a limit says 1e30."""


def context_in(folder: Path, tokenizer: Any, *, generates: bool) -> int | None:
    """`context_of` of the model in a folder, without reading its weights."""
    from transformers import AutoModel

    config = model_files.configuration(folder)
    try:
        with torch.device("meta"):
            skeleton: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    except Exception:  # an architecture that cannot be built without weights still has a configuration
        skeleton = nn.Module()
        skeleton.config = config
    with model_files.read_by_libraries("config.json"):
        return context_of(skeleton, tokenizer, generates=generates)


def context_of(model: Any, tokenizer: Any, *, generates: bool) -> int | None:
    """Tokens that a model can read (those that it writes, where it does, included); None: no limit known."""
    config = model.config.get_text_config()
    # Where the text model is a part, the tables are those of its pictures or sounds.
    tables = [
        # RoBERTa and its like begin to count behind the padding's own number.
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in model.named_modules()
        if config is model.config and isinstance(table, nn.Embedding) and "position" in name.rpartition(".")[2]
    ]
    written = tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None
    declared = _stretched(config, written=written)
    known = [*tables, *([] if declared is None else [declared])]
    # Relative positions (T5) have no end: what the tokenizer says there is how long its maker's texts were.
    relative = generates and not known and config.is_encoder_decoder
    if written is not None and (not generates or not known) and not relative:
        known.append(int(written))
    return min(known, default=None)


def _stretched(config: Any, *, written: int | None) -> int | None:
    """What the configuration declares; with rotary positions that are stretched, as far as they are. `dynamic` ones do
    not count: how far depends on the longest text that was read before.
    """
    declared = getattr(config, "max_position_embeddings", None)
    if not isinstance(declared, int) or declared < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings")
    if kind == "yarn" and original:
        return max(declared, int(original * factor))
    if kind == "linear" and written is not None:
        # Some makers stretched the declared number as well: no further than the tokenizer says.
        return max(declared, min(int(declared * factor), written))
    return declared


def usable_padding(folder: Path) -> dict[str, None]:
    """What to load a model with that names a padding token beyond its vocabulary: without one."""
    config = model_files.configuration(folder)
    size, token = model_files.vocabulary_of(config), config.get_text_config().pad_token_id
    return {} if token is None or size is None or 0 <= token < size else {"pad_token_id": None}


def set_padding(model: Any, tokenizer: Any) -> None:
    """Agree on the token that fills texts up: classifiers that decode look for the last token that is another one.

    A mark is taken where there is one, so that no text ends with it; what the model was made with goes first.
    """
    plain = model.config.get_text_config()
    size = model_files.vocabulary_of(model.config)
    named = (plain.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, plain.eos_token_id)
    usable = [each for each in named if isinstance(each, int) and each >= 0 and (size is None or each < size)]
    chosen = next((each for each in usable if each in tokenizer.added_tokens_decoder), next(iter(usable), 0))
    plain.pad_token_id = model.config.pad_token_id = chosen


def padding_of(model: Any) -> int:
    """The token to fill texts up with. Where a model has none agreed, any will do: it is masked."""
    token = model.config.get_text_config().pad_token_id
    return int(token) if isinstance(token, int) and token >= 0 else 0
