"""The base model: found, pinned by digest, its licence checked, and loaded without running any of its code.

A folder with safetensors is used where it is. A model of the hub and a GGUF file are stored once under
`cache/bases/<identity>/` (training pods need neither the hub nor a conversion); their `ResolvedModel.materialized_uri`
says where.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from finetune_api.model_shape import architectures_of
from finetune_api.run import ModelOrder
from finetune_api.shared_fields import ResolvedModel, Task
from finetune_trainer.models import classes, gguf_conversion, licence, limits, model_files, quantisation
from finetune_trainer.models.model_files import ModelFile
from finetune_trainer.process.errors import StageError, bad_configuration, not_found
from finetune_trainer.store import complete, hub
from finetune_trainer.store.complete import FileDigest
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of

log = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[Literal["FP32", "BF16"], DType] = {"FP32": "float32", "BF16": "bfloat16"}
"""By precision."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(order: ModelOrder, *, storage: Storage) -> ResolvedModel:
    """Find the base model, store a loadable copy where it needs one, and check licence and task.

    Raises StageError: 66 where it does not exist, 78 where it may not or cannot be used.
    """
    storage.check_readable(order.uri)
    if order.trust_remote_code:
        raise bad_configuration(
            "NotSupported", f"model.uri: {order.uri}: code that comes with a model is never run; use one without it"
        )
    if order.uri.startswith("hf://"):
        base = _from_hub(order, storage)
    elif not storage.exists(order.uri):
        raise not_found(f"model.uri: {order.uri} does not exist; correct the URI, or put the model's folder there")
    else:
        gguf = _gguf_file(order.uri, storage)
        base = in_folder(order.uri, storage=storage) if gguf is None else _from_gguf(gguf, order.uri, storage)
    return accepted(base, order=order, storage=storage)


def accepted(base: ResolvedModel, *, order: ModelOrder, storage: Storage) -> ResolvedModel:
    """The base, if its licence and its task are those of the order. Raises StageError (78)."""
    licence.check(licence=base.licence, allowed=order.allowed_licences, uri=order.uri)
    _check_task(base, task=order.task, storage=storage)
    log.info("base model %s: %s, licence %s", order.uri, base.digest, base.licence or "unknown")
    return base


@contextmanager
def local_folder(base: ResolvedModel, *, storage: Storage, verify: bool = True) -> Iterator[Path]:
    """The base's folder as a local path, for `load_tokenizer` and `load_model`; a temporary copy of a remote one.

    `verify` compares its content with the digest once resolved: leave it on in one process per machine. Raises
    StageError: 66 where the folder is gone or torn, 78 where it was changed since it was resolved.
    """
    uri = base.loadable_uri
    if base.materialized_uri is not None and verify:
        with storage.finished_copy(uri) as copy:
            if copy is None:
                raise not_found(
                    f"the base model's copy {uri} is gone or damaged; run prepare again", reason="BaseModelTorn"
                )
            _check_unchanged(base, copy[1].extra["digest"])
            yield copy[0]
        return
    with storage.local_copy(uri) as folder:
        if verify:
            _check_unchanged(base, folder_digest(folder))
        yield folder


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer (`transformers.PreTrainedTokenizerBase`), with its chat template where it has one."""
    from transformers import AutoTokenizer

    with model_files.read_by_libraries("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        if not tokenizer.model_max_length > 0:
            raise ValueError(f"its model_max_length is {tokenizer.model_max_length}")
        if not isinstance(tokenizer.chat_template, str | dict | None):
            raise TypeError("its chat_template is no text")
        tokenizer("a")  # what post-processes tokens is looked at by the first text only
    # Lengths are ours to check, in words: it would foretell "indexing errors", once for each process.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A base model as it is before training."""

    model: Any
    """`transformers.PreTrainedModel`, on the CPU, in evaluation mode."""
    untrained: frozenset[str]
    """Parameters that the files lack, a classifier's head: random numbers, which only training makes useful."""


