"""A ModelVersion as a base model, to go on from: its own folder, or its adapter merged into its base."""

from __future__ import annotations

import logging

from finetune_api.run import ModelOrder, ParentOrder
from finetune_api.shared_fields import ResolvedModel
from finetune_trainer.models import base_model, saved_model
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
    else:
        base = _merged(parent, order=order, storage=storage)
    return base_model.accepted(base, order=order, storage=storage)


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
