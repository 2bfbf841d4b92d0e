"""The version's files, brought here and verified, and the model made from them.

What is on this machine already (file://, pvc://) is verified and used where it is. What is remote is copied once into
`cache/served/<digest>`: verified in a staging folder first, then renamed into place, so that a folder of that name is
whole, also when several servers share the cache and start together.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_api.run import GENERATION_FOLDER, MIDDLEWARE, MIDDLEWARE_FOLDER, ServeOrder
from finetune_trainer.data.held_out_probes import HeldOutProbe, read_probes
from finetune_trainer.models import base_model, model_files, saved_model
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.serving import vllm_middleware
from finetune_trainer.store.locations import REMOTE_SCHEMES, join
from finetune_trainer.store.storage import Storage, sync_tree
from finetune_trainer.tasks.adapters import merged
from finetune_trainer.tasks.answer_ends import answer_ends

log = logging.getLogger(__name__)
_FOLDER = "served"


@dataclass(frozen=True, kw_only=True)
class Files:
    """Verified folders of this machine."""

    model: Path
    base: Path | None
    """The base model's, where the artifact is an adapter."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that is ready to be asked."""

    model: Any
    tokenizer: Any
    probes: tuple[HeldOutProbe, ...]
    seconds: float
    """How long fetching, verifying and loading took."""


def load(order: ServeOrder, *, storage: Storage) -> Loaded:
    """Fetch, verify and load what an order names, on a GPU where there is one.

    Raises StageError: 66 where something is gone or torn, 78 where it is not what was recorded or cannot be loaded.
    """
    began = time.monotonic()
    dtype = base_model.DTYPES[base_model.precision_here(order.precision)]
    with verified_files(order, storage=storage) as files:
        model = saved_model.load_folder(
            files.model,
            base=files.base,
            format=order.artifact.format,
            task=order.task,
            labels=order.labels,
            dtype=dtype,
        )
        if dtype == "float32":
            # A quarter more tokens per second on a CPU. In bf16 it would round the adapter's changes.
            model = merged(model)
        model.requires_grad_(requires_grad=False)
        if torch.cuda.is_available():
            model.to("cuda")
        tokenizer = base_model.load_tokenizer(files.model)
        probes = read_probes(files.model)
    seconds = time.monotonic() - began
    log.info("%s (%s) loaded in %.1f s, %d probes", order.version.name, order.artifact.digest, seconds, len(probes))
    return Loaded(model=model, tokenizer=tokenizer, probes=probes, seconds=seconds)


@contextmanager
def verified_files(order: ServeOrder, *, storage: Storage) -> Iterator[Files]:
    """The artifact's folder, and its base model's where it needs one."""
    artifact = order.artifact
    uri = _local_uri(
        artifact.uri,
        digest=artifact.digest,
        storage=storage,
        verify=lambda at: saved_model.verify_artifact(artifact, at=at, storage=storage),
    )
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(storage.local_copy(uri))
        base = stack.enter_context(_base_folder(order, storage=storage)) if artifact.format == "Adapter" else None
        yield Files(model=model, base=base)


def link_files(order: ServeOrder, *, storage: Storage) -> Path:
    """Verify what an order names and link it as `model` and `base` into the server's own folder (`locations.run`), with
    what ends an answer, and the probes, beside it.

    There another program (vLLM) finds it whatever the URIs are. Returns the folder.

    Raises StageError as `load` does.
    """
    folder = storage.local_path(order.locations.run)
    if folder is None:
        raise bad_configuration("BadRunFile", f"locations.run {order.locations.run} is not a folder of this machine")
    with verified_files(order, storage=storage) as files:
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in (("model", files.model), ("base", files.base)):
            if target is not None:
                _link(folder / name, target)
        _write_ends(files, into=folder / GENERATION_FOLDER)
        _write_middleware(files, into=folder / MIDDLEWARE_FOLDER)
    return folder


def _write_ends(files: Files, *, into: Path) -> None:
    """What ends an answer, as the evaluation took it: vLLM alone would not know what only the chat template writes."""
    ends = answer_ends(base_model.load_tokenizer(files.model), model_files.declared_ends_in(files.base or files.model))
    into.mkdir(exist_ok=True)
    (into / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends)}))


def _write_middleware(files: Files, *, into: Path) -> None:
    """The probes, and what hands them out in vLLM's server."""
    into.mkdir(exist_ok=True)
    probes = [probe.to_dict() for probe in read_probes(files.model)]
    (into / vllm_middleware.PROBES_FILE).write_text(json.dumps({"probes": probes, "total": len(probes)}))
    module = MIDDLEWARE.partition(".")[0]
    (into / f"{module}.py").write_text(Path(vllm_middleware.__file__).read_text())


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(target)
    temporary.replace(link)


@contextmanager
def _base_folder(order: ServeOrder, *, storage: Storage) -> Iterator[Path]:
    base = order.base

    def verify(uri: str) -> None:
        where = {"materialized_uri" if base.materialized_uri is not None else "uri": uri}
        with base_model.local_folder(base.model_copy(update=where), storage=storage):
            pass

    uri = _local_uri(base.loadable_uri, digest=base.digest, storage=storage, verify=verify)
    with storage.local_copy(uri) as folder:
        yield folder


def _local_uri(uri: str, *, digest: str, storage: Storage, verify: Callable[[str], None]) -> str:
    """Where the folder is on this machine. `verify` raises for a URI whose content is not what was recorded."""
    if not uri.startswith(tuple(f"{scheme}://" for scheme in REMOTE_SCHEMES)):
        verify(uri)
        return uri
    target = join(storage.locations.cache, _FOLDER, digest.removeprefix("sha256:"))
    path = storage.local_path(target)
    if path is None:
        raise bad_configuration(
            "BadRunFile",
            f"locations.cache {storage.locations.cache} is not a folder of this machine; a server needs one",
        )
    if path.is_dir():
        log.info("%s is in the cache", uri)
        return target
    with storage.staging_folder(target) as staging:
        staging.rmdir()  # `download` makes it
        storage.download(uri, into=staging)
        verify(join(storage.locations.cache, _FOLDER, staging.name))
        sync_tree(staging)
        try:
            staging.rename(path)
        except OSError:
            # Another server was faster; what it has renamed is the same, and verified.
            if not path.is_dir():
                raise
    return target