def precision_here(asked: Literal["Auto", "FP32", "BF16"]) -> Literal["FP32", "BF16"]:
    """What this machine computes in, to evaluate and to serve. Auto: BF16 on a GPU that has it, else FP32."""
    if asked == "Auto":
        return (
            "BF16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "FP32"
        )
    return asked


def load_model(folder: Path, *, task: Task, dtype: DType, labels: Sequence[str] | None = None) -> Any:
    """As `load_base`, the model alone."""
    return load_base(folder, task=task, dtype=dtype, labels=labels).model


def load_base(
    folder: Path,
    *,
    task: Task,
    dtype: DType,
    labels: Sequence[str] | None = None,
    bits: quantisation.Bits | None = None,
    device: torch.device | str = "cpu",
    packed: bool = False,
    weights: bool = True,
) -> LoadedBase:
    """The model in `dtype` on the CPU, in evaluation mode; with `bits` quantised, on `device`; with `packed` attending
    to each example of a packed row by itself, where its architecture can; without `weights` on torch's `meta` device.

    `labels` are a classifier's classes in the order of the outputs; its head is drawn from torch's generator where the
    base has none of that size, so seed it first. Raises StageError (78) when the folder lacks weights that the model
    needs: transformers alone would fill them with random numbers.
    """
    import transformers

    order = task_of(task)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "output_loading_info": True,
    }
    options |= order.options(labels or ()) | limits.usable_padding(folder)
    if not weights:
        options["device_map"] = {"": "meta"}
    if bits is not None:
        kept = _head(folder, task=task) if order.own_head else None
        options |= quantisation.options(bits, dtype=dtype, device=device, kept=kept)
    with model_files.read_by_libraries(f"files for task {task}"):
        model, report = getattr(transformers, order.loader).from_pretrained(str(folder), **options)
    if bits is not None:
        quantisation.check(model)
    _check_nothing_missing(model, report, own_head=order.own_head)
    if packed:
        from finetune_trainer.tasks import variable_length

        variable_length.use(model)
    if order.own_head:
        limits.set_padding(model, load_tokenizer(folder))
        classes.put_in_order(model, known=classes.known_classes(folder), labels=labels or ())
    return LoadedBase(model=model.eval(), untrained=frozenset(_missing(report)))


def skeleton(folder: Path, *, task: Task) -> Any:
    """The model's layers without their weights. Raises whatever an architecture's code does that needs those."""
    import transformers

    with torch.device("meta"):
        return getattr(transformers, task_of(task).loader).from_config(model_files.configuration(folder))


def _head(folder: Path, *, task: Task) -> list[str]:
    """The modules that a base may lack: random numbers that training is to change."""
    model = skeleton(folder, task=task)
    body = model.base_model_prefix
    return [*(name for name, _ in model.named_children() if name != body), f"{body}.pooler"]


# -- where it comes from ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A copy in the cache, and what it was made from."""

    uri: str
    digest: str
    licence: str | None


def _from_hub(order: ModelOrder, storage: Storage) -> ResolvedModel:
    model = hub.resolve(uri=order.uri, revision=order.revision)
    uri, identity = cache_entry(storage, f"hf://{model.repository}@{model.commit}")
    cached = read_cached(uri, identity, storage)
    if cached is None:
        with storage.staging_folder(uri) as folder:
            hub.download(model, into=folder)
            names = [path.name for path in folder.iterdir()]
            _check_weights(order.uri, names)
            model_files.check_whole(
                order.uri,
                [_local_file(folder / name) for name in _loadable(names)],
            )
            digest = folder_digest(folder)
            found = _licence_of({name: (folder / name).read_text(errors="replace") for name in _licence_files(names)})
            storage.publish(folder, to=uri, input_digest=identity, extra={"digest": digest, "licence": found})
        cached = Cached(uri=uri, digest=digest, licence=found)
    return ResolvedModel(
        uri=order.uri,
        revision=model.commit,
        digest=cached.digest,
        licence=cached.licence,
        materialized_uri=cached.uri,
    )


