"""A base model's files, looked at before anything is loaded: whole, in numbers that can be trained, with a fitting
tokenizer. What libraries say of such files is a traceback hours later, or nothing at all.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune_api.panics import as_exception
from finetune_trainer.process.errors import StageError, bad_configuration, not_found
from finetune_trainer.tasks.answer_ends import named_ends

if TYPE_CHECKING:
    from transformers import GenerationConfig

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ALONE, _INDEX = "model.safetensors", ".safetensors.index.json"
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files that are read as a JSON object."""
_LONGEST_HEADER = 100 << 20
_LONGEST_REASON = 300
_PASSING = {errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
"""What says nothing of the files: a machine without memory, a share that does not answer."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file, wherever it is."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


@contextmanager
def read_by_libraries(what: str) -> Iterator[None]:
    """Around whatever reads a model's files: of a file that is not as it should be, libraries raise anything at all.

    Raises StageError (78) that names `what` was read; what is worth another attempt stays as it is.
    """
    try:
        yield
    except (StageError, MemoryError):
        raise
    except BaseException as caught:
        error = as_exception(caught)
        if _is_passing(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise bad_configuration(
            "UnsupportedModel",
            f"the base model's {what} cannot be loaded: {said}; download it again, or use another base model",
        ) from caught


def _is_passing(error: Exception) -> bool:
    """Of torch's errors of memory some have no class of their own."""
    causes = [error, *(each for each in (error.__cause__, error.__context__) if each is not None)]
    return any(
        type(each).__name__ == "OutOfMemoryError"
        or (isinstance(each, OSError) and each.errno in _PASSING)
        or "allocate memory" in str(each)
        for each in causes
    )


def configuration(folder: Path) -> Any:
    """config.json (`transformers.PretrainedConfig`). Raises StageError (78) where it cannot be read."""
    from transformers import AutoConfig

    with read_by_libraries("config.json"):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        config.get_text_config()
        return config


def declared_ends_in(folder: Path) -> GenerationConfig:
    """`answer_ends.declared_ends` of the model in a folder, without its weights. Raises StageError (78) for a setting
    with which the model could not be loaded.
    """
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationConfig.from_model_config(configuration(folder))
    with read_by_libraries("generation_config.json"):
        try:
            return _usable_settings(json.loads(path.read_bytes()))
        except Exception:
            wrong = _wrong_setting(json.loads(path.read_bytes()))
            if wrong is None:
                raise
    name, value = wrong
    raise bad_configuration(
        "UnsupportedModel",
        f"the base model's generation_config.json: {name}: {json.dumps(value)[:100]}"
        f" {_WHY_WRONG.get(name, 'is not what transformers takes there')}; correct or remove it in that file (of a"
        " model of the hub: in a copy of its folder). Nothing but what ends an answer is taken from there",
    )


_WHY_WRONG = {
    "num_return_sequences": "asks for several answers, which needs do_sample: true or as many num_beams",
    "max_new_tokens": "must be a number above 0",
    "early_stopping": 'must be true, false or "never"',
    "cache_implementation": "is no cache of this transformers",
    "eos_token_id": "must be the number of a token, or a list of them",
    "pad_token_id": "must be the number of a token",
}


def _usable_settings(document: Mapping[str, Any]) -> GenerationConfig:
    from transformers import GenerationConfig

    settings: GenerationConfig = GenerationConfig.from_dict(dict(document))
    settings.validate()
    named_ends(settings)
    return settings


def _wrong_setting(document: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The one without which the others can be used."""
    for name, value in document.items():
        with suppress(Exception):  # libraries raise anything at all
            _usable_settings({other: kept for other, kept in document.items() if other != name})
            return name, value
    return None


def vocabulary_of(config: Any) -> int | None:
    """How many tokens a model has numbers for; None where it reads characters, not tokens (CANINE)."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def check_whole(uri: str, files: Sequence[ModelFile]) -> None:
    """Raises StageError (66) for a file that is not there, or not all of it."""
    names = {file.name for file in files}
    for file in files:
        with file.open() as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise not_found(
                    f"model.uri: {uri}: {file.name} is a Git LFS pointer, not the file that it points to; run `git lfs"
                    " pull` where the model was cloned, or download the file",
                    reason="GitLfsPointer",
                )
        if file.name.endswith(_INDEX):
            shards = _shards(uri, file)
            if missing := sorted(shards - names):
                raise not_found(
                    f"model.uri: {uri} lacks {len(missing)} of the {len(shards)} files that {file.name} names,"
                    f" {missing[0]} first; download them",
                    reason="IncompleteModel",
                )
        elif file.name in _OBJECTS:
            _object(uri, file)
        elif file.name.endswith(".safetensors"):
            _check_tensors(uri, file)


def check_config(uri: str, config: Mapping[str, Any]) -> None:
    """Raises StageError (78) for weights that were quantised: gradients cannot change them."""
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise _quantised(uri, str(method or "an unnamed method"))


def check_tokenizer(uri: str, tokenizer: Any, *, vocabulary: int | None, texts: Iterable[str]) -> None:
    """Refuse tokens that the model has no numbers for, where they can occur: in the end of training on a GPU that is a
    broken device, not an error with a name.

    Some makers' tokenizers hold marks of pictures that their text models never learned: those are fine unless they
    occur. `texts` are the examples. Raises StageError (78).
    """
    if vocabulary is None:
        return
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
            f"model.uri: {uri}: the tokenizer has {len(beyond)} tokens beyond the model's vocabulary of {vocabulary},"
            f" {used[0]!r} ({beyond[used[0]]}) among those that occur; use the tokenizer that belongs to the model, or"
            " enlarge the model (resize_token_embeddings) and save it again",
        )


def weight_files(names: Collection[str], *, read: Callable[[str], bytes]) -> list[str]:
    """Of a folder's files those that are loaded: some makers put the same weights beside them, in another format."""
    if _ALONE in names:
        return [_ALONE]
    if f"model{_INDEX}" in names:
        return sorted(set(json.loads(read(f"model{_INDEX}"))["weight_map"].values()))
    return [name for name in names if name.endswith(".safetensors")]


def fp32_bytes(folder: Path) -> int:
    """How much memory the weights of a folder take in fp32."""
    total = 0
    names = {path.name for path in folder.iterdir()}
    for path in map(folder.joinpath, weight_files(names, read=lambda name: (folder / name).read_bytes())):
        with path.open("rb") as stream:
            header = _header(stream, size=path.stat().st_size)
        total += sum(4 * math.prod(tensor["shape"]) for tensor in header.values())
    return total


def _special_among(tokenizer: Any, beyond: Mapping[str, int]) -> list[str]:
    template = str(tokenizer.chat_template or "")  # some have several, by name
    # Not the one for padding: another is taken where the model has no number for it (`limits.set_padding`).
    named = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token}
    return [token for token in beyond if token in named or token in template]


