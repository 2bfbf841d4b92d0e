"""How the processes of Train will share the model: chosen once, here, by what it needs of their memory."""

from __future__ import annotations

import json
import logging
from typing import Any

from finetune_api import memory
from finetune_api.model_shape import ModelShape, shapes_in
from finetune_api.results import PrepareResult, Sharing
from finetune_api.run import PrepareRun
from finetune_trainer.models.model_files import weight_files
from finetune_trainer.process.errors import bad_configuration
from finetune_trainer.store.locations import join
from finetune_trainer.store.storage import Storage
from finetune_trainer.tasks.choose import task_of

log = logging.getLogger(__name__)


def with_sharing(run: PrepareRun, found: PrepareResult, *, storage: Storage) -> PrepareResult:
    """The result with the choice that the order asks for, and a remark where memory may not do.

    Raises StageError (78) where it is known that nothing fits.
    """
    if run.memory is None or run.method is None:
        return found
    chooses, wish, uri = run.memory.strategy == "Auto", run.memory.activation_checkpointing, found.base.loadable_uri
    config = json.loads(storage.read_bytes(join(uri, "config.json")))
    recomputable = wish in (None, "Never") or _recomputable(config)
    if wish == "Always" and not recomputable:
        raise bad_configuration(
            "UnsupportedModel",
            f"training.activationCheckpointing: Always: a model of type {config.get('model_type')} cannot compute its"
            " activations again; use Auto or Never",
        )
    try:
        shape = ModelShape.of(config, _tensors(uri, storage=storage))
        gpus = memory.gpus_to_evaluate(shape, run.memory) if run.memory.gpus else None
        found = found.model_copy(update={"evaluation_gpus": gpus})
    except ValueError as error:
        because = f"what it needs of memory is not known: {error}"[:600]
        unknown = Sharing(strategy="DDP", activation_checkpointing=wish == "Always", because=because)
        return found.model_copy(update={"sharing": unknown if chooses else None})
    longest = run.max_length if run.packing else min(run.max_length, found.summary.token_length_max)
    training = memory.Training(
        shape=shape,
        method=run.method,
        order=run.memory,
        tokens=longest,
        writes=task_of(run.model.task).generates,
        recomputable=recomputable,
    )
    choice = memory.choose(training)
    problem = memory.problem(training, choice)
    if problem is not None and chooses and choice.fits is False:
        raise bad_configuration(
            "DoesNotFit",
            f"compute.strategy: Auto finds none that fits. {problem}. Or name one, and it is tried all the same",
        )
    log.info("memory      %s", choice.text)
    remarks = [*found.remarks, *([] if problem is None else [problem])]
    if not chooses and (wish != "Auto" or not choice.memory.recomputes):
        return found.model_copy(update={"remarks": remarks})
    sharing = Sharing(
        strategy=choice.memory.strategy,
        offload=choice.memory.offload.optimizer or choice.memory.offload.parameters,
        activation_checkpointing=choice.memory.recomputes,
        because=choice.text[:600],
    )
    return found.model_copy(update={"remarks": remarks, "sharing": sharing})


def _recomputable(config: dict[str, Any]) -> bool:
    """Whether the architecture's code can; of one that is not named, nothing is known against it."""
    import transformers

    named = config.get("architectures")
    code = getattr(transformers, str(named[0]), None) if named else None
    return bool(getattr(code, "supports_gradient_checkpointing", True))


def _tensors(uri: str, *, storage: Storage) -> dict[str, tuple[int, ...]]:
    """From the headers of the weights; nothing else of them is read."""
    tensors: dict[str, tuple[int, ...]] = {}
    names = {entry.path for entry in storage.list_files(uri) if "/" not in entry.path}
    for name in weight_files(names, read=lambda name: storage.read_bytes(join(uri, name))):
        with storage.open(join(uri, name)) as stream:
            tensors |= shapes_in(stream)
    return tensors