def _local_file(path: Path) -> ModelFile:
    def opened() -> BinaryIO:
        return path.open("rb")

    return ModelFile(name=path.name, size=path.stat().st_size, open=opened)


def in_folder(uri: str, *, storage: Storage) -> ResolvedModel:
    """A model as it lies in a folder of files. Raises StageError: 66 where some are missing, 78 for pickles."""
    sizes = {entry.path: entry.size for entry in storage.list_files(uri) if "/" not in entry.path}
    names = list(sizes)
    _check_weights(uri, names)
    model_files.check_whole(
        uri,
        [
            ModelFile(name=name, size=sizes[name], open=partial(storage.open, join(uri, name)))
            for name in _loadable(names)
        ],
    )
    texts = {name: storage.read_bytes(join(uri, name)).decode(errors="replace") for name in _licence_files(names)}
    return ResolvedModel(uri=uri, digest=_folder_digest(uri, storage), licence=_licence_of(texts))


def _from_gguf(file_uri: str, order_uri: str, storage: Storage) -> ResolvedModel:
    with storage.open(file_uri) as stream:
        digest = "sha256:" + complete.stream_digest(stream)[1]
    uri, identity = cache_entry(storage, f"{gguf_conversion.CONVERSION} {digest}")
    cached = read_cached(uri, identity, storage)
    if cached is None:
        log.info("converting %s to safetensors (once)", file_uri)
        with storage.local_copy(file_uri) as file, storage.staging_folder(uri) as folder:
            found = gguf_conversion.declared_licence(file) or _licence_beside(file_uri, storage)
            gguf_conversion.convert(file, into=folder)
            if found is not None:
                (folder / "README.md").write_text(f"---\nlicense: {found}\n---\n")
            storage.publish(folder, to=uri, input_digest=identity, extra={"digest": digest, "licence": found})
        cached = Cached(uri=uri, digest=digest, licence=found)
    return ResolvedModel(uri=order_uri, digest=cached.digest, licence=cached.licence, materialized_uri=cached.uri)


def _gguf_file(uri: str, storage: Storage) -> str | None:
    """The GGUF file that a URI means: itself, or the only model in the folder."""
    if not storage.is_folder(uri):
        if uri.endswith(".gguf"):
            return uri
        raise not_found(f"model.uri: {uri} is neither a folder nor a .gguf file", reason="UnsupportedModel")
    names = [entry.path for entry in storage.list_files(uri) if "/" not in entry.path]
    files = [name for name in names if name.endswith(".gguf")]
    if not files or any(name.endswith(".safetensors") for name in names):
        return None
    if len(files) > 1:
        raise bad_configuration(
            "AmbiguousModel", f"model.uri: {uri} holds {len(files)} GGUF files ({', '.join(files)}); name one of them"
        )
    return join(uri, files[0])


def cache_entry(storage: Storage, identity: str) -> tuple[str, str]:
    """The URI of a copy in the cache by what it is made of, and its input digest."""
    key = hashlib.sha256(identity.encode()).hexdigest()
    return join(storage.locations.cache, "bases", key), f"sha256:{key}"


def read_cached(uri: str, identity: str, storage: Storage) -> Cached | None:
    """The copy, where it is whole."""
    manifest = storage.read_complete(uri)
    if manifest is None or manifest.input_digest != identity:
        return None
    return Cached(uri=uri, digest=manifest.extra["digest"], licence=manifest.extra["licence"])


# -- what is in it ----------------------------------------------------------------------------------------------------


def _loadable(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in hub.LOADABLE))


def _folder_digest(uri: str, storage: Storage) -> str:
    """Over the files that loading can read; a README's or a notebook's neighbours do not change a model."""
    names = _loadable([entry.path for entry in storage.list_files(uri) if "/" not in entry.path])
    digests = []
    for name in names:
        with storage.open(join(uri, name)) as stream:
            size, sha256 = complete.stream_digest(stream)
        digests.append(FileDigest(path=name, size=size, sha256=sha256))
    return complete.tree_digest(digests)


