"""One model over the held-out examples: what it generates, how likely it finds what is right.

A baseline's outcomes are kept in the cache under everything they depend on, so that many candidates for one endpoint
do not run the same baseline again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from finetune_trainer.data.dataset import Example
from finetune_trainer.models.limits import context_of, padding_of
from finetune_trainer.store import json_lines
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.task import Asked, Decoding, ModelRun

log = logging.getLogger(__name__)

_OUTCOMES = "outcomes.jsonl"


def run_model(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, decoding: Decoding, labels: Sequence[str], who: str
) -> ModelRun:
    """Ask a model all examples. `labels`: of a classifier, in the order of its outputs; `who` names it in the log."""
    task = task_of(decoding.task)
    context = context_of(model, tokenizer, generates=task.generates)
    if context is not None and context < decoding.max_length:
        decoding = replace(decoding, max_length=context)  # of a baseline, which may read less than the candidate
    asked = Asked(model=model, tokenizer=tokenizer, labels=labels, context=context, pad_id=padding_of(model), who=who)
    return task.ask(asked, examples, decoding=decoding)


def cached_run(storage: Storage, *, key: Mapping[str, Any]) -> ModelRun | None:
    """The run that was kept under `key`; None where there is none, or a damaged one."""
    uri, identity = _entry(storage, key)
    complete = storage.read_complete(uri)
    if complete is None or complete.input_digest != identity:
        return None
    kind = task_of(key["decoding"]["task"]).outcome
    documents = json_lines.read(storage.read_text(join(uri, _OUTCOMES)))
    log.info("the baseline was scored on these examples before: %s", uri)
    return ModelRun(outcomes=[kind(**document) for document in documents], **complete.extra)


def keep_run(run: ModelRun, storage: Storage, *, key: Mapping[str, Any]) -> None:
    """Keep a run for whoever compares with the same baseline on the same examples."""
    uri, identity = _entry(storage, key)
    with storage.staging_folder(uri) as folder:
        (folder / _OUTCOMES).write_text(json_lines.to_text(map(asdict, run.outcomes)), encoding="utf-8")
        extra = {"cut_examples": run.cut_examples, "cut_prompts": run.cut_prompts}
        storage.publish(folder, to=uri, input_digest=identity, extra=extra)


def _entry(storage: Storage, key: Mapping[str, Any]) -> tuple[str, str]:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return join(storage.locations.cache, "evaluations", digest), f"sha256:{digest}"
