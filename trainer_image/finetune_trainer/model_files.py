"""A base model's files, looked at before anything is loaded: whole, in numbers that can be trained, with a fitting
tokenizer. What libraries say of such files is a traceback hours later, or nothing at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune_trainer.errors import StageError, bad_configuration, not_found

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_INDEX = ".safetensors.index.json"
_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file, wherever it is."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


def check_whole(uri: str, files: Sequence[ModelFile]) -> None:
    """Raises StageError (66) for a file that is not there, or not all of it."""
    names = {file.name for file in files}
    for file in files:
        with file.open() as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise not_found(
                    f"model.uri {uri}: {file.name} is a Git LFS pointer, not the file that it points to; run `git lfs"
                    " pull` where the model was cloned, or download the file",
                    reason="GitLfsPointer",
                )
        if file.name.endswith(_INDEX):
            with file.open() as stream:
                shards = set(json.loads(stream.read()).get("weight_map", {}).values())
            if missing := sorted(shards - names):
                raise not_found(
                    f"model.uri {uri} lacks {len(missing)} of the {len(shards)} files that {file.name} names,"
                    f" {missing[0]} first; download them",
                    reason="IncompleteModel",
                )
        if file.name.endswith(".safetensors"):
            _check_tensors(uri, file)


def check_config(uri: str, config: Mapping[str, Any]) -> None:
    """Raises StageError (78) for weights that were quantised: gradients cannot change them."""
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        raise _quantised(uri, str(quantised.get("quant_method", "an unnamed method")))


def check_tokenizer(uri: str, tokenizer: Any, *, vocabulary: int, texts: Iterable[str]) -> None:
    """Refuse tokens that the model has no numbers for, where they can occur: in the end of training on a GPU that is a
    broken device, not an error with a name.

    Some makers' tokenizers hold marks of pictures that their text models never learned: those are fine unless they
    occur. `texts` are the examples. Raises StageError (78).
    """
    beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= vocabulary}
    if not beyond:
        return
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    used = [*(token for token in beyond if token not in marks), *_special_among(tokenizer, beyond)]
    if not used:
        used = sorted({token for text in texts for token in beyond if token in text})
    if used:
        raise bad_configuration(
            "TokenizerTooLarge",
            f"model.uri {uri}: the tokenizer has {len(beyond)} tokens beyond the model's vocabulary of {vocabulary},"
            f" {used[0]!r} ({beyond[used[0]]}) among those that occur; use the tokenizer that belongs to the model, or"
            " enlarge the model (resize_token_embeddings) and save it again",
        )


def fp32_bytes(folder: Path) -> int:
    """How much memory the weights of a folder take in fp32."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = _header(stream, size=path.stat().st_size)
        total += sum(4 * math.prod(tensor["shape"]) for tensor in header.values())
    return total


def _special_among(tokenizer: Any, beyond: Mapping[str, int]) -> list[str]:
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    named = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token}
    return [token for token in beyond if token in named or token in template]


def _check_tensors(uri: str, file: ModelFile) -> None:
    try:
        with file.open() as stream:
            header = _header(stream, size=file.size)
    except ValueError as error:
        raise not_found(
            f"model.uri {uri}: {file.name} is damaged ({error}); download it again", reason="IncompleteModel"
        ) from error
    if any(name.endswith((".qweight", ".weight.absmax", ".weight_packed")) for name in header):
        raise _quantised(uri, "a method that its config.json does not name")


def _header(stream: BinaryIO, *, size: int) -> dict[str, Any]:
    """The tensors that a safetensors file says it has, by name. Raises ValueError where it has not all of them.

    The format: 8 bytes with the header's length, the header as JSON, the tensors at the offsets that it gives.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"{size} bytes, which do not begin as a safetensors file does")
    header = json.loads(stream.read(length))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size != expected:
        raise ValueError(f"it has {size} bytes instead of {expected}")
    return tensors


def _quantised(uri: str, method: str) -> StageError:
    return bad_configuration(
        "QuantisedModel",
        f"model.uri {uri} is quantised ({method}), and quantised weights cannot be trained; use the model that it was"
        " made from, in safetensors with float weights",
    )
