"""A ModelVersion to go on from: its own folder as a base model, its adapter merged into its base, or kept beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from finetune_api.run import ModelOrder, ParentOrder
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.models import base_model, saved_model
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.adapters import merged

log = logging.getLogger(__name__)


def resolve(order: ModelOrder, *, storage: Storage) -> ResolvedModel:
    """`base_model.resolve`, of whatever an order may name.

    Raises StageError besides: 66 where the version's files are gone, 78 where they are not those that were recorded.
    """
    parent = order.parent
    if parent is None:
        return base_model.resolve(order, storage=storage)
    if parent.artifact.format != "Adapter":
        saved_model.verify_artifact(parent.artifact, at=parent.artifact.uri, storage=storage)
        base = base_model.in_folder(parent.artifact.uri, storage=storage)
        base = base.model_copy(update={"licence": parent.base.licence})  # it is made of that model
    elif parent.keep:
        saved_model.verify_artifact(parent.artifact, at=parent.artifact.uri, storage=storage)
        base = parent.base
    else:
        base = _merged(parent, order=order, storage=storage)
    return base_model.accepted(base, order=order, storage=storage)


@contextmanager
def kept_adapter(order: ModelOrder, *, storage: Storage) -> Iterator[str | None]:
    """The folder of the adapter that is trained on, after its digest was verified; None: a new one is."""
    parent = order.parent
    if parent is None or not parent.keep:
        yield None
        return
    with storage.finished_copy(parent.artifact.uri) as copy:
        yield str(saved_model.recorded(parent.artifact, copy))


def take_over(adapted: Any, folder: str | None) -> None:
    """Have the adapter that a method has made go on as the one that was saved in a folder, where there is one. Layers
    without weights (`base_model.skeleton`) stay so. Raises StageError (78) where the method's is another adapter.
    """
    if folder is None:
        return
    from finetune_trainer.models.adapter_library import peft

    ours, saved = _described(adapted.peft_config["default"]), _described(peft.PeftConfig.from_pretrained(folder))
    for field, value in ours.items():
        if saved.get(field) != value:
            raise bad_configuration(
                "AdapterMismatch",
                f"method.{field}: {value}, but the version's adapter, which method.parent: Keep goes on with, has"
                f" {saved.get(field)}; use the same, or method.parent: Merge",
            )
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    if tensors.keys() != peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys():
        raise bad_configuration(
            "AdapterMismatch",
            "method.parent: Keep, but the version's adapter has parts in other layers than the job's; use Merge",
        )
    if not next(adapted.parameters()).is_meta:
        peft.set_peft_model_state_dict(adapted, tensors)


def _described(config: Any) -> dict[str, Any]:
    """What makes an adapter another one, by the fields of `method`."""
    kind = "DoRA" if getattr(config, "use_dora", False) else config.peft_type.value
    found: dict[str, Any] = {"type": {"LORA": "LoRA (or QLoRA)"}.get(kind, kind)}
    if hasattr(config, "r"):
        found |= {"lora.rank": config.r, "lora.alpha": float(config.lora_alpha)}
        found["lora.targetModules"] = ", ".join(sorted({name.rpartition(".")[2] for name in config.target_modules}))
    return found


def check_labels(order: ModelOrder, labels: Sequence[str] | None) -> None:
    """A kept adapter has a head for its classes, in their order. Raises StageError (78)."""
    parent = order.parent
    if parent is not None and parent.keep and (parent.labels or []) != list(labels or []):
        theirs, ours = ", ".join(parent.labels or []), ", ".join(labels or [])
        raise bad_configuration(
            "AdapterMismatch",
            f"method.parent: Keep, but version {parent.name} knows the classes {theirs}, and the data has {ours}; use"
            " data of the same classes, or method.parent: Merge",
        )


def _merged(parent: ParentOrder, *, order: ModelOrder, storage: Storage) -> ResolvedModel:
    """In fp32, once for all runs that share a cache."""
    uri, identity = base_model.cache_entry(storage, f"merged {parent.artifact.digest} {parent.base.digest}")
    cached = base_model.read_cached(uri, identity, storage)
    if cached is None:
        log.info("merging the adapter of %s into its base (once)", parent.name)
        model, tokenizer = saved_model.load_artifact(
            parent.artifact, base=parent.base, task=order.task, labels=parent.labels, storage=storage
        )
        with storage.staging_folder(uri) as folder:
            merged(model).save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
            cached = base_model.Cached(uri=uri, digest=base_model.folder_digest(folder), licence=parent.base.licence)
            extra = {"digest": cached.digest, "licence": cached.licence}
            storage.publish(folder, to=uri, input_digest=identity, extra=extra)
    return ResolvedModel(uri=order.uri, digest=cached.digest, licence=cached.licence, materialized_uri=uri)