def _object(uri: str, file: ModelFile) -> Mapping[str, Any]:
    try:
        with file.open() as stream:
            document = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise _damaged(uri, file, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _damaged(uri, file, "not a JSON object")
    return document


def _shards(uri: str, file: ModelFile) -> set[str]:
    """The files that an index names."""
    found = _object(uri, file).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise _damaged(uri, file, "it has no weight_map that names files")
    return set(found.values())


def _damaged(uri: str, file: ModelFile, why: str) -> StageError:
    return not_found(f"model.uri: {uri}: {file.name} is damaged ({why}); download it again", reason="IncompleteModel")


def _check_tensors(uri: str, file: ModelFile) -> None:
    try:
        with file.open() as stream:
            header = _header(stream, size=file.size)
    except ValueError as error:
        raise _damaged(uri, file, str(error)) from error
    if any(name.endswith((".qweight", ".weight.absmax", ".weight_packed")) for name in header):
        raise _quantised(uri, "a method that its config.json does not name")


def _header(stream: BinaryIO, *, size: int) -> dict[str, Any]:
    """The tensors that a safetensors file says it has, by name. Raises ValueError where it has not all of them.

    The format: 8 bytes with the header's length, the header as JSON, the tensors at the offsets that it gives.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"{size} bytes, which do not begin as a safetensors file does")
    try:
        header = json.loads(stream.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError("its header is not as that of a safetensors file") from error
    if size != expected:
        raise ValueError(f"it has {size} bytes instead of {expected}")
    return tensors


def _quantised(uri: str, method: str) -> StageError:
    return bad_configuration(
        "QuantisedModel",
        f"model.uri: {uri} is quantised ({method}), and quantised weights cannot be trained; use the model that it was"
        " made from, in safetensors with float weights",
    )
