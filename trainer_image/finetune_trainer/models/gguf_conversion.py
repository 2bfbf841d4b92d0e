"""A GGUF file as the safetensors folder that training needs.

Weights are unpacked once. Numbers that were quantised to 8 bits or less are stored as bfloat16, whose rounding is far
below theirs; float files keep their type. The tokenizer and the chat template come out of the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_trainer.models import licence
from finetune_trainer.process.errors import bad_configuration

# Part of a conversion's identity: a change of what is written makes old copies stale.
CONVERSION = "gguf-to-safetensors-2"


def declared_licence(file: Path) -> str | None:
    """`general.license` of a GGUF file. Raises StageError (78) when it is no GGUF file."""
    field = _reader(file).get_field("general.license")
    return licence.of_metadata(field.contents()) if field is not None else None


def convert(file: Path, *, into: Path) -> None:
    """Write model, tokenizer and chat template of a GGUF file into an empty folder.

    Raises StageError (78) for a file that transformers cannot unpack.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dtype = {"F32": torch.float32, "F16": torch.float16}.get(_weight_type(file), torch.bfloat16)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True), trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise bad_configuration(
            "UnsupportedModel", f"{file.name} cannot be converted: {error}; use the model's safetensors folder instead"
        ) from error
    _clear_quantisation_marks(model)
    model.save_pretrained(into, max_shard_size="4GB")
    tokenizer.save_pretrained(into)


def _clear_quantisation_marks(model: Any) -> None:
    """The weights are plain numbers now, but the marks that they once were packed make `save_pretrained` refuse."""
    model.hf_quantizer = None
    model.is_quantized = False
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def _weight_type(file: Path) -> str:
    """The type of most of the file's numbers, e.g. Q4_1 or F16."""
    counts: dict[str, int] = {}
    for tensor in _reader(file).tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return max(counts, key=lambda name: counts[name])


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(str(file))
    except (ValueError, IndexError, OSError) as error:
        raise bad_configuration("UnsupportedModel", f"{file.name} is not a readable GGUF file: {error}") from error