def folder_digest(folder: Path) -> str:
    """Of a local folder's model."""
    return complete.tree_digest(_local_digests(folder))


def _local_digests(folder: Path) -> list[FileDigest]:
    names = _loadable([path.name for path in folder.iterdir() if path.is_file()])
    return [complete.file_digest(folder / name, folder=folder) for name in names]


def _check_weights(uri: str, names: Sequence[str]) -> None:
    if "adapter_config.json" in names:
        # Beside a model it would be loaded onto it, and from wherever it says that its base is.
        what = (
            "holds an adapter beside a model: merge or remove it"
            if "config.json" in names
            else ("is an adapter; name the model that it adapts")
        )
        raise bad_configuration("UnsupportedModel", f"model.uri: {uri} {what}")
    if "config.json" not in names:
        raise not_found(f"model.uri: {uri} has no config.json, so it is not a model folder; correct the URI")
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in _PICKLES):
        raise bad_configuration(
            "UnsafeWeights",
            f"model.uri: {uri} has its weights as pickle files only, which can run code when read and are never loaded;"
            " convert them to safetensors",
        )
    raise not_found(f"model.uri: {uri} has no *.safetensors file")


def _licence_files(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if name == "README.md" or name.upper().startswith(("LICENSE", "LICENCE")))


def _licence_of(texts: dict[str, str]) -> str | None:
    readme = texts.pop("README.md", None)
    declared = licence.of_readme(readme) if readme is not None else None
    return declared or next((found for text in texts.values() if (found := licence.of_text(text))), None)


def _licence_beside(file_uri: str, storage: Storage) -> str | None:
    folder = file_uri.rpartition("/")[0]
    try:
        names = _licence_files([entry.path for entry in storage.list_files(folder)])
        return _licence_of({name: storage.read_bytes(join(folder, name)).decode(errors="replace") for name in names})
    except StageError:
        # The file itself may be an allowed root; its folder then is not ours to read.
        return None


def _check_unchanged(base: ResolvedModel, found: str) -> None:
    if found != base.digest:
        raise bad_configuration(
            "BaseModelChanged",
            f"{base.loadable_uri} was changed since the run resolved it ({found} instead of {base.digest}); start a new"
            " run",
        )


def _check_task(base: ResolvedModel, *, task: Task, storage: Storage) -> None:
    """Refuse early what could only fail after the data was prepared and a pod with GPUs was waited for."""
    from transformers import AutoConfig

    config = json.loads(storage.read_bytes(join(base.loadable_uri, "config.json")))
    model_files.check_config(base.uri, config)
    kind, architectures = config.get("model_type"), architectures_of(config.get("architectures"))
    try:
        AutoConfig.for_model(kind)
    except (ValueError, KeyError, TypeError) as error:
        raise bad_configuration(
            "UnsupportedModel", f"model.uri: {base.uri}: this trainer's transformers does not know model type {kind!r}"
        ) from error
    problem = task_of(task).problem_of(kind, architectures)
    if problem is not None:
        raise bad_configuration("UnsupportedModel", f"model.uri: {base.uri}: {problem}")


def _check_nothing_missing(model: Any, report: dict[str, Any], *, own_head: bool) -> None:
    body = f"{model.base_model_prefix}."
    # The head (and BERT's pooler, which only classifiers read) is what a classifier may have to learn from nothing.
    missing = [name for name in _missing(report) if not own_head or (name.startswith(body) and ".pooler." not in name)]
    if missing:
        raise bad_configuration(
            "IncompleteModel",
            f"the base model's folder lacks {len(missing)} tensors that it needs, {missing[0]} first; complete it",
        )


def _missing(report: dict[str, Any]) -> list[str]:
    """What transformers has filled with random numbers."""
    return [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
